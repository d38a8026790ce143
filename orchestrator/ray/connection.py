"""Authenticated connections that carry the requests to the workers."""

from __future__ import annotations

import secrets
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import ray
from ray import cloudpickle

from orchestrator.ray.shm import Place, ReplyMemory
from orchestrator.ray.transport import NoReplyError, Request, Streams, UnreachableError, cause_of_death
from workers.remote.channel import Address, Channel, Message, UnreadableError, authenticate, prepare
from workers.remote.messages import dump_request, load_reply
from workers.remote.service import Reply
from workers.remote.wire import Packed
from workers.types import Scope

__all__ = ["Connections"]

_CONNECT_TIMEOUT = 10.0
_STALL_TIMEOUT = 60.0
"""Seconds for which a worker may stop in the middle of a message."""

_DEATH_TIMEOUT = 5.0
"""Seconds in which Ray should know of a death."""

_ATTEMPTS = 3
"""Connections in a row that may be lost before anything came over them."""


class _Sent(NamedTuple):
    """A request that has not been answered: what has to be sent again over another connection."""

    seq: int
    plain: bytes
    packed: Packed | None
    ack: int
    place: Place


class Link:
    """The stream to one worker, over one connection after another if need be."""

    def __init__(self, address: Address, key: bytes, serving: Any) -> None:
        """Connect.

        Args:
            address: Where the worker listens.
            key: What it knows, and nobody else.
            serving: Ray's reference to the call in which it serves.

        Raises:
            OSError: It cannot be connected to, or does not know the key.
        """
        self._address, self._key = address, key
        self._serving = serving
        self._attempts = 0
        self._unanswered: deque[_Sent] = deque()
        self._early: dict[int, tuple[Reply | NoReplyError, Place]] = {}  # replies that have not been asked for yet
        self._channel: Channel | None = None
        self._memory = ReplyMemory(usable=self._connect())

    def send(
        self,
        seq: int,
        method: str,
        args: tuple[Any, ...],
        packed: Packed | None = None,
        *,
        ack: int,
        plain: bytes = b"",
    ) -> None:
        """Send a request; one that does not arrive is sent again when its reply is waited for.

        Args:
            seq: Its number.
            method: Method of `workers.remote.service.Service`.
            args: Its arguments, but for arrays.
            packed: Its arrays.
            ack: Requests before this one will not be sent again.
            plain: What `dump_request` makes of method and arguments, if it is known already.

        Raises:
            Exception: It cannot be pickled.
        """
        for old in [number for number in self._early if number < ack]:
            del self._early[old]
        in_use = [sent.place for sent in self._unanswered] + [place for _, place in self._early.values()]
        place = self._memory.place(in_use)
        offer = self._memory.offer
        if offer is not None or not plain:
            plain = dump_request(method, args, offer)
        sent = _Sent(seq, plain, packed, ack, place)
        self._unanswered.append(sent)
        try:
            self._transmit(sent)
        except OSError:
            self.hang_up()
        except Exception:
            self._unanswered.pop()
            raise
        except BaseException:
            self.hang_up()  # what was sent by half cannot be gone on from
            raise
        if offer is not None:
            self._memory.was_offered()

    def receive(self, seq: int, timeout: float) -> Reply | None:
        """The reply to a request, None if it does not come in time; earlier ones are kept until they are asked for.

        Raises:
            NoReplyError: The reply cannot be read.
            UnreachableError: The worker is gone, or cannot be connected to any more.
        """
        while seq not in self._early:
            try:
                if self._channel is None:
                    self._reconnect()
                assert self._channel is not None
                message = self._channel.receive(timeout)
                if message is None:
                    return None
                self._attempts = 0
                place = self._answered(message.seq)
                if place is not None:
                    self._early[message.seq] = self._read(message, place), place
            except (OSError, EOFError):
                self.hang_up()
            except UnreadableError as error:
                place = self._answered(error.seq)
                if place is not None:
                    self._early[error.seq] = _unreadable(error), place
            except BaseException:
                self.hang_up()
                raise
        reply, _ = self._early.pop(seq)
        if isinstance(reply, NoReplyError):
            raise reply
        return reply

    def abandon(self) -> None:
        """Wait for nothing any more."""
        self._unanswered.clear()
        self._early.clear()

    def hang_up(self) -> None:
        """Close the connection; another is made when it is needed."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def close(self) -> None:
        """Hang up for good."""
        self.abandon()
        self.hang_up()
        self._memory = ReplyMemory(usable=False)

    def _connect(self) -> bool:
        """Make a connection; whether the worker is on this machine."""
        sock = self._socket()
        try:
            prepare(sock, timeout=_CONNECT_TIMEOUT)
            authenticate(sock, self._key, as_worker=False)
            self._channel = Channel(sock, cloudpickle.dumps, stall_timeout=_STALL_TIMEOUT)
        except BaseException:
            sock.close()
            raise
        return sock.family == socket.AF_UNIX

    def _socket(self) -> socket.socket:
        """A connected socket: a Unix one on the worker's machine, which takes half the time."""
        host, port, name = self._address
        if name:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.settimeout(_CONNECT_TIMEOUT)
                sock.connect(name)
                return sock
            except OSError:  # another machine, where nobody has this name
                sock.close()
        return socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT)

    def _reconnect(self) -> None:
        """Connect again, and send again what was not answered: the worker does nothing twice."""
        self._attempts += 1
        try:
            if self._attempts > _ATTEMPTS:
                raise ConnectionError(f"it was lost {_ATTEMPTS} times in a row")
            self._connect()
        except OSError as error:
            death = cause_of_death(self._serving, _DEATH_TIMEOUT) if ray.is_initialized() else "Ray was shut down"
            if death is not None:
                raise UnreachableError("WorkerDied", death) from error
            raise UnreachableError(
                "ConnectionLost", f"the connection was lost, and cannot be made again: {error}"
            ) from error
        for sent in self._unanswered:
            self._transmit(sent)

    def _transmit(self, sent: _Sent) -> None:
        if self._channel is not None:
            self._channel.send(sent.seq, sent.plain, sent.packed, ack=sent.ack, slot=sent.place.slot)

    def _read(self, message: Message, place: Place) -> Reply | NoReplyError:
        """The reply, with its data."""
        packed = message.packed
        if packed is not None:
            packed = self._memory.read(packed, place)
        try:
            return load_reply(message.seq, message.plain, packed)
        except Exception as error:
            return _unreadable(error)

    def _answered(self, seq: int) -> Place | None:
        """Take the request out of those that wait; None if it does not."""
        while self._unanswered and self._unanswered[0].seq < seq:
            self._unanswered.popleft()
        if self._unanswered and self._unanswered[0].seq == seq:
            return self._unanswered.popleft().place
        return None


def _unreadable(error: Exception) -> NoReplyError:
    return NoReplyError("UnreadableError", f"the reply cannot be unpickled: {type(error).__name__}: {error}")


class Connections(Streams):
    """A connection to each worker."""

    def __init__(self, actors: Sequence[Any], scopes: Sequence[Scope], *, timeout: float) -> None:
        """Let the workers listen, and connect to them.

        Args:
            actors: The actors.
            scopes: Their scopes.
            timeout: Time for the actors to start, in seconds.

        Raises:
            OSError: One cannot be connected to.
            RayError: One did not start.
        """
        super().__init__(actors, scopes)
        self._plain: tuple[int, bytes] = (0, b"")
        self._links: list[Link] = []
        keys = [secrets.token_bytes(32) for _ in actors]
        opened = [actor.open.remote(key) for actor, key in zip(actors, keys, strict=True)]
        try:
            addresses = ray.get(opened, timeout=timeout)
            serving = [actor.serve.remote() for actor in actors]
            for address, key, ref in zip(addresses, keys, serving, strict=True):
                self._links.append(Link(address, key, ref))
        except BaseException:
            self.close()
            for actor in actors:
                actor.shut.remote()
            raise

    def _send(self, index: int, request: Request, ack: int) -> None:
        seq, method, common, each = request
        last, link = None if each is None else each[index], self._links[index]
        if last is None or isinstance(last, Packed):
            if self._plain[0] != seq:  # once for all workers
                self._plain = seq, dump_request(method, common)
            link.send(seq, method, common, last, ack=ack, plain=self._plain[1])
        else:
            link.send(seq, method, (*common, last), ack=ack)

    def _receive(self, index: int, seq: int, timeout: float) -> Reply | None:
        return self._links[index].receive(seq, timeout)

    def abandon(self) -> None:
        """Wait for nothing any more."""
        super().abandon()
        for link in self._links:
            link.abandon()

    def close(self) -> None:
        """Hang up, and give the shared memory back."""
        for link in self._links:
            link.close()
