"""Server: the end of the connection at which a worker answers its driver."""

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
"""Connections of which it is not known yet whose they are."""

_LOOK_INTERVAL = 1.0
"""Seconds after which a server that waits for connections looks whether it is still wanted."""

_PAUSE = 0.1


class Server:
    """Answers the requests of the one driver that knows its key, over one connection at a time.

    A driver that has lost its connection comes again, and sends what was not answered once more; the new connection
    takes the place of the old one. Who comes is let in by threads beside the one that does the requests, so that
    neither a long request nor a stranger who says nothing keeps the driver out.
    """

    def __init__(self, service: Service, dumps: Callable[[Any], bytes]) -> None:
        """Wait to be opened.

        Args:
            service: What does the requests.
            dumps: Pickles what is no array; see `Channel`.
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
        """Listen on a free port of `host`, and on a name of this machine where there are such.

        Raises:
            OSError: It cannot be listened there.
        """
        self._key = key
        listeners = [socket.create_server((host, 0))]
        port: int = listeners[0].getsockname()[1]
        name = b""
        if sys.platform == "linux":  # names that are in no file system
            name = b"\0lockstep-" + secrets.token_hex(16).encode()
            listeners.append(socket.socket(socket.AF_UNIX))
            listeners[1].bind(name)
            listeners[1].listen()
        for listener in listeners:
            listener.setblocking(False)
        threading.Thread(target=self._listen, args=(listeners,), daemon=True).start()
        return Address(host, port, name)

    def shut(self) -> None:
        """Listen no more: `serve` returns when the driver has hung up. May be called from another thread."""
        self._shut.set()

    def serve(self) -> None:
        """Answer requests until `shut`; all are done on the thread that calls this."""
        while (sock := self._let_in.get()) is not None:
            channel = Channel(sock, self._dumps)
            try:
                self._answer(channel)
            except (OSError, EOFError):
                channel.close()  # the driver comes again, or has gone for good, and this process with it

    def _listen(self, listeners: list[socket.socket]) -> None:
        while not self._shut.is_set():
            for listener in select.select(listeners, [], [], _LOOK_INTERVAL)[0]:
                try:
                    sock, _ = listener.accept()
                except OSError:  # gone again, or there are no files left
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
        """Let a driver in that knows the key."""
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
                assert message is not None, "it waits as long as it takes"
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
