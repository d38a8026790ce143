"""The way from a driver to a worker."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import Future
from time import monotonic, sleep
from typing import NamedTuple

from workers.remote.handshake import Session, handshake
from workers.remote.sockets import prepare, set_timeout

__all__ = ["Address", "dial", "dial_in_background"]

_SILENCE_TIMEOUT = 10.0
"""Seconds after which a worker's machine that acknowledges nothing is gone."""

_SHORTEST_WAIT = 1e-3
_PAUSE = 0.01
"""Seconds before a worker that hung up during the handshake is tried again."""


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
    address: Address, key: bytes, role: bytes, *, timeout: float, signs_arrays: bool = False
) -> tuple[socket.socket, Session]:
    """Return an authenticated connection to a worker: on its machine over a Unix socket, which takes half the time.

    A worker that hangs up during the handshake is tried again until the time is up.

    Args:
        address: Where the worker listens.
        key: Secret that only this worker knows.
        role: `WORK` or `CONTROL`; see `handshake`.
        timeout: Time for everything, in seconds.
        signs_arrays: Whether the data of arrays are signed, too.

    Raises:
        OSError: The worker cannot be connected to, or does not know the key.
    """
    deadline = monotonic() + timeout
    while True:
        sock = _connected(address, deadline)
        try:
            prepare(sock, patience=_SILENCE_TIMEOUT)
            return sock, _authenticated(sock, key, role, deadline, signs_arrays=signs_arrays)
        except (ConnectionResetError, BrokenPipeError):
            sock.close()
            if monotonic() + _PAUSE >= deadline:
                raise
        except BaseException:
            sock.close()
            raise
        sleep(_PAUSE)


def dial_in_background(
    address: Address, key: bytes, role: bytes, *, timeout: float, pause: float = 0.0, signs_arrays: bool = False
) -> Future[tuple[socket.socket, Session]]:
    """Start to `dial` after a pause, so that a silent machine holds nobody up.

    If no thread can be started, for example at the end of the program, the dial is over when this returns.
    """
    dialing: Future[tuple[socket.socket, Session]] = Future()

    def run() -> None:
        try:
            sleep(pause)
            dialing.set_result(dial(address, key, role, timeout=timeout, signs_arrays=signs_arrays))
        except BaseException as error:
            dialing.set_exception(error)

    try:
        threading.Thread(target=run, name="lockstep-dial", daemon=True).start()
    except RuntimeError:
        run()
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
                raise TimeoutError("the worker did not accept the connection in time") from None
            if not address.port:
                raise
        except BaseException:
            sock.close()
            raise
    return socket.create_connection((address.host, address.port), timeout=_left(deadline))


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
