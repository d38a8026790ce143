"""The way from a driver to a worker."""

from __future__ import annotations

import errno
import socket
import threading
from concurrent.futures import Future
from time import monotonic, sleep
from typing import NamedTuple

from workers.remote.handshake import Session, handshake
from workers.remote.sockets import prepare, set_timeout

__all__ = ["Address", "SilentMachineError", "UnansweredError", "dial", "dial_in_background"]

_SILENCE_TIMEOUT = 8.0
"""Seconds after which a connection is lost if the worker's machine acknowledges nothing. Linux ends it, too, if the
worker takes nothing for as long: whether the machine is gone, the next attempt to connect tells."""

_SILENCE = {errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN}
_BUSY = 1.0
"""Seconds without an answer, after a connection was made, that show that the worker is only busy."""

_ANSWER_TIMEOUT = 60.0
"""Seconds for an answer in the background: many connections that nobody accepts would fill the worker's backlog."""

_SHORTEST_WAIT = 1e-3
_PAUSE = 0.01
"""Seconds before a worker that hung up during the handshake is tried again."""


class SilentMachineError(OSError):
    """Nothing comes from the worker's machine."""


class UnansweredError(TimeoutError):
    """The worker's machine takes connections, but the worker does not answer: it is busy, or stopped."""


class Address(NamedTuple):
    """Where a worker listens.

    Attributes:
        host: Host, for TCP and for messages.
        port: Port, for TCP; 0 if the worker does not listen there.
        name: Name of a Unix socket on the worker's machine; empty if there is none.
    """

    host: str
    port: int
    name: bytes = b""


def dial(
    address: Address, key: bytes, role: bytes, *, timeout: float, patience: float = 0.0, signs_arrays: bool = False
) -> tuple[socket.socket, Session]:
    """Return an authenticated connection to a worker: on its machine over a Unix socket, which takes half the time.

    A worker that hangs up during the handshake is tried again until the time is up.

    Args:
        address: Where the worker listens.
        key: Secret that only this worker knows.
        role: `WORK` or `CONTROL`; see `handshake`.
        timeout: Time for everything, in seconds.
        patience: Seconds for which a machine that has taken the connection is waited for, even beyond `timeout`.
        signs_arrays: Whether the data of arrays are signed, too.

    Raises:
        SilentMachineError: Nothing comes from the worker's machine.
        UnansweredError: The worker's machine takes connections, but the worker does not answer.
        OSError: The worker cannot be connected to, or does not know the key.
    """
    deadline = monotonic() + timeout
    while True:
        sock, connected_at = _connected(address, deadline), monotonic()
        try:
            prepare(sock, patience=_SILENCE_TIMEOUT)
            last = max(deadline, connected_at + patience)
            return sock, _authenticated(sock, key, role, last, signs_arrays=signs_arrays)
        except (ConnectionResetError, BrokenPipeError) as error:
            sock.close()
            if monotonic() + _PAUSE >= deadline:
                if monotonic() - connected_at >= _BUSY:
                    raise UnansweredError(str(error)) from error
                raise
        except TimeoutError as error:
            sock.close()
            raise UnansweredError("the worker takes connections, but does not answer") from error
        except BaseException:
            sock.close()
            raise
        sleep(_PAUSE)


def dial_in_background(
    address: Address, key: bytes, role: bytes, *, timeout: float, pause: float = 0.0, signs_arrays: bool = False
) -> Future[tuple[socket.socket, Session]]:
    """Start to `dial` after a pause, so that a silent machine holds nobody up; a busy worker gets a minute to answer.

    If no thread can be started, for example at the end of the program, the dial is over when this returns.
    """
    dialing: Future[tuple[socket.socket, Session]] = Future()

    def run(patience: float) -> None:
        try:
            sleep(pause)
            dialed = dial(address, key, role, timeout=timeout, patience=patience, signs_arrays=signs_arrays)
            dialing.set_result(dialed)
        except BaseException as error:
            dialing.set_exception(error)

    try:
        threading.Thread(target=run, args=(_ANSWER_TIMEOUT,), name="lockstep-dial", daemon=True).start()
    except RuntimeError:
        run(0.0)
    return dialing


def _connected(address: Address, deadline: float) -> socket.socket:
    if address.name:
        sock = socket.socket(socket.AF_UNIX)
        # a socket with Python's timeout does not wait while many others connect
        set_timeout(sock, socket.SO_SNDTIMEO, _left(deadline))
        try:
            sock.connect(address.name)
            return sock
        except OSError as error:
            sock.close()
            if isinstance(error, BlockingIOError):  # it is here, but does not accept
                raise UnansweredError("the worker did not accept the connection in time") from None
            if not address.port:
                raise
        except BaseException:
            sock.close()
            raise
    try:
        return socket.create_connection((address.host, address.port), timeout=_left(deadline))
    except OSError as error:
        if isinstance(error, TimeoutError) or error.errno in _SILENCE:
            raise SilentMachineError(str(error)) from error
        raise


def _authenticated(sock: socket.socket, key: bytes, role: bytes, deadline: float, *, signs_arrays: bool) -> Session:
    steps = handshake(key, role, signs_arrays=signs_arrays)
    message, count = next(steps)
    while True:
        sock.settimeout(_left(deadline))
        sock.sendall(message)
        received = b""
        while len(received) < count:
            sock.settimeout(_left(deadline))
            part = sock.recv(count - len(received))
            if not part:
                raise ConnectionResetError("the peer closed the connection")
            received += part
        try:
            message, count = steps.send(received)
        except StopIteration as end:
            session: Session = end.value
            return session


def _left(deadline: float) -> float:
    return max(_SHORTEST_WAIT, deadline - monotonic())
