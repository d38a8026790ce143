"""Control connections: what workers answer beside the request that they are handling."""

from __future__ import annotations

import struct
import threading
from collections.abc import Mapping, Sequence
from time import monotonic

from workers.pickling import dumps
from workers.remote.channel import Channel, UnreadableError
from workers.remote.dialing import Address, dial
from workers.remote.handshake import CONTROL
from workers.remote.layout import DamagedError
from workers.remote.replies import Busy
from workers.remote.service import Service

__all__ = ["Controls", "answer_control"]

_HALT = struct.Struct("<q")
_BUSY = struct.Struct("<qd")
_TIMEOUT = 2.0
"""Seconds to connect to a worker that is to stop early, and for which a worker may stall in a message."""

_LONGEST, _MOST_CHARACTERS = 1e9, 1000
"""Bounds of what a worker says that it is busy with: seconds and length of the text."""


def answer_control(channel: Channel, service: Service) -> None:
    """Answer a driver's questions until it disconnects. Runs on a thread of its own in the worker.

    A question is the number of the last request to halt, 0 for none. The answer says what the worker is busy with.

    Raises:
        DamagedError: The driver sent something else.
        OSError: The connection is lost.
        EOFError: The driver disconnected.
    """
    while True:
        message = channel.receive()
        assert message is not None, "receive() without a timeout returns a message"
        if len(message.plain) != _HALT.size:
            raise DamagedError(f"a question has {len(message.plain)} bytes; expected {_HALT.size}")
        (halted,) = _HALT.unpack(message.plain)
        if halted:
            service.halt(halted)
        seq, seconds, doing = service.busy()
        channel.send(message.seq, _BUSY.pack(0 if seq is None else seq, seconds) + doing.encode())


class Controls:
    """The driver's ends of the control connections to some workers. A lost connection is made again when needed."""

    def __init__(self, doors: Mapping[int, tuple[Address, bytes]]) -> None:
        """Take the address and key of each worker, by any number; connect when needed."""
        self._controls = {index: _Control(address, key) for index, (address, key) in doors.items()}

    def ping(self, indices: Sequence[int], timeout: float) -> dict[int, Busy | None]:
        """Return what workers are busy with; None for those that do not answer within `timeout` seconds."""
        deadline = monotonic() + timeout
        self._ask(indices, deadline)
        return {index: self._controls[index].answer(deadline) for index in indices}

    def halt(self, numbers: Mapping[int, int]) -> None:
        """Let workers stop requests up to these numbers early; see `Service.halt`. Who cannot be reached is skipped."""
        self._ask(list(numbers), monotonic() + _TIMEOUT, numbers)

    def replace(self, index: int, address: Address, key: bytes) -> None:
        """Forget a worker, and take the address and key of another one in its place."""
        self._controls[index].hang_up()
        self._controls[index] = _Control(address, key)

    def _ask(self, indices: Sequence[int], deadline: float, halted: Mapping[int, int] = {}) -> None:
        """Send a question to workers. Those without a connection are dialed together, as a silent one takes long."""
        threads = []
        for index in indices:
            control, number = self._controls[index], halted.get(index, 0)
            if control.ask(number):
                continue
            thread = threading.Thread(target=control.dial_and_ask, args=(deadline, number), daemon=True)
            try:
                thread.start()
                threads.append(thread)
            except RuntimeError:  # no thread can be started, for example at the end of the program
                control.dial_and_ask(deadline, number)
        for thread in threads:
            thread.join()

    def close(self) -> None:
        """Close all connections."""
        for control in self._controls.values():
            control.hang_up()


class _Control:
    """The driver's end of the control connection to one worker."""

    def __init__(self, address: Address, key: bytes) -> None:
        self._address, self._key = address, key
        self._channel: Channel | None = None
        self._number = 0

    def ask(self, halted: int = 0) -> bool:
        """Send a question over the connection; return whether there is one, as far as is known."""
        if self._channel is None:
            return False
        self._number += 1
        try:
            self._channel.send(self._number, _HALT.pack(halted))
        except OSError:
            self.hang_up()
            return False
        except BaseException:
            self.hang_up()  # a partly sent message cannot be continued
            raise
        return True

    def dial_and_ask(self, deadline: float, halted: int = 0) -> None:
        """Send a question over a new connection, if the worker can be connected to in time."""
        try:
            connection = dial(self._address, self._key, CONTROL, timeout=deadline - monotonic())
        except OSError:
            return
        self._channel = Channel(*connection, dumps, stall_timeout=_TIMEOUT)
        self.ask(halted)

    def answer(self, deadline: float) -> Busy | None:
        """Return the answer to the last question; None if it does not arrive in time."""
        for _ in range(2):  # the question may have been sent over a lost connection
            try:
                while self._channel is not None:
                    message = self._channel.receive(max(0.0, deadline - monotonic()))
                    if message is None:
                        return None
                    if message.seq == self._number:  # else it answers an older question
                        return _busy(message.plain)
                    if message.seq > self._number:
                        raise DamagedError(f"a worker answers question {message.seq} of {self._number}")
            except (OSError, EOFError, UnreadableError):
                self.hang_up()
                if deadline > monotonic():
                    self.dial_and_ask(deadline)
            except BaseException:
                self.hang_up()
                raise
        return None

    def hang_up(self) -> None:
        """Close the connection; a new one is made when needed."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()


def _busy(answer: bytes | memoryview) -> Busy:
    try:
        seq, seconds = _BUSY.unpack_from(answer)
        doing = str(answer[_BUSY.size :], "utf-8")
    except (struct.error, UnicodeDecodeError) as error:
        raise DamagedError(f"a worker does not say what it is busy with: {error}") from error
    if seq < 0 or not 0 <= seconds < _LONGEST or not (doing.isprintable() and len(doing) < _MOST_CHARACTERS):
        raise DamagedError("a worker does not say what it is busy with")
    return Busy(seq or None, seconds, doing)
