"""Ordered request streams to all workers, whatever carries them."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any, ClassVar

import ray

from orchestrator.ray.cluster import Cluster
from orchestrator.ray.requests import (
    ITERATIONS,
    Door,
    NoReplyError,
    Patience,
    Request,
    Rescue,
    UnreachableError,
    payloads,
    unreadable,
)
from workers.errors import ClusterError, Failure
from workers.remote.layout import DamagedError
from workers.remote.log import LogEntry
from workers.remote.messages import check_reply
from workers.remote.replies import Busy, Reply
from workers.types import Scope

__all__ = ["Streams"]

_logger = logging.getLogger("lockstep")

_LOOK_INTERVAL = 0.5
"""Seconds in which all workers that have not replied are looked at once."""


class Streams(ABC):
    """Numbered requests to all workers, which each worker handles in order. Every wait has a deadline.

    Several requests may be in flight. A worker that dies or does not reply in time is lost: it gets no more requests,
    and its failure replaces its replies, unless a `Rescue` rebuilds it. The requests to each worker have numbers of
    their own, which begin again with each rebuilt one.

    Attributes:
        transport: What carries the requests: ``"connection"`` or ``"ray"``, as for `RayOrchestrator`.
        unreachable: Why the workers cannot be connected to, if this is why Ray carries the requests; else empty.
        cluster: The cluster in which the workers live.
        nodes: Where each worker lives, for its failures.
        rescue: Rebuilds lost workers; None if nothing does.
        check: Raises a `ClusterError` if Ray's head node is gone; called while the replies to an iteration are late.
    """

    transport: ClassVar[str]
    unreachable = ""

    def __init__(self, cluster: Cluster, actors: Sequence[Any], scopes: Sequence[Scope]) -> None:
        self.cluster = cluster
        self.nodes = ["an unknown node"] * len(actors)
        self.rescue: Rescue | None = None
        self.check: Callable[[], None] = lambda: None
        self._actors = list(actors)
        self._scopes = scopes
        self._seq = 0
        self._numbers = [0] * len(actors)  # of the last request to each worker
        self._lost: dict[int, UnreachableError] = {}
        self._under_way: dict[int, Request] = {}
        self._sent: list[dict[int, int]] = [{} for _ in actors]  # the numbers of those under way, by worker
        self._logged: set[str] = set()

    @property
    def lost(self) -> frozenset[int]:
        """Indices of the workers that get no more requests."""
        return frozenset(self._lost)

    @abstractmethod
    def _send(self, index: int, number: int, request: Request, ack: int) -> None:
        """Send a request to one worker; errors surface when its reply is received.

        Args:
            index: The worker.
            number: Number of the request for this worker.
            request: The request.
            ack: Requests with lower numbers will not be sent again.
        """

    @abstractmethod
    def _receive(self, index: int, number: int, timeout: float) -> Reply | None:
        """Return the reply of one worker, or None if it does not arrive in time.

        Raises:
            UnreachableError: The reply will not arrive.
        """

    def _is_cut_off(self, index: int) -> bool:
        """Return whether a worker's machine cannot be reached now, and `_receive` tells when it is given up."""
        return False

    @abstractmethod
    def _ping(self, indices: Sequence[int]) -> Mapping[int, Busy | None]:
        """Return what workers are busy with; None for those that do not answer, nothing for those not asked."""

    @abstractmethod
    def _halt(self, numbers: Mapping[int, int]) -> None:
        """Let workers stop requests up to these numbers after their current iteration."""

    @abstractmethod
    def _reach(self, index: int, actor: Any, door: Door) -> None:
        """Forget a worker, and reach another one in its place.

        Raises:
            OSError: It cannot be reached.
        """

    @abstractmethod
    def close(self) -> None:
        """Release all resources; no request may be in flight."""

    def give_up(self, index: int, reason: str) -> None:
        """Send no more requests to a worker."""
        self._lost.setdefault(index, UnreachableError("WorkerDied", reason))

    def unanswered(self, index: int) -> list[Request]:
        """Return the requests under way whose replies a worker still owes, in order."""
        return [self._under_way[seq] for seq in self._sent[index]]

    def replace(self, index: int, actor: Any, door: Door) -> None:
        """Put a new worker in the place of a lost one. It has received no request yet; see `send_to`.

        Raises:
            OSError: It cannot be reached.
        """
        self._reach(index, actor, door)
        self._actors[index], self._numbers[index] = actor, 0
        self._sent[index].clear()
        self.nodes[index] = door.address.host  # until the worker tells
        self._lost.pop(index, None)

    def request(
        self,
        method: str,
        common: tuple[Any, ...] = (),
        each: Sequence[Any] | None = None,
        *,
        patience: Patience,
        phase: str,
        timestep: int | None = None,
    ) -> Any:
        """Send a request to all workers and return the payloads of their replies; see `send` and `receive`.

        Raises:
            WorkerError: Workers failed, died or did not reply in time; all of them are reported.
            ClusterError: Ray has been shut down.
        """
        seq = self.send(method, common, each)
        return payloads(self.receive(seq, patience, phase=phase, timestep=timestep))

    def send(self, method: str, common: tuple[Any, ...] = (), each: Sequence[Any] | None = None) -> int:
        """Send a request to all workers and return its number; see `Request`.

        Raises:
            ClusterError: Ray has been shut down.
        """
        indices = [index for index in range(len(self._actors)) if index not in self._lost]
        request = self._begin(indices, method, common, each)
        if self.rescue is not None:
            for index in self._lost:  # it is owed, and sent to the next worker in its place
                self._sent[index][request.seq] = 0
            self.rescue.note(request)
        return request.seq

    def _begin(
        self, indices: Sequence[int], method: str, common: tuple[Any, ...], each: Sequence[Any] | None
    ) -> Request:
        """Send a new request to some workers."""
        if not ray.is_initialized():
            raise ClusterError(
                "Ray was shut down while a trainer used it, and its workers are gone; build a new trainer"
            )
        self._seq += 1  # before sending: an interrupted request uses up its number
        request = Request(self._seq, method, common, each)
        self._under_way[request.seq] = request
        try:
            for index in indices:
                self.send_to(index, request)
        except BaseException:
            self._end(request.seq)  # the caller cannot wait for it
            self._halt_all()
            raise
        return request

    def send_to(self, index: int, request: Request) -> None:
        """Send a request that is under way to one worker; `receive` waits for its reply."""
        self._numbers[index] += 1
        sent = self._sent[index]
        sent[request.seq] = self._numbers[index]
        self._send(index, self._numbers[index], request, next(iter(sent.values())))

    def _end(self, seq: int) -> None:
        """Forget a request: nobody waits for it any more."""
        self._under_way.pop(seq, None)
        for sent in self._sent:
            sent.pop(seq, None)

    def receive(
        self, seq: int, patience: Patience, *, phase: str, timestep: int | None = None, halts: bool = False
    ) -> list[Reply]:
        """Wait for the replies of all workers to a request, and return them in scope order.

        Args:
            seq: Number of the request.
            patience: How long to wait.
            phase: Phase to report for a worker that does not reply.
            timestep: Timestep to report for a worker that does not reply.
            halts: Whether an error of one worker stops the others after their current iteration.
        """
        indices: Sequence[int] = range(len(self._actors))
        replies: dict[int, Reply] = {}
        try:
            while indices:
                replies |= self._gather(indices, seq, patience, phase=phase, timestep=timestep, halts=halts)
                lost = self._losses(replies, seq)
                if self.rescue is not None and lost:
                    self.rescue.recover(lost)
                indices = list(lost)
        except BaseException:
            if halts:
                self._halt_all()  # an interrupted request is not continued
            raise
        finally:
            self._end(seq)
        if self.rescue is not None and any(reply.status == "error" for reply in replies.values()):
            self.rescue.forget(seq)
        return [replies[index] for index in range(len(self._actors))]

    def ask(
        self,
        indices: Sequence[int],
        method: str,
        common: tuple[Any, ...] = (),
        each: Sequence[Any] | None = None,
        *,
        patience: Patience,
        phase: str,
        timestep: int | None = None,
    ) -> dict[int, Reply]:
        """Return the replies of some workers to a request that only they get. No `Rescue` takes part.

        Args:
            indices: The workers.
            method: See `Request`.
            common: See `Request`.
            each: See `Request`; the arguments of all workers.
            patience: As for `receive`.
            phase: As for `receive`.
            timestep: As for `receive`.
        """
        request = self._begin(indices, method, common, each)
        try:
            return self._gather(indices, request.seq, patience, phase=phase, timestep=timestep)
        finally:
            self._end(request.seq)

    def _gather(
        self,
        indices: Sequence[int],
        seq: int,
        patience: Patience,
        *,
        phase: str,
        timestep: int | None,
        halts: bool = False,
    ) -> dict[int, Reply]:
        """Return the replies of some workers, or the errors that replace them."""
        replies: dict[int, Reply] = {}
        deadlines = dict.fromkeys(indices, patience.deadline())
        while len(replies) < len(indices):
            missing = [index for index in indices if index not in replies]
            wait = _LOOK_INTERVAL / len(missing)
            for index in missing:
                timeout = max(0.0, min(deadlines[index] - monotonic(), wait))
                reply = self._reply(index, seq, timeout, phase, timestep)
                if reply is not None:
                    replies[index] = reply
                    if reply.log:
                        self._say(reply.log)
                    if halts and reply.status == "error" and not self._losses({index: reply}, seq):
                        self._halt_all()
            late = [index for index in missing if index not in replies and deadlines[index] <= monotonic()]
            if late:
                self._look_after(late, seq, deadlines, patience)
        return {index: replies[index] for index in indices}

    def abandon(self) -> None:
        """Stop waiting for all requests in flight; workers stop after their current iteration."""
        if self._under_way:
            self._under_way.clear()
            for sent in self._sent:
                sent.clear()
            self._halt_all()

    def _reply(self, index: int, seq: int, timeout: float, phase: str, timestep: int | None) -> Reply | None:
        """Return the reply of one worker or the error that replaces it; None if it may still arrive."""
        try:
            if index in self._lost:
                raise self._lost[index]
            reply = self._receive(index, self._sent[index][seq], timeout)
            if reply is not None:
                check_reply(reply, self._under_way[seq].method)
            return reply
        except DamagedError as error:
            failed = unreadable(error)
        except NoReplyError as error:
            failed = error
            if isinstance(error, UnreachableError):
                self._lost[index] = error
        return Reply("error", seq, (self._failure(index, failed, phase, timestep),))

    def _look_after(self, late: Sequence[int], seq: int, deadlines: dict[int, float], patience: Patience) -> None:
        """Extend the deadlines of late workers, or mark them as lost."""
        if self._under_way[seq].method in ITERATIONS:  # what workers hold can be asked for without a head
            self.check()
        cut_off = [index for index in late if self._is_cut_off(index)]
        deadlines |= dict.fromkeys(cut_off, monotonic() + _LOOK_INTERVAL)
        late = [index for index in late if index not in cut_off]
        for index, verdict in patience.extend(late, self._ping(late)).items() if late else ():
            if isinstance(verdict, UnreachableError):
                self._lost[index] = verdict
            else:
                deadlines[index] = verdict

    def _say(self, log: Iterable[LogEntry]) -> None:
        """Log what workers have logged, each message once."""
        for level, message in log:
            if message not in self._logged:
                self._logged.add(message)
                _logger.log(level, "%s", message)

    def _halt_all(self) -> None:
        """Make workers with several iterations stop after the current one."""
        if self.cluster.is_connected:
            self._halt({index: number for index, number in enumerate(self._numbers) if index not in self._lost})

    def _failure(self, index: int, error: NoReplyError, phase: str, timestep: int | None) -> Failure:
        scope = self._scopes[index]
        return Failure(
            scope=scope.index,
            rows=scope.rows,
            phase=phase,
            timestep=timestep,
            node=self.nodes[index],
            kind=error.kind,
            message=str(error),
        )

    def _losses(self, replies: Mapping[int, Reply], seq: int) -> dict[int, Failure]:
        """Return the failures of workers that can be rebuilt; nothing if others failed otherwise: the run ends."""
        failures = {index: reply.payload for index, reply in replies.items() if reply.status == "error"}
        rescue, method = self.rescue, self._under_way[seq].method
        if rescue is None or not all(rescue.is_loss(one, method) for each in failures.values() for one in each):
            return {}
        return {index: each[0] for index, each in failures.items()}
