"""Requests to all workers, and their replies in scope order; every wait has a deadline."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from workers.errors import ClusterError, Failure, WorkerError
from workers.service import Reply
from workers.types import Scope

__all__ = ["ActorCalls"]

_PING_TIMEOUT = 2.0


class ActorCalls:
    """The workers' streams over plain actor calls. All workers get every request, numbered alike.

    Attributes:
        nodes: Where each worker lives, for its failures.
    """

    def __init__(self, actors: Sequence[Any], scopes: Sequence[Scope]) -> None:
        self._actors = actors
        self._scopes = scopes
        self._seq = 0
        self._lost: dict[int, tuple[str, str]] = {}
        self.nodes = ["an unknown node"] * len(actors)

    def request(self, method: str, args: Sequence[tuple[Any, ...]], **options: Any) -> list[Any]:
        """As `gather`, but all must succeed.

        Raises:
            WorkerError: Workers failed, died or did not reply in time; all of them are reported.
            ClusterError: Ray has been shut down.
        """
        replies = self.gather(method, args, **options)
        failures = [failure for reply in replies if reply.status == "error" for failure in reply.payload]
        if failures:
            raise WorkerError(failures)
        return [reply.payload for reply in replies]

    def gather(
        self,
        method: str,
        args: Sequence[tuple[Any, ...]],
        *,
        timeout: float,
        phase: str,
        timestep: int | None = None,
    ) -> list[Reply]:
        """Send a request to all workers and gather their replies, in scope order.

        A worker that died or did not reply in time is lost: it is not asked again, its failure stands for its reply.

        Args:
            method: Method of `workers.service.Service`.
            args: Arguments for each worker, in scope order.
            timeout: Time for all replies, in seconds.
            phase: Phase to report for a worker that does not reply.
            timestep: Timestep to report for a worker that does not reply.

        Raises:
            ClusterError: Ray has been shut down.
        """
        if not ray.is_initialized():
            raise ClusterError("Ray was shut down while a trainer used it; its workers are gone: build a new trainer")
        self._seq += 1  # before sending: a request that was interrupted has used its number up
        deadline = monotonic() + timeout
        refs = {
            index: actor.handle.remote(self._seq, method, arguments)
            for index, (actor, arguments) in enumerate(zip(self._actors, args, strict=True))
            if index not in self._lost
        }
        try:
            replies: dict[int, Reply] = dict(zip(refs, ray.get(list(refs.values()), timeout=timeout), strict=True))
        except RayError:
            remaining = max(0.0, deadline - monotonic())
            ray.wait(list(refs.values()), num_returns=len(refs), timeout=remaining, fetch_local=False)
            replies = self._replies_one_by_one(refs, timeout, phase, timestep)
        for index, reply in replies.items():
            if reply.seq != self._seq:
                reason = ("ProtocolError", f"reply {reply.seq} to request {self._seq}")
                replies[index] = self._error(index, reason, phase, timestep)
        for index, reason in self._lost.items():
            replies.setdefault(index, self._error(index, reason, phase, timestep))
        return [replies[index] for index in range(len(self._actors))]

    def _replies_one_by_one(
        self, refs: dict[int, Any], timeout: float, phase: str, timestep: int | None
    ) -> dict[int, Reply]:
        replies: dict[int, Reply] = {}
        late = []
        for index, ref in refs.items():
            try:
                replies[index] = ray.get(ref, timeout=0)
            except GetTimeoutError:
                late.append(index)
            except RayActorError as error:
                self._lost[index] = ("WorkerDied", f"the worker's process died: {error}")
            except RayError as error:  # the reply could not be sent, but the worker lives
                replies[index] = self._error(index, (type(error).__name__, str(error)), phase, timestep)
        for index, state in self._ping(late).items():
            self._lost[index] = ("TimeoutError", f"no reply within {timeout:g} s; {state}")
        return replies

    def _ping(self, indices: Sequence[int]) -> dict[int, str]:
        """What workers are busy with, all asked at once: so that slow and dead can be told apart."""
        pings = {index: self._actors[index].ping.remote() for index in indices}
        if pings:
            ray.wait(list(pings.values()), num_returns=len(pings), timeout=_PING_TIMEOUT)
        states = {}
        for index, ping in pings.items():
            try:
                busy = ray.get(ping, timeout=0)
                doing = "is not busy" if busy.seq is None else f"has been busy for {busy.seconds:.1f} s"
                states[index] = f"it answers a ping, and {doing}"
            except RayError:
                states[index] = "nor does it answer a ping"
        return states

    def _error(self, index: int, reason: tuple[str, str], phase: str, timestep: int | None) -> Reply:
        scope, (kind, message) = self._scopes[index], reason
        failure = Failure(
            scope=scope.index,
            rows=scope.rows,
            phase=phase,
            timestep=timestep,
            node=self.nodes[index],
            kind=kind,
            message=message,
        )
        return Reply("error", self._seq, (failure,))
