"""Ordered request streams to all workers, and their implementation with plain actor calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from time import monotonic
from typing import Any, NamedTuple

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from orchestrator.ray.cluster import Cluster
from workers.errors import ClusterError, Failure, WorkerError
from workers.remote.service import Busy, Reply
from workers.types import Scope

__all__ = ["ActorCalls", "NoReplyError", "Request", "Streams", "UnreachableError", "cause_of_death", "payloads"]

_PING_TIMEOUT = 2.0
_LOOK_INTERVAL = 0.5
"""Seconds to wait for one worker before checking the others."""


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


class Streams(ABC):
    """Numbered requests to all workers, which each worker handles in order. Every wait has a deadline.

    Several requests may be in flight. A worker that dies or does not reply in time is lost: it gets no more requests,
    and its failure replaces its replies.

    Attributes:
        cluster: The cluster in which the workers live.
        nodes: Where each worker lives, for its failures.
    """

    def __init__(self, cluster: Cluster, actors: Sequence[Any], scopes: Sequence[Scope]) -> None:
        self.cluster = cluster
        self.nodes = ["an unknown node"] * len(actors)
        self._actors = actors
        self._scopes = scopes
        self._seq = 0
        self._lost: dict[int, UnreachableError] = {}
        self._under_way: list[int] = []

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
    def close(self) -> None:
        """Release all resources; no request may be in flight."""

    def request(
        self,
        method: str,
        common: tuple[Any, ...] = (),
        each: Sequence[Any] | None = None,
        *,
        timeout: float,
        phase: str,
        timestep: int | None = None,
    ) -> Any:
        """Send a request to all workers and return the payloads of their replies; see `send` and `receive`.

        Raises:
            WorkerError: Workers failed, died or did not reply in time; all of them are reported.
            ClusterError: Ray has been shut down.
        """
        return payloads(self.receive(self.send(method, common, each), timeout=timeout, phase=phase, timestep=timestep))

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
        self._under_way.append(request.seq)
        try:
            for index in range(len(self._actors)):
                if index not in self._lost:
                    self._send(index, request, self._under_way[0])
        except BaseException:
            self._under_way.remove(request.seq)  # the caller cannot wait for it
            raise
        return request.seq

    def receive(
        self, seq: int, *, timeout: float, phase: str, timestep: int | None = None, halts: bool = False
    ) -> list[Reply]:
        """Wait for the replies of all workers to a request, and return them in scope order.

        Args:
            seq: Number of the request.
            timeout: Time for the request, in seconds; if it asks for several iterations, time for each of them.
            phase: Phase to report for a worker that does not reply.
            timestep: Timestep to report for a worker that does not reply.
            halts: Whether an error of one worker stops the others after their current iteration.
        """
        replies: dict[int, Reply] = {}
        deadlines = [monotonic() + timeout] * len(self._actors)
        idle: set[int] = set()
        try:
            while len(replies) < len(self._actors):
                missing = [index for index in range(len(self._actors)) if index not in replies]
                for index in missing:
                    reply = self._reply(index, seq, deadlines[index], phase, timestep)
                    if reply is not None:
                        replies[index] = reply
                        if halts and reply.status == "error":
                            self._halt()
                late = [index for index in missing if index not in replies and deadlines[index] <= monotonic()]
                self._look_after(late, deadlines, idle, timeout)
        except BaseException:
            if halts:
                self._halt()  # an interrupted request is not continued
            raise
        finally:
            if seq in self._under_way:
                self._under_way.remove(seq)
        return [replies[index] for index in range(len(self._actors))]

    def abandon(self) -> None:
        """Stop waiting for all requests in flight; workers stop after their current iteration."""
        self._under_way.clear()
        self._halt()

    def _reply(self, index: int, seq: int, deadline: float, phase: str, timestep: int | None) -> Reply | None:
        """Return the reply of one worker or the error that replaces it; None if it may still arrive."""
        try:
            if index in self._lost:
                raise self._lost[index]
            return self._receive(index, seq, max(0.0, min(deadline - monotonic(), _LOOK_INTERVAL)))
        except NoReplyError as error:
            if isinstance(error, UnreachableError):
                self._lost[index] = error
            return Reply("error", seq, (self._failure(index, error, phase, timestep),))

    def _look_after(self, late: Sequence[int], deadlines: list[float], idle: set[int], timeout: float) -> None:
        """Extend the deadlines of workers whose current iteration is within `timeout`; mark the others as lost.

        An idle worker gets one short extension, because its reply may be on the way or it may be about to start.
        """
        for index, busy in self._ping(late).items():
            if busy is not None and busy.seq is not None and busy.seconds < timeout:
                deadlines[index] = monotonic() + timeout - busy.seconds
            elif busy is not None and busy.seq is None and index not in idle:
                idle.add(index)
                deadlines[index] = monotonic() + _LOOK_INTERVAL
            else:
                state = "it does not answer a ping either"
                if busy is not None:
                    doing = "is not busy" if busy.seq is None else f"has been busy for {busy.seconds:.1f} s"
                    state = f"it answers a ping and {doing}"
                self._lost[index] = UnreachableError("TimeoutError", f"no reply within {timeout:g} s; {state}")

    def _ping(self, indices: Sequence[int]) -> dict[int, Busy | None]:
        """Ping workers concurrently and return what each is busy with; None for those that do not answer."""
        pings = {index: self._actors[index].ping.remote() for index in indices}
        if pings:
            ray.wait(list(pings.values()), num_returns=len(pings), timeout=_PING_TIMEOUT)
        answers: dict[int, Busy | None] = {}
        for index, ping in pings.items():
            try:
                answers[index] = ray.get(ping, timeout=0)
            except RayError:
                answers[index] = None
        return answers

    def _halt(self) -> None:
        """Make workers with several iterations stop after the current one."""
        if self.cluster.is_connected:
            for index, actor in enumerate(self._actors):
                if index not in self._lost:
                    actor.halt.remote(self._seq)

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


def payloads(replies: Sequence[Reply]) -> list[Any]:
    """Return the payloads of replies.

    Raises:
        WorkerError: Some replies are errors; all of them are reported.
    """
    failures = [failure for reply in replies if reply.status == "error" for failure in reply.payload]
    if failures:
        raise WorkerError(failures)
    return [reply.payload for reply in replies]


def cause_of_death(ref: Any, timeout: float) -> str | None:
    """Return why an actor's endless call ended; None if, as far as Ray knows, it is still running."""
    try:
        ray.get(ref, timeout=timeout)
    except RayActorError as error:
        return f"the worker's process died: {error}"
    except GetTimeoutError:
        return None
    except RayError as error:
        return f"the worker no longer listens: {error}"
    return "the worker no longer listens"


class ActorCalls(Streams):
    """Request streams of plain actor calls."""

    def __init__(self, cluster: Cluster, actors: Sequence[Any], scopes: Sequence[Scope]) -> None:
        super().__init__(cluster, actors, scopes)
        self._refs: list[dict[int, Any]] = [{} for _ in actors]

    def _send(self, index: int, request: Request, ack: int) -> None:
        seq, method, common, each = request
        refs = self._refs[index]
        for old in [number for number in refs if number < ack]:
            del refs[old]
        arguments = common if each is None else (*common, each[index])
        refs[seq] = self._actors[index].handle.remote(seq, method, arguments, ack)

    def _receive(self, index: int, seq: int, timeout: float) -> Reply | None:
        try:
            reply: Reply = ray.get(self._refs[index][seq], timeout=timeout)
        except GetTimeoutError:
            return None
        except RayActorError as error:
            raise UnreachableError("WorkerDied", f"the worker's process died: {error}") from error
        except RayError as error:  # the reply could not be sent, but the worker is alive
            raise NoReplyError(type(error).__name__, str(error)) from error
        del self._refs[index][seq]
        return reply

    def close(self) -> None:
        """Forget all requests."""
        self._refs = [{} for _ in self._actors]
