"""One end of an authenticated connection between a driver and a worker: whole messages, in order.

A small message takes one system call to send and one to receive. (`multiprocessing.connection` takes three to receive
it, which is most of its cost.)

A message is a tag, a header, what is not an array, and the data of arrays. The tag is a keyed BLAKE2b hash (RFC 7693)
of everything that was sent in this direction up to here, so no message can be changed, left out, moved or repeated
without notice. Nothing is unpickled before its tag was compared. The data of arrays are only covered if the session
says so.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable
from hashlib import blake2b
from hmac import compare_digest
from time import monotonic
from typing import Any, NamedTuple

from workers.errors import ends_program, message_of
from workers.pickling import dumps, loads
from workers.remote.handshake import Session
from workers.remote.layout import DamagedError, Layout, check_layout
from workers.remote.sockets import hang_up, set_timeout
from workers.remote.wire import Packed

__all__ = ["Channel", "Message", "UnreadableError"]

_STALL_TIMEOUT = 60.0
"""Seconds that a peer may take for `_STEP` bytes of a message, or for its rest."""

_TAG = 16
_FORMAT = "QQiiQQQQB7x"
_HEADER = struct.Struct(f"<{_FORMAT}")
"""seq, ack, slot, number of the layout, lengths of the plain part, the spec, the other leaves and the data, and whether
the data are in the message."""

_TAG_AND_HEADER = struct.Struct(f"<{_TAG}s{_FORMAT}")
_HEAD = _TAG_AND_HEADER.size
_BUFFER = 64 * 1024
_JOINED = 16 * 1024
"""Largest data, in bytes, that are sent in one piece with the rest of the message."""

_STEP = 16 * 1024 * 1024
"""Bytes of a message that share a time limit, and most bytes of memory for what has not arrived yet."""

_WORTH_KEEPING = 4096
"""Bytes of arrays from which their memory is used again."""

_NOBODY_ELSE = 2
"""What `sys.getrefcount` returns for the value of an attribute that nobody else holds."""

_MAX_LAYOUTS = 64
_MAX_NUMBER = 2**63
_MAX_BYTES = 2**40
_SHORTEST_WAIT = 1e-3


class UnreadableError(Exception):
    """A message is complete, but cannot be unpickled.

    Attributes:
        seq: Number of its request.
    """

    def __init__(self, seq: int, reason: str) -> None:
        self.seq = seq
        super().__init__(reason)


class Message(NamedTuple):
    """A request or a reply.

    Attributes:
        seq: Number of the request.
        ack: Requests before this one will not be sent again.
        slot: Slot of shared memory that the reply may use, -1 for none.
        plain: Content without arrays, valid until the next message is received; see `workers.remote.messages`.
        packed: Its arrays, or None.
    """

    seq: int
    ack: int
    slot: int
    plain: bytes | memoryview
    packed: Packed | None


class Channel:
    """One end of an authenticated connection.

    The layout of a packed tree is sent once, and by number after that.
    """

    def __init__(
        self,
        sock: socket.socket,
        session: Session,
        dumps: Callable[[Any], bytes],
        *,
        stall_timeout: float = _STALL_TIMEOUT,
        ends: Callable[[BaseException], bool] = ends_program,
    ) -> None:
        """Use an authenticated connection.

        Args:
            sock: The connection.
            session: Its keys.
            dumps: Pickles layouts, including keys of classes that the peer cannot import.
            stall_timeout: Seconds that the peer may take to send or receive 16 MB, or the rest of a message.
            ends: Returns whether an exception ends this program, and is not what a class raised while it was unpickled.
        """
        sock.settimeout(None)  # the system keeps the time, which saves a call
        set_timeout(sock, socket.SO_SNDTIMEO, stall_timeout)
        self._sock = sock
        self._signs_arrays = session.signs_arrays
        self._dumps = dumps
        self._stall_timeout = stall_timeout
        self._ends = ends
        self._timeout = -1.0
        self._buffer = memoryview(bytearray(_BUFFER))
        self._start = self._stop = 0
        self._data = bytearray()  # of the last arrays
        self._sent_hash = blake2b(key=session.send_key, digest_size=_TAG)
        self._received_hash = blake2b(key=session.receive_key, digest_size=_TAG)
        self._sent: dict[Any, int] = {}
        self._new: tuple[Any, int] | None = None  # a layout that the next message describes
        self._received: dict[int, Layout | str] = {}  # or why it cannot be unpickled here

    def send(self, seq: int, plain: bytes, packed: Packed | None = None, *, ack: int = 0, slot: int = -1) -> None:
        """Send a message; see `Message`, `encode` and `write`."""
        self.write(self.encode(seq, plain, packed, ack=ack, slot=slot))

    def encode(
        self, seq: int, plain: bytes, packed: Packed | None = None, *, ack: int = 0, slot: int = -1
    ) -> tuple[bytes, Any]:
        """Return a message for `write`, and the data of its arrays, if they are sent; see `Message`.

        Raises:
            Exception: The layout cannot be pickled; nothing needs to be sent.
        """
        self._new = None
        if packed is None:
            return _HEADER.pack(seq, ack, slot, -1, len(plain), 0, 0, 0, False) + plain, None
        spec, others, data, size = packed
        pickled_others = dumps(others) if others else b""
        number, pickled_spec = self._sent.get(spec, -1), b""
        if number < 0:
            pickled_spec = self._dumps(spec)
            if len(self._sent) == _MAX_LAYOUTS:
                self._sent.clear()
            number = len(self._sent)
            self._new = spec, number
        lengths = len(plain), len(pickled_spec), len(pickled_others), size
        head = _HEADER.pack(seq, ack, slot, number, *lengths, data is not None)
        return b"".join((head, plain, pickled_spec, pickled_others)), data

    def write(self, encoded: tuple[bytes, Any]) -> None:
        """Send what `encode` returned last.

        Raises:
            OSError: The connection is lost, or stalled.
        """
        message, data = encoded
        self._sent_hash.update(message)
        if data is not None and self._signs_arrays:
            self._sent_hash.update(data)
        tag = self._sent_hash.digest()
        if data is None:
            self._send(tag + message)
        elif len(data) <= _JOINED:
            self._send(b"".join((tag, message, data)))
        else:
            self._send(tag + message)
            self._send(data)
        if self._new is not None:
            spec, number = self._new
            self._sent[spec] = number
            self._new = None

    def receive(self, timeout: float | None = None) -> Message | None:
        """Return the next message, or None if none starts to arrive within `timeout` seconds; None waits forever.

        The data of a packed tree are None if they are in shared memory.

        Raises:
            DamagedError: The message is not what the peer has sent, or no healthy peer sends it. The channel cannot be
                used any more.
            OSError: The connection is lost, or stalled in the middle of a message.
            EOFError: The peer closed the connection.
            UnreadableError: The message cannot be unpickled; it is consumed.
        """
        if self._start == self._stop:
            self._start = self._stop = 0
            self._set_timeout(0 if timeout is None else max(timeout, _SHORTEST_WAIT))
            try:
                self._read_some()
            except BlockingIOError:
                return None
        self._have(_HEAD)
        header = _TAG_AND_HEADER.unpack_from(self._buffer, self._start)
        tag, seq, ack, slot, number, plain_size, spec_size, others_size, size, is_here = header
        layout = self._received.get(number)
        if number < 0:
            is_valid = number == -1 and not spec_size | others_size | size | is_here
        else:
            is_known = isinstance(layout, str) or (layout is not None and layout.size == size)
            is_valid = (is_known or spec_size) and number < _MAX_LAYOUTS and is_here <= 1
        if not is_valid or (seq | ack) >= _MAX_NUMBER or (plain_size | spec_size | others_size | size) >= _MAX_BYTES:
            raise DamagedError(f"a message has the header {header[1:]}, which no healthy peer sends")
        message = self._whole(_HEAD + plain_size + spec_size + others_size)
        data = self._take_data(size) if is_here else None
        self._received_hash.update(message[_TAG:])
        if data is not None and self._signs_arrays:
            self._received_hash.update(data)
        if not compare_digest(self._received_hash.digest(), tag):
            raise DamagedError("a message is not what the peer has sent")
        plain = message[_HEAD : _HEAD + plain_size]  # no copy: it may be large
        if number < 0:
            return Message(seq, ack, slot, plain, None)
        middle = _HEAD + plain_size + spec_size
        if spec_size:
            layout = self._received[number] = self._layout(message[_HEAD + plain_size : middle])
        if isinstance(layout, str):
            raise UnreadableError(seq, layout)
        assert layout is not None, "the header was checked"
        try:
            others = loads(message[middle:]) if others_size else ()
        except BaseException as error:
            raise UnreadableError(seq, self._reason(error)) from error
        if type(others) is not tuple or len(others) != layout.others or layout.size != size:
            raise DamagedError("a message does not fit its layout")
        return Message(seq, ack, slot, plain, Packed(layout.spec, others, data, size))

    def _layout(self, pickled: memoryview) -> Layout | str:
        """Return a layout, or why it cannot be unpickled."""
        try:
            spec = loads(pickled)
        except BaseException as error:
            return self._reason(error)
        return check_layout(spec)

    def _reason(self, error: BaseException) -> str:
        """Describe why something cannot be unpickled."""
        if self._ends(error):
            raise error
        return f"{type(error).__name__}: {message_of(error)}"

    def close(self) -> None:
        """Close the connection, even if a forked process also holds the socket."""
        hang_up(self._sock)

    def _send(self, data: bytes | bytearray) -> None:
        """Send all data."""
        sent = self._sock.send(data)
        if sent == len(data):
            return
        pace = _Pace(self._stall_timeout)
        with memoryview(data) as rest:
            while sent < len(rest):
                pace.check(sent)
                sent += self._sock.send(rest[sent : sent + _STEP])

    def _read_some(self) -> None:
        """Read at least one byte into the buffer."""
        self._stop += self._read_into(self._buffer[self._stop :])

    def _read_into(self, memory: memoryview) -> int:
        """Read at least one byte into the memory and return how many."""
        count = self._sock.recv_into(memory)
        if not count:
            raise EOFError("the peer closed the connection")
        return count

    def _have(self, count: int) -> None:
        """Wait until `count` bytes are in the buffer, which is larger."""
        if self._stop - self._start >= count:
            return
        self._set_timeout(self._stall_timeout)
        if self._start + count > _BUFFER:
            rest = self._stop - self._start
            self._buffer[:rest] = self._buffer[self._start : self._stop]
            self._start, self._stop = 0, rest
        pace = _Pace(self._stall_timeout)
        while self._stop - self._start < count:
            self._read_some()
            pace.check(0)

    def _whole(self, count: int) -> memoryview:
        """Return `count` bytes, which are in the buffer if they fit."""
        if count > _BUFFER:
            return memoryview(self._take(count))
        self._have(count)
        self._start += count
        return self._buffer[self._start - count : self._start]

    def _take_data(self, count: int) -> bytearray:
        """Return the data of arrays. The memory of the last ones is used again if nobody else holds it.

        New memory for the data of many workers costs more than receiving them: the system takes it back in between.
        """
        if not _WORTH_KEEPING <= count <= _STEP:
            return self._take(count)
        is_free = len(self._data) == count and sys.getrefcount(self._data) == _NOBODY_ELSE
        self._data = self._take(count, self._data if is_free else None)
        return self._data

    def _take(self, count: int, data: bytearray | None = None) -> bytearray:
        """Return `count` bytes in `data`, or else in memory of their own, which grows as they arrive."""
        have = min(count, self._stop - self._start)
        arrived = self._buffer[self._start : self._start + have]
        self._start += have
        if data is not None:
            data[:have] = arrived
        else:
            data = bytearray(arrived)
            if have < count:
                data = data.ljust(min(count, _STEP))
        if have < count:
            self._set_timeout(self._stall_timeout)
        pace = _Pace(self._stall_timeout)
        while have < count:
            if have == len(data):
                data += bytes(min(count - have, _STEP))
            with memoryview(data) as memory:
                while have < len(memory):
                    have += self._read_into(memory[have:])
                    pace.check(have)
        return data

    def _set_timeout(self, seconds: float) -> None:
        """Set the time limit of single reads, in seconds; 0 for none."""
        if seconds != self._timeout:
            self._timeout = seconds
            set_timeout(self._sock, socket.SO_RCVTIMEO, seconds)


class _Pace:
    """The least pace of a message: a peer that sends or takes single bytes must not hold this process for long."""

    def __init__(self, timeout: float) -> None:
        """Allow `timeout` seconds for each `_STEP` bytes."""
        self._timeout = timeout
        self._start, self._next = monotonic(), _STEP

    def check(self, count: int) -> None:
        """Check the time after `count` bytes.

        Raises:
            TimeoutError: The peer is too slow.
        """
        if count >= self._next:
            self._start, self._next = monotonic(), count + _STEP
        elif monotonic() - self._start > self._timeout:
            raise TimeoutError(f"the peer took longer than {self._timeout} s for {_STEP} bytes")
