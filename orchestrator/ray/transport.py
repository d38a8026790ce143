"""Ordered request streams to all workers, whatever carries them."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from time import monotonic
from typing import Any, ClassVar, NamedTuple, Protocol

import ray

from orchestrator.ray.cluster import Cluster
from workers.errors import ClusterError, Failure, WorkerError, message_of
from workers.remote.dialing import Address
from workers.remote.layout import DamagedError
from workers.remote.log import LogEntry
from workers.remote.messages import check_reply
from workers.remote.service import Busy, Reply
from workers.types import Scope

__all__ = [
    "PING_TIMEOUT",
    "Door",
    "NoReplyError",
    "Patience",
    "Request",
    "StepPatience",
    "Streams",
    "UnreachableError",
    "payloads",
    "unreadable",
]

_logger = logging.getLogger("lockstep")

PING_TIMEOUT = 2.0
"""Seconds within which a worker answers a ping."""

_ASKING_TIMEOUT = 30.0
"""Seconds within which somebody can ask a worker what it is busy with."""

_LOOK_INTERVAL = 0.5
"""Seconds in which all workers that have not replied are looked at once."""

_LONGER_ITERATIONS = "if an iteration may take longer, increase RayOrchestrator(step_timeout=…)"


class NoReplyError(Exception):
    """A worker's reply is not available.

    Attributes:
        kind: Name of the error.
    """

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


class UnreachableError(NoReplyError):
    """A worker will not reply to any further request."""


class Request(NamedTuple):
    """A request to all workers.

    Attributes:
        seq: Number of the request.
        method: Method of `workers.remote.service.Service`.
        common: Arguments that are the same for all workers.
        each: Last argument of each worker, in scope order; None if there is none.
    """

    seq: int
    method: str
    common: tuple[Any, ...]
    each: Sequence[Any] | None


class Door(NamedTuple):
    """How a worker can be connected to.

    Attributes:
        address: Where it listens.
        key: Secret that only this worker knows.
        node: Ray's id of its node.
    """

    address: Address
    key: bytes
    node: str


class Patience(Protocol):
    """How long replies to one request are waited for."""

    def deadline(self) -> float:
        """Return the time of the first look at workers that have not replied, as from `monotonic`."""

    def extend(self, late: Sequence[int], busy: Mapping[int, Busy | None]) -> dict[int, float | UnreachableError]:
        """Return when to look again at late workers, or why they are not waited for any longer.

        Args:
            late: The late workers.
            busy: What they are busy with; None for those that do not answer, nothing for those that nobody can ask.
        """


class StepPatience:
    """Patience with iterations and other requests whose time is limited; see `Patience`."""

    def __init__(self, timeout: float, remedy: str = _LONGER_ITERATIONS) -> None:
        """Prepare for one request.

        Args:
            timeout: Seconds to wait; for a request of several iterations, for each of them.
            remedy: What to do about a worker that takes longer, for its error.
        """
        self._timeout = timeout
        self._remedy = remedy
        self._idle: set[int] = set()
        self._unasked_since: dict[int, float] = {}

    def deadline(self) -> float:
        """Return the time of the first look."""
        return monotonic() + self._timeout

    def extend(self, late: Sequence[int], busy: Mapping[int, Busy | None]) -> dict[int, float | UnreachableError]:
        """Extend the deadlines of workers whose current iteration is within the limit.

        An idle worker gets one short extension, because its reply may be on the way or it may be about to start. A
        worker that nobody can ask gets a few, because its helper may be starting.
        """
        return {index: self._extended(index, busy) for index in late}

    def _extended(self, index: int, answers: Mapping[int, Busy | None]) -> float | UnreachableError:
        busy = answers.get(index)
        if index not in answers:
            since = self._unasked_since.setdefault(index, monotonic())
            if monotonic() - since < _ASKING_TIMEOUT:
                return monotonic() + _LOOK_INTERVAL
        if busy is None:
            state = "it does not answer a ping either"
        elif busy.seq is not None and busy.seconds < self._timeout:
            return monotonic() + self._timeout - busy.seconds
        elif busy.seq is None and index not in self._idle:
            self._idle.add(index)
            return monotonic() + _LOOK_INTERVAL
        else:
            doing = "is not busy" if busy.seq is None else f"has been busy for {busy.seconds:.1f} s"
            state = f"it answers a ping and {doing}"
        return UnreachableError("TimeoutError", f"no reply within {self._timeout:g} s; {state}; {self._remedy}")


class Streams(ABC):
    """Numbered requests to all workers, which each worker handles in order. Every wait has a deadline.

    Several requests may be in flight. A worker that dies or does not reply in time is lost: it gets no more requests,
    and its failure replaces its replies.

    Attributes:
        transport: What carries the requests: ``"connection"`` or ``"ray"``, as for `RayOrchestrator`.
        unreachable: Why the workers cannot be connected to, if this is why Ray carries the requests; else empty.
        cluster: The cluster in which the workers live.
        nodes: Where each worker lives, for its failures.
    """

    transport: ClassVar[str]
    unreachable = ""

    def __init__(self, cluster: Cluster, actors: Sequence[Any], scopes: Sequence[Scope]) -> None:
        self.cluster = cluster
        self.nodes = ["an unknown node"] * len(actors)
        self._actors = actors
        self._scopes = scopes
        self._seq = 0
        self._lost: dict[int, UnreachableError] = {}
        self._under_way: dict[int, str] = {}  # the methods of requests, by number
        self._logged: set[str] = set()

    @property
    def lost(self) -> frozenset[int]:
        """Indices of the workers that get no more requests."""
        return frozenset(self._lost)

    @abstractmethod
    def _send(self, index: int, request: Request, ack: int) -> None:
        """Send a request to one worker; errors surface when its reply is received."""

    @abstractmethod
    def _receive(self, index: int, seq: int, timeout: float) -> Reply | None:
        """Return the reply of one worker, or None if it does not arrive in time.

        Raises:
            UnreachableError: The reply will not arrive.
        """

    @abstractmethod
    def _ping(self, indices: Sequence[int]) -> Mapping[int, Busy | None]:
        """Return what workers are busy with; None for those that do not answer, nothing for those not asked."""

    @abstractmethod
    def _halt(self, indices: Sequence[int], seq: int) -> None:
        """Let workers stop requests up to `seq` after their current iteration."""

    @abstractmethod
    def close(self) -> None:
        """Release all resources; no request may be in flight."""

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
        if not ray.is_initialized():
            raise ClusterError(
                "Ray was shut down while a trainer used it, and its workers are gone; build a new trainer"
            )
        self._seq += 1  # before sending: an interrupted request uses up its number
        request = Request(self._seq, method, common, each)
        self._under_way[request.seq] = method
        ack = next(iter(self._under_way))
        try:
            for index in range(len(self._actors)):
                if index not in self._lost:
                    self._send(index, request, ack)
        except BaseException:
            del self._under_way[request.seq]  # the caller cannot wait for it
            self._halt_all()
            raise
        return request.seq

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
        replies: dict[int, Reply] = {}
        deadlines = [patience.deadline()] * len(self._actors)
        try:
            while len(replies) < len(self._actors):
                missing = [index for index in range(len(self._actors)) if index not in replies]
                wait = _LOOK_INTERVAL / len(missing)
                for index in missing:
                    timeout = max(0.0, min(deadlines[index] - monotonic(), wait))
                    reply = self._reply(index, seq, timeout, phase, timestep)
                    if reply is not None:
                        replies[index] = reply
                        if reply.log:
                            self._say(reply.log)
                        if halts and reply.status == "error":
                            self._halt_all()
                late = [index for index in missing if index not in replies and deadlines[index] <= monotonic()]
                if late:
                    self._look_after(late, deadlines, patience)
        except BaseException:
            if halts:
                self._halt_all()  # an interrupted request is not continued
            raise
        finally:
            self._under_way.pop(seq, None)
        return [replies[index] for index in range(len(self._actors))]

    def abandon(self) -> None:
        """Stop waiting for all requests in flight; workers stop after their current iteration."""
        if self._under_way:
            self._under_way.clear()
            self._halt_all()

    def _reply(self, index: int, seq: int, timeout: float, phase: str, timestep: int | None) -> Reply | None:
        """Return the reply of one worker or the error that replaces it; None if it may still arrive."""
        try:
            if index in self._lost:
                raise self._lost[index]
            reply = self._receive(index, seq, timeout)
            if reply is not None:
                check_reply(reply, self._under_way[seq])
            return reply
        except DamagedError as error:
            failed = unreadable(error)
        except NoReplyError as error:
            failed = error
            if isinstance(error, UnreachableError):
                self._lost[index] = error
        return Reply("error", seq, (self._failure(index, failed, phase, timestep),))

    def _look_after(self, late: Sequence[int], deadlines: list[float], patience: Patience) -> None:
        """Extend the deadlines of late workers, or mark them as lost."""
        for index, verdict in patience.extend(late, self._ping(late)).items():
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
            self._halt([index for index in range(len(self._actors)) if index not in self._lost], self._seq)

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


def unreadable(error: BaseException) -> NoReplyError:
    """Return the error for a reply that cannot be read."""
    return NoReplyError("UnreadableError", f"the reply cannot be read: {type(error).__name__}: {message_of(error)}")


def payloads(replies: Sequence[Reply]) -> list[Any]:
    """Return the payloads of replies.

    Raises:
        WorkerError: Some replies are errors; all of them are reported.
    """
    failures = [failure for reply in replies if reply.status == "error" for failure in reply.payload]
    if failures:
        raise WorkerError(failures)
    return [reply.payload for reply in replies]
