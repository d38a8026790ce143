"""Server: the worker's end of the connections to its driver."""

from __future__ import annotations

import logging
import queue
import socket
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from workers.errors import ends_process
from workers.remote.channel import Channel, Message, UnreadableError
from workers.remote.control import answer_control
from workers.remote.dialing import Address
from workers.remote.handshake import CONTROL, WORK, Session
from workers.remote.layout import DamagedError
from workers.remote.listener import Listener
from workers.remote.messages import dump_reply, load_request
from workers.remote.replies import Reply
from workers.remote.segment import Segment, attach
from workers.remote.service import Service
from workers.remote.sockets import hang_up

__all__ = ["Server"]

_logger = logging.getLogger("lockstep")

_Arrival = tuple[socket.socket, Session]


class Server:
    """The server of the one driver that knows its key, over one connection for requests and one for control.

    A driver that loses a connection makes a new one, which replaces the old, and resends unanswered requests. The
    listener has a thread of its own, so neither a long request nor strangers keep the driver out; see `Listener`.
    Another thread answers control, also during a request. No thread is started later.
    """

    def __init__(self, service: Service, dumps: Callable[[Any], bytes]) -> None:
        """Create a server that does not listen yet.

        Args:
            service: Handles the requests.
            dumps: Pickles layouts; see `Channel`.
        """
        self._service = service
        self._dumps = dumps
        self._segment: Segment | None = None
        self._current: dict[bytes, socket.socket] = {}
        self._let_in: dict[bytes, queue.SimpleQueue[_Arrival | None]] = {
            role: queue.SimpleQueue() for role in (WORK, CONTROL)
        }
        self._listener: Listener | None = None
        self._lock = threading.Lock()  # nobody is let in after `shut`
        self._is_shut = False

    def open(self, host: str | None, key: bytes) -> Address:
        """Listen for the driver that knows the key.

        Args:
            host: Address of this machine for a driver on another one; None if there is none. See `Listener.open`.
            key: The secret.
        """
        self._listener = Listener(key, self._take_over)
        address = self._listener.open(host)
        threading.Thread(target=self._control, name="lockstep-control", daemon=True).start()
        return address

    def shut(self) -> None:
        """Stop listening; `serve` returns when the driver disconnects. May be called from another thread."""
        if self._listener is not None:
            self._listener.shut()
        with self._lock:
            self._is_shut = True
            for arrivals in self._let_in.values():
                arrivals.put(None)

    def _take_over(self, sock: socket.socket, session: Session) -> None:
        """Let a new connection replace the one with the same role."""
        arrivals = self._let_in[session.role]
        with self._lock:
            if self._is_shut:
                hang_up(sock)
                return
            with suppress(queue.Empty):  # one that was not served yet is replaced, too
                while (arrival := arrivals.get_nowait()) is not None:
                    hang_up(arrival[0])
            arrivals.put((sock, session))
        before = self._current.get(session.role)
        self._current[session.role] = sock
        if before is not None:
            with suppress(OSError):
                before.shutdown(socket.SHUT_RDWR)

    def serve(self) -> None:
        """Answer requests until `shut`, all on the calling thread."""
        while (arrival := self._let_in[WORK].get()) is not None:
            sock, session = arrival
            try:
                self._answer(Channel(sock, session, self._dumps, ends=ends_process))
            except BaseException as error:
                if ends_process(error):
                    raise
                if isinstance(error, DamagedError):
                    _logger.warning("%s; the driver connects again", error)
                elif not _is_lost(error):
                    self._service.interrupt(error)
                # the driver connects again, or is gone and this process ends with it
            finally:
                hang_up(sock)

    def _control(self) -> None:
        """Answer control, over one connection after the other."""
        while (arrival := self._let_in[CONTROL].get()) is not None:
            sock, session = arrival
            try:
                answer_control(Channel(sock, session, self._dumps), self._service)
            except BaseException as error:  # what is unpickled may raise anything
                if not isinstance(error, (OSError, EOFError)) or isinstance(error, DamagedError):
                    _logger.warning("%s; the driver connects again", error)
            finally:
                hang_up(sock)

    def _answer(self, channel: Channel) -> None:
        while True:
            try:
                message = channel.receive()
                assert message is not None, "receive() without a timeout returns a message"
                reply = self._do(message)
            except UnreadableError as error:
                reply = self._service.refuse(error.seq, "request", error)
            channel.write(self._encode(channel, reply))

    def _encode(self, channel: Channel, reply: Reply) -> tuple[bytes, Any]:
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
            if offer is not None:
                self._segment = attach(offer)
            into = None if self._segment is None or slot < 0 else self._segment.slot(slot)
        except BaseException as error:
            if ends_process(error):
                raise
            return self._service.refuse(seq, "request", error)
        return self._service.handle(seq, method, args if packed is None else (*args, packed), ack=ack, into=into)


def _is_lost(error: BaseException) -> bool:
    """Return whether the connection was lost: a signal handler may raise the same exceptions."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, (OSError, EOFError)) and frames[-1].f_globals["__name__"].startswith("workers.remote.")
