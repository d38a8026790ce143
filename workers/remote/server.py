"""Server: the worker's end of the connections to its driver."""

from __future__ import annotations

import logging
import queue
import secrets
import select
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from workers.errors import ends_process
from workers.remote.channel import CONTROL, WORK, Address, Channel, Message, UnreadableError, authenticate, prepare
from workers.remote.control import answer_control
from workers.remote.messages import dump_reply, load_request
from workers.remote.segment import Segment, attach
from workers.remote.service import Reply, Service

__all__ = ["Server"]

_logger = logging.getLogger("lockstep")

_HANDSHAKE_TIMEOUT = 10.0
_MOST_AT_THE_DOOR = 64
"""Maximum number of connections that are not authenticated yet."""

_LOOK_INTERVAL = 1.0
"""Seconds after which a listening server checks whether it was shut."""

_PAUSE = 0.1


class Server:
    """The server of the one driver that knows its key, over one connection for requests and one for control.

    A driver that loses a connection makes a new one, which replaces the old, and resends unanswered requests. Separate
    threads authenticate new connections, so neither a long request nor a silent stranger keeps the driver out. Control
    is answered on such a thread, also during a request.
    """

    def __init__(self, service: Service, dumps: Callable[[Any], bytes]) -> None:
        """Create a server that does not listen yet.

        Args:
            service: Handles the requests.
            dumps: Pickles layouts; see `Channel`.
        """
        self._service = service
        self._dumps = dumps
        self._shut = threading.Event()
        self._key = b""
        self._segment: Segment | None = None
        self._lock = threading.Lock()
        self._current: dict[bytes, socket.socket] = {}
        self._let_in: queue.SimpleQueue[socket.socket | None] = queue.SimpleQueue()
        self._at_the_door = threading.BoundedSemaphore(_MOST_AT_THE_DOOR)

    def open(self, host: str, key: bytes) -> Address:
        """Listen on a free port of `host`, if that is possible, and on a Unix socket of this machine on Linux."""
        self._key = key
        listeners: list[socket.socket] = []
        port, name = 0, b""
        try:
            listeners.append(socket.create_server((host, 0)))
            port = listeners[0].getsockname()[1]
        except OSError as error:
            _logger.warning("a worker cannot listen on %s, the address of its node: %s", host, error)
        if sys.platform == "linux":  # abstract names, which are in no file system
            name = b"\0lockstep-" + secrets.token_hex(16).encode()
            listeners.append(socket.socket(socket.AF_UNIX))
            listeners[-1].bind(name)
            listeners[-1].listen()
        for listener in listeners:
            listener.setblocking(False)
        threading.Thread(target=self._listen, args=(listeners,), daemon=True).start()
        return Address(host, port, name)

    def shut(self) -> None:
        """Stop listening; `serve` returns when the driver disconnects. May be called from another thread."""
        self._shut.set()

    def serve(self) -> None:
        """Answer requests until `shut`, all on the calling thread."""
        while True:
            channel = None
            try:
                if (sock := self._let_in.get()) is None:
                    return
                channel = Channel(sock, self._dumps, catches=BaseException)
                self._answer(channel)
            except BaseException as error:
                if ends_process(error):
                    raise
                if not _is_lost(error):
                    self._service.interrupt(error)
                # the driver reconnects, or is gone and this process ends with it
            finally:
                if channel is not None:
                    channel.close()

    def _listen(self, listeners: list[socket.socket]) -> None:
        while not self._shut.is_set():
            for listener in select.select(listeners, [], [], _LOOK_INTERVAL)[0]:
                try:
                    sock, _ = listener.accept()
                except OSError:  # the peer is gone, or no file descriptors are left
                    self._shut.wait(_PAUSE)
                    continue
                if self._at_the_door.acquire(blocking=False):
                    threading.Thread(target=self._greet, args=(sock,), daemon=True).start()
                else:
                    sock.close()
        for listener in listeners:
            listener.close()
        self._let_in.put(None)

    def _greet(self, sock: socket.socket) -> None:
        """Admit a driver that knows the key."""
        try:
            prepare(sock, timeout=_HANDSHAKE_TIMEOUT)
            authenticate(sock, self._key, as_worker=True)
            role = sock.recv(1)
        except OSError:
            role = b""
        finally:
            self._at_the_door.release()
        if role not in (WORK, CONTROL):
            sock.close()
            return
        with self._lock:
            before, self._current[role] = self._current.get(role), sock
            if role == WORK:
                self._let_in.put(sock)
        if before is not None:
            with suppress(OSError):
                before.shutdown(socket.SHUT_RDWR)
        if role == CONTROL:
            channel = Channel(sock, self._dumps)
            with suppress(OSError, EOFError):
                answer_control(channel, self._service)
            channel.close()

    def _answer(self, channel: Channel) -> None:
        while True:
            try:
                message = channel.receive()
                assert message is not None, "receive() without a timeout returns a message"
                reply = self._do(message)
            except UnreadableError as error:
                reply = self._service.refuse(error.seq, "request", error)
            channel.write(self._encode(channel, reply))

    def _encode(self, channel: Channel, reply: Reply) -> tuple[bytes, ...]:
        try:
            return channel.encode(reply.seq, *dump_reply(reply))
        except BaseException as error:
            if ends_process(error):
                raise
            reply = self._service.refuse(reply.seq, "reply", error)
            return channel.encode(reply.seq, *dump_reply(reply))

    def _do(self, message: Message) -> Reply:
        seq, ack, slot, plain, packed = message
        try:
            method, args, offer = load_request(plain)
        except BaseException as error:
            if ends_process(error):
                raise
            return self._service.refuse(seq, "request", error)
        if offer is not None:
            self._segment = attach(offer)
        into = None if self._segment is None or slot < 0 else self._segment.slot(slot)
        return self._service.handle(seq, method, args if packed is None else (*args, packed), ack=ack, into=into)


def _is_lost(error: BaseException) -> bool:
    """Return whether the connection was lost: a signal handler may raise the same exceptions."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, (OSError, EOFError)) and frames[-1].f_globals["__name__"].startswith("workers.remote.")
