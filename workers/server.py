"""Server: the end of the connection at which a worker answers its driver."""

from __future__ import annotations

import secrets
import select
import socket
import sys
from collections.abc import Callable
from typing import Any

from workers.channel import Address, Channel, Message, UnreadableError, authenticate, prepare
from workers.messages import dump_reply, load_request
from workers.segment import Segment, attach
from workers.service import Reply, Service

__all__ = ["Server"]

_HANDSHAKE_TIMEOUT = 10.0
_LOOK_INTERVAL = 1.0
"""Seconds after which a server that waits for a connection looks whether it is still wanted."""


class Server:
    """Answers the requests of the one driver that knows its key, over one connection at a time.

    A driver that has lost its connection comes again, and sends what was not answered once more.
    """

    def __init__(self, service: Service, dumps: Callable[[Any], bytes]) -> None:
        """Wait to be opened.

        Args:
            service: What does the requests.
            dumps: Pickles what is no array; see `Channel`.
        """
        self._service = service
        self._dumps = dumps
        self._listeners: list[socket.socket] = []
        self._is_shut = False
        self._key = b""
        self._segment: Segment | None = None

    def open(self, host: str, key: bytes) -> Address:
        """Listen on a free port of `host`, and on a name of this machine where there are such.

        Raises:
            OSError: It cannot be listened there.
        """
        self._key = key
        self._listeners.append(socket.create_server((host, 0), backlog=8))
        port: int = self._listeners[0].getsockname()[1]
        name = b""
        if sys.platform == "linux":  # names that are in no file system
            name = b"\0lockstep-" + secrets.token_hex(16).encode()
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(name)
            listener.listen(8)
            self._listeners.append(listener)
        return Address(host, port, name)

    def shut(self) -> None:
        """Listen no more: `serve` returns when the driver has hung up. May be called from another thread."""
        self._is_shut = True

    def serve(self) -> None:
        """Answer requests until `shut`; all are done on the thread that calls this."""
        while (sock := self._accept()) is not None:
            with sock:
                try:
                    self._answer(Channel(sock, self._dumps))
                except (OSError, EOFError):
                    continue  # the driver comes again, or has gone for good, and this process with it

    def _accept(self) -> socket.socket | None:
        assert self._listeners, "open() comes first"
        while not self._is_shut:
            ready, _, _ = select.select(self._listeners, [], [], _LOOK_INTERVAL)
            if not ready:
                continue
            sock, _ = ready[0].accept()
            try:
                prepare(sock, timeout=_HANDSHAKE_TIMEOUT)
                authenticate(sock, self._key, as_worker=True)
                return sock
            except OSError:
                sock.close()
        for listener in self._listeners:
            listener.close()
        return None

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
