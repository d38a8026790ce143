"""Server: the worker's end of the connection to its driver."""

from __future__ import annotations

import queue
import secrets
import select
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from workers.remote.channel import Address, Channel, Message, UnreadableError, authenticate, prepare
from workers.remote.messages import dump_reply, load_request
from workers.remote.segment import Segment, attach
from workers.remote.service import Reply, Service

__all__ = ["Server"]

_HANDSHAKE_TIMEOUT = 10.0
_MOST_AT_THE_DOOR = 64
"""Maximum number of connections that are not authenticated yet."""

_LOOK_INTERVAL = 1.0
"""Seconds after which a listening server checks whether it was shut."""

_PAUSE = 0.1


class Server:
    """The server of the one driver that knows its key, over one connection at a time.

    A driver that loses its connection reconnects and resends unanswered requests; the new connection replaces the old.
    Separate threads authenticate new connections, so neither a long request nor a silent stranger keeps the driver out.
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
        self._current: socket.socket | None = None
        self._let_in: queue.SimpleQueue[socket.socket | None] = queue.SimpleQueue()
        self._at_the_door = threading.BoundedSemaphore(_MOST_AT_THE_DOOR)

    def open(self, host: str, key: bytes) -> Address:
        """Listen on a free port of `host`, and on a Unix socket of this machine on Linux.

        Raises:
            OSError: The server cannot listen there.
        """
        self._key = key
        listeners = [socket.create_server((host, 0))]
        port: int = listeners[0].getsockname()[1]
        name = b""
        if sys.platform == "linux":  # abstract names, which are in no file system
            name = b"\0lockstep-" + secrets.token_hex(16).encode()
            listeners.append(socket.socket(socket.AF_UNIX))
            listeners[1].bind(name)
            listeners[1].listen()
        for listener in listeners:
            listener.setblocking(False)
        threading.Thread(target=self._listen, args=(listeners,), daemon=True).start()
        return Address(host, port, name)

    def shut(self) -> None:
        """Stop listening; `serve` returns when the driver disconnects. May be called from another thread."""
        self._shut.set()

    def serve(self) -> None:
        """Answer requests until `shut`, all on the calling thread."""
        while (sock := self._let_in.get()) is not None:
            channel = Channel(sock, self._dumps)
            try:
                self._answer(channel)
            except (OSError, EOFError):
                channel.close()  # the driver reconnects, or is gone and this process ends with it

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
        except OSError:
            sock.close()
            return
        finally:
            self._at_the_door.release()
        with self._lock:
            before, self._current = self._current, sock
            self._let_in.put(sock)
        if before is not None:
            with suppress(OSError):
                before.shutdown(socket.SHUT_RDWR)

    def _answer(self, channel: Channel) -> None:
        while True:
            try:
                message = channel.receive()
                assert message is not None, "receive() without a timeout returns a message"
                reply = self._do(message)
            except UnreadableError as error:
                reply = self._service.refuse(error.seq, "request", error)
            try:
                channel.send(reply.seq, *dump_reply(reply))
            except OSError:
                raise
            except Exception as error:
                reply = self._service.refuse(reply.seq, "reply", error)
                channel.send(reply.seq, *dump_reply(reply))

    def _do(self, message: Message) -> Reply:
        seq, ack, slot, plain, packed = message
        try:
            method, args, offer = load_request(plain)
        except Exception as error:
            return self._service.refuse(seq, "request", error)
        if offer is not None:
            self._segment = attach(offer)
        into = None if self._segment is None or slot < 0 else self._segment.slot(slot)
        return self._service.handle(seq, method, args if packed is None else (*args, packed), ack=ack, into=into)
