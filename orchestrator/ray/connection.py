"""Authenticated connections that carry the requests to the workers."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from time import monotonic
from typing import Any, NamedTuple

from orchestrator.ray.cluster import Cluster
from orchestrator.ray.outage import Outage
from orchestrator.ray.requests import PING_TIMEOUT, Door, NoReplyError, Request, unreadable
from orchestrator.ray.shm import Place, ReplyMemory
from orchestrator.ray.transport import Streams
from workers.errors import ends_program
from workers.remote.actor import dumps_by_value
from workers.remote.channel import Channel, Message, UnreadableError
from workers.remote.control import Controls
from workers.remote.dialing import Address, dial, dial_in_background
from workers.remote.handshake import WORK, Session
from workers.remote.layout import DamagedError
from workers.remote.messages import dump_request, load_reply
from workers.remote.replies import Busy, Reply
from workers.remote.sockets import hang_up
from workers.remote.wire import Packed
from workers.types import Scope

__all__ = ["Connections"]

_CONNECT_TIMEOUT = 10.0
_ATTEMPT = 2.0
"""Seconds for one attempt to reach the machine again: the system soon sends lost packets only every few seconds."""


class _Sent(NamedTuple):
    """An unanswered request, kept so that it can be sent again over another connection."""

    seq: int
    plain: bytes
    packed: Packed | None
    ack: int
    place: Place


class Link:
    """The request stream to one worker, which reconnects after a lost connection."""

    def __init__(
        self, address: Address, key: bytes, *, scope: int = 0, sign_arrays: bool = False, node_timeout: float = 30.0
    ) -> None:
        """Connect to the worker.

        Args:
            address: Where the worker listens.
            key: Secret that only this worker knows.
            scope: Index of its scope, for the log.
            sign_arrays: Whether the data of arrays are signed, too.
            node_timeout: Seconds for which a machine that does not answer is waited for.

        Raises:
            OSError: The worker cannot be connected to, or does not know the key.
        """
        self._address, self._key, self._sign_arrays = address, key, sign_arrays
        self._outage = Outage(f"scope {scope} on {address.host}", node_timeout)
        self._dialing: Future[tuple[socket.socket, Session]] | None = None
        self._connected_at = 0.0
        self._unanswered: deque[_Sent] = deque()
        self._asked: deque[int] = deque()  # the numbers of the replies that this connection brings next
        self._early: dict[int, tuple[Reply | NoReplyError, Place]] = {}  # replies not yet asked for
        self._channel: Channel | None = None
        sock, session = dial(address, key, WORK, timeout=_CONNECT_TIMEOUT, signs_arrays=sign_arrays)
        self._memory = ReplyMemory(usable=sock.family == socket.AF_UNIX)
        self._use(sock, session)

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
        """Send a request. If it does not arrive, `receive` sends it again.

        Args:
            seq: Number of the request.
            method: Method of `workers.remote.service.Service`.
            args: Its arguments, except arrays.
            packed: Its arrays.
            ack: Requests before this one will not be sent again.
            plain: Result of `dump_request` for method and arguments, if already known.

        Raises:
            Exception: The request cannot be pickled.
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
            encoded = self._encode(sent)
        except BaseException:
            self._unanswered.pop()
            raise
        try:
            self._write(seq, encoded)
        except OSError:
            self.hang_up()
        except BaseException:
            self.hang_up()  # a partly sent message cannot be continued
            raise
        if offer is not None:
            self._memory.was_offered()

    def receive(self, seq: int, timeout: float) -> Reply | None:
        """Return the reply to a request, or None if it does not arrive in time. Other replies are kept until asked for.

        Raises:
            NoReplyError: The reply cannot be read.
            UnreachableError: The worker is gone, or can no longer be connected to.
        """
        deadline = monotonic() + timeout
        while seq not in self._early:
            try:
                if self._channel is None and not self._reconnect(max(0.0, deadline - monotonic())):
                    return None
                if not self._receive_next(timeout):
                    return None
            except (OSError, EOFError) as error:
                self._lose(error)
                if monotonic() >= deadline:
                    return None
            except BaseException:
                self.hang_up()
                raise
        reply, _ = self._early.pop(seq)
        if isinstance(reply, NoReplyError):
            raise reply
        return reply

    def _receive_next(self, timeout: float) -> bool:
        """Keep the next reply until it is asked for; return whether one arrived in time."""
        assert self._channel is not None
        message: Message | UnreadableError | None
        try:
            message = self._channel.receive(timeout)
        except UnreadableError as error:
            message = error
        if message is None:
            return False
        place = self._answered(message.seq)
        if place is not None:
            self._early[message.seq] = self._read(message, place), place
        return True

    @property
    def is_cut_off(self) -> bool:
        """Whether nothing comes from the worker's machine, for which `receive` waits until it gives it up."""
        return self._channel is None and self._outage.is_silent

    def serve_by(self, actor: Any) -> None:
        """Let the worker serve, in its actor, which it occupies for good."""
        self._outage.watch(actor, actor.serve.remote())

    def abandon(self) -> None:
        """Stop waiting for any reply."""
        self._unanswered.clear()
        self._early.clear()

    def hang_up(self) -> None:
        """Close the connection; a new one is made when needed."""
        self._asked.clear()
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def close(self) -> None:
        """Close the connection for good."""
        self.abandon()
        self.hang_up()
        dialing, self._dialing = self._dialing, None
        if dialing is not None:
            dialing.add_done_callback(_hang_up)
        self._memory = ReplyMemory(usable=False)

    def _use(self, sock: socket.socket, session: Session) -> None:
        """Use a connection from now on."""
        self._channel = Channel(sock, session, dumps_by_value)
        self._connected_at = monotonic()

    def _lose(self, error: Exception) -> None:
        """Hang up after an error.

        Raises:
            UnreachableError: The worker is gone, or nothing has been received for long.
        """
        lasted = 0.0 if self._channel is None else monotonic() - self._connected_at
        self.hang_up()
        self._outage.go_on(error, lasted)

    def _reconnect(self, timeout: float) -> bool:
        """Connect again and resend unanswered requests, of which the worker handles none twice.

        Returns:
            Whether it is done; else, it goes on.

        Raises:
            OSError: This attempt has failed.
            UnreachableError: Ray says that the worker is dead.
        """
        if self._dialing is None:
            pause, signs = self._outage.pause, self._sign_arrays
            self._dialing = dial_in_background(
                self._address, self._key, WORK, timeout=_ATTEMPT, pause=pause, signs_arrays=signs
            )
        try:
            error = self._dialing.exception(timeout)
        except TimeoutError:
            self._outage.ask_ray()
            return False
        dialed, self._dialing = self._dialing, None
        if error is not None:
            raise error
        self._use(*dialed.result())
        self._outage.connected()
        for sent in self._unanswered:
            self._write(sent.seq, self._encode(sent))
        return True

    def _encode(self, sent: _Sent) -> tuple[bytes, Any] | None:
        if self._channel is None:
            return None
        return self._channel.encode(sent.seq, sent.plain, sent.packed, ack=sent.ack, slot=sent.place.slot)

    def _write(self, seq: int, encoded: tuple[bytes, Any] | None) -> None:
        if self._channel is not None and encoded is not None:
            self._channel.write(encoded)
            self._asked.append(seq)

    def _read(self, message: Message | UnreadableError, place: Place) -> Reply | NoReplyError:
        """Return the reply with its data."""
        if isinstance(message, UnreadableError):
            return unreadable(message)
        try:
            packed = None if message.packed is None else self._memory.read(message.packed, place)
            return load_reply(message.seq, message.plain, packed)
        except BaseException as error:  # the classes are the user's
            if ends_program(error):
                raise
            return unreadable(error)

    def _answered(self, seq: int) -> Place | None:
        """Remove a request from the unanswered ones and return its place; None if it was abandoned.

        Raises:
            DamagedError: This is not the request whose reply comes next.
        """
        if not self._asked or self._asked.popleft() != seq:
            raise DamagedError(f"a worker replies to request {seq}, which is not the next one")
        self._outage.end()
        if self._unanswered and self._unanswered[0].seq == seq:
            return self._unanswered.popleft().place
        return None


def _hang_up(dialed: Future[tuple[socket.socket, Session]]) -> None:
    """Close a connection that nobody waits for any more."""
    if dialed.exception() is None:
        hang_up(dialed.result()[0])


class Connections(Streams):
    """Request streams over an authenticated connection to each worker."""

    transport = "connection"

    def __init__(
        self,
        cluster: Cluster,
        actors: Sequence[Any],
        scopes: Sequence[Scope],
        doors: Sequence[Door],
        *,
        sign_arrays: bool = False,
        node_timeout: float = 30.0,
    ) -> None:
        """Connect to the workers, then let them serve, which occupies them for good.

        Args:
            cluster: The cluster in which the actors live.
            actors: The actors.
            scopes: Their scopes.
            doors: How they can be connected to.
            sign_arrays: Whether the data of arrays are signed, too.
            node_timeout: Seconds for which a machine that does not answer is waited for.

        Raises:
            OSError: A worker cannot be connected to; no worker serves.
        """
        super().__init__(cluster, actors, scopes)
        self._sign_arrays, self._node_timeout = sign_arrays, node_timeout
        self._plain: tuple[int, bytes] = (0, b"")
        self._links: list[Link] = []
        self._controls = Controls({index: (address, key) for index, (address, key, _) in enumerate(doors)})
        try:
            for index, door in enumerate(doors):
                self._links.append(self._link(index, door))
        except BaseException:
            self.close()
            raise
        for link, actor in zip(self._links, actors, strict=True):
            link.serve_by(actor)

    def _link(self, index: int, door: Door) -> Link:
        scope = self._scopes[index].index
        return Link(door.address, door.key, scope=scope, sign_arrays=self._sign_arrays, node_timeout=self._node_timeout)

    def _reach(self, index: int, actor: Any, door: Door) -> None:
        self._links[index].close()
        self._controls.replace(index, door.address, door.key)
        self._links[index] = self._link(index, door)
        self._links[index].serve_by(actor)

    def _send(self, index: int, number: int, request: Request, ack: int) -> None:
        seq, method, common, each = request
        last, link = None if each is None else each[index], self._links[index]
        if last is None or isinstance(last, Packed):
            if self._plain[0] != seq:  # once for all workers
                self._plain = seq, dump_request(method, common)
            link.send(number, method, common, last, ack=ack, plain=self._plain[1])
        else:
            link.send(number, method, (*common, last), ack=ack)

    def _receive(self, index: int, number: int, timeout: float) -> Reply | None:
        return self._links[index].receive(number, timeout)

    def _is_cut_off(self, index: int) -> bool:
        return self._links[index].is_cut_off

    def _ping(self, indices: Sequence[int]) -> Mapping[int, Busy | None]:
        return self._controls.ping(indices, PING_TIMEOUT)

    def _halt(self, numbers: Mapping[int, int]) -> None:
        self._controls.halt(numbers)

    def abandon(self) -> None:
        """Stop waiting for any reply."""
        super().abandon()
        for link in self._links:
            link.abandon()

    def close(self) -> None:
        """Close the connections and release the shared memory."""
        for link in self._links:
            link.close()
        self._controls.close()
