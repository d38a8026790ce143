"""Listener: lets in the drivers that know the key, however many strangers are at the door."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import selectors
import socket
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic, sleep
from typing import Any

from workers.remote.dialing import Address
from workers.remote.handshake import SERVE, Session, handshake
from workers.remote.sockets import hang_up, prepare

__all__ = ["Listener"]

_logger = logging.getLogger("lockstep")

_HANDSHAKE_TIMEOUT = 10.0
_MOST_AT_THE_DOOR = 64
"""Maximum number of connections that are not authenticated yet; beyond it, the oldest is closed."""

_BACKLOG = 1024
_UNTAKEN_TIMEOUT = 60.0
"""Seconds for which a driver that is busy may leave a large reply where it is: Linux counts that as silence, too."""

_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_PAUSE = 0.1
"""Seconds before the next connection, if there is no room for one and nobody to send away."""

_CREDENTIALS = struct.Struct("iII")
"""What SO_PEERCRED returns: pid, uid and gid."""


class Listener:
    """The listening end of a worker. One thread, started at the beginning, talks to everybody at the door."""

    def __init__(self, key: bytes, let_in: Callable[[socket.socket, Session], None]) -> None:
        """Create a listener that does not listen yet.

        Args:
            key: The secret of the worker's driver.
            let_in: Takes each authenticated connection. Runs on the listener's thread, and must return at once.
        """
        self._key = key
        self._let_in = let_in
        self._selector = selectors.DefaultSelector()
        self._listeners: list[socket.socket] = []
        self._strangers: dict[socket.socket, _Stranger] = {}  # the oldest first
        self._wakes, self._woken = socket.socketpair()
        self._is_shut = False

    def open(self, host: str | None) -> Address:
        """Start to listen on a Unix socket of this machine, and on a free port of `host`, unless that is None.

        Where there are no abstract Unix sockets, that is on other systems than Linux, None is this machine alone.
        """
        name, port = b"", 0
        if sys.platform == "linux":
            name = b"\0lockstep-" + secrets.token_hex(16).encode()  # in no file system
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(name)
            listener.listen(_BACKLOG)
            self._listeners.append(listener)
        elif host is None:
            host = "127.0.0.1"
        if host is not None:
            try:
                self._listeners.append(socket.create_server((host, 0), backlog=_BACKLOG))
                port = self._listeners[-1].getsockname()[1]
            except OSError as error:
                _logger.warning("a worker cannot listen on %s, the address of its node: %s", host, error)
        for listener in (*self._listeners, self._woken):
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)
        threading.Thread(target=self._listen, name="lockstep-listener", daemon=True).start()
        return Address(host or "", port, name)

    def shut(self) -> None:
        """Stop listening. May be called from any thread."""
        self._is_shut = True
        with suppress(OSError):
            self._wakes.send(b"x")
        self._wakes.close()

    def _listen(self) -> None:
        while not self._is_shut:
            try:
                self._take_turn()
            except MemoryError:
                sleep(_PAUSE)
        while self._strangers:
            self._send_oldest_away()
        for sock in (*self._listeners, self._woken):
            sock.close()
        self._selector.close()

    def _take_turn(self) -> None:
        """Wait for somebody, and hear those at the door before others come in."""
        ready: set[Any] = {key.fileobj for key, _ in self._selector.select(self._time_left())}
        for sock in ready & self._strangers.keys():
            self._hear(sock)
        for listener in ready.intersection(self._listeners):
            self._accept(listener)
        while self._time_left() == 0:
            self._send_oldest_away()

    def _time_left(self) -> float | None:
        """Return the seconds until the time of the oldest stranger is up; None if nobody is at the door."""
        oldest = next(iter(self._strangers.values()), None)
        return None if oldest is None else max(0.0, oldest.deadline - monotonic())

    def _accept(self, listener: socket.socket) -> None:
        """Accept one of those that wait."""
        try:
            sock, _address = listener.accept()
        except OSError as error:  # it is gone, or there is no room
            if error.errno in _NO_ROOM and not self._send_oldest_away():
                sleep(_PAUSE)
        else:
            self._greet(sock)

    def _greet(self, sock: socket.socket) -> None:
        try:
            if not _is_of_this_user(sock):
                raise PermissionError("the peer is another user")
            sock.setblocking(False)
            prepare(sock, patience=_UNTAKEN_TIMEOUT)
            if len(self._strangers) == _MOST_AT_THE_DOOR:
                self._send_oldest_away()
            stranger = _Stranger(sock, self._key)
            self._selector.register(sock, selectors.EVENT_READ)
        except Exception:  # whatever it is, the others do not suffer from it
            sock.close()
        else:
            self._strangers[sock] = stranger

    def _hear(self, sock: socket.socket) -> None:
        """Go on with the handshake of a stranger."""
        try:
            session = self._strangers[sock].hear()
        except BlockingIOError:
            return
        except Exception:  # it is gone, does not know the key, or something else: the others do not suffer from it
            self._send_away(sock)
            return
        if session is not None:
            self._forget(sock)
            sock.setblocking(True)
            self._let_in(sock, session)

    def _send_oldest_away(self) -> bool:
        """Close the oldest connection at the door; return whether there was one."""
        oldest = next(iter(self._strangers), None)
        if oldest is not None:
            self._send_away(oldest)
        return oldest is not None

    def _send_away(self, sock: socket.socket) -> None:
        self._forget(sock)
        hang_up(sock)

    def _forget(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        del self._strangers[sock]


class _Stranger:
    """A connection in its handshake.

    Attributes:
        deadline: When its time is up, as from `monotonic`.
    """

    def __init__(self, sock: socket.socket, key: bytes) -> None:
        self.deadline = monotonic() + _HANDSHAKE_TIMEOUT
        self._sock = sock
        self._steps = handshake(key, SERVE)
        message, self._missing = next(self._steps)
        self._received = b""
        sock.send(message)

    def hear(self) -> Session | None:
        """Read what has arrived and answer; return the session at the end of the handshake.

        Raises:
            BlockingIOError: Nothing has arrived.
            OSError: The connection is lost, or the peer does not know the key.
        """
        part = self._sock.recv(self._missing)
        if not part:
            raise ConnectionError("the peer closed the connection")
        self._received += part
        self._missing -= len(part)
        while not self._missing:
            try:
                message, self._missing = self._steps.send(self._received)
            except StopIteration as end:
                session: Session = end.value
                return session
            self._received = b""
            if message:
                self._sock.send(message)
        return None


def _is_of_this_user(sock: socket.socket) -> bool:
    """Return whether the peer may come to the door: over a Unix socket, only a process of the same user."""
    if sock.family != socket.AF_UNIX:
        return True
    _, user, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return bool(user == os.geteuid())
