"""Requests to all workers, and their replies in scope order; every wait has a deadline."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from workers.errors import Failure, WorkerError
from workers.service import Reply
from workers.types import Scope

__all__ = ["ActorCalls"]

_PING_TIMEOUT = 2.0


class ActorCalls:
    """The workers' streams over plain actor calls. All workers get every request, numbered alike."""

    def __init__(self, actors: Sequence[Any], scopes: Sequence[Scope]) -> None:
        self._actors = actors
        self._scopes = scopes
        self._seq = 0
        self._lost: dict[int, tuple[str, str]] = {}
        self.nodes = ["an unknown node"] * len(actors)

    def request(
        self,
        method: str,
        args: Sequence[tuple[Any, ...]],
        *,
        timeout: float,
        phase: str,
        timestep: int | None = None,
    ) -> list[Any]:
        """Send a request to all workers and gather the payloads of their replies.

        Args:
            method: Method of `workers.service.Service`.
            args: Arguments for each worker, in scope order.
            timeout: Time for all replies, in seconds.
            phase: Phase to report for a worker that does not reply.
            timestep: Timestep to report for a worker that does not reply.

        Raises:
            WorkerError: Workers failed, died or did not reply in time; all of them are reported.
        """
        self._seq += 1
        deadline = monotonic() + timeout
        failures = [self._failure(index, phase, timestep, *reason) for index, reason in self._lost.items()]
        refs = {
            index: actor.handle.remote(self._seq, method, arguments)
            for index, (actor, arguments) in enumerate(zip(self._actors, args, strict=True))
            if index not in self._lost
        }
        replies: list[Reply | Failure]
        try:
            replies = ray.get(list(refs.values()), timeout=timeout)
        except RayError:
            remaining = max(0.0, deadline - monotonic())
            ray.wait(list(refs.values()), num_returns=len(refs), timeout=remaining, fetch_local=False)
            replies = [self._reply_or_failure(index, ref, timeout, phase, timestep) for index, ref in refs.items()]
        for index, reply in zip(refs, replies, strict=True):
            if isinstance(reply, Failure):
                failures.append(reply)
            elif reply.status == "error":
                failures.extend(reply.payload)
            elif reply.seq != self._seq:
                message = f"reply {reply.seq} to request {self._seq}"
                failures.append(self._failure(index, phase, timestep, "ProtocolError", message))
        if failures:
            raise WorkerError(sorted(failures, key=lambda failure: failure.rows))
        return [reply.payload for reply in replies if isinstance(reply, Reply)]

    def _reply_or_failure(
        self, index: int, ref: Any, timeout: float, phase: str, timestep: int | None
    ) -> Reply | Failure:
        """The reply of a worker; one that does not reply is lost: it is not asked again."""
        try:
            reply: Reply = ray.get(ref, timeout=0.1)
            return reply
        except GetTimeoutError:
            reason = ("TimeoutError", f"no reply within {timeout:g} s; {self._ping(index)}")
        except RayActorError as error:
            reason = ("WorkerDied", f"the worker's process died: {error}")
        except RayError as error:
            reason = (type(error).__name__, str(error))
        self._lost[index] = reason
        return self._failure(index, phase, timestep, *reason)

    def _ping(self, index: int) -> str:
        try:
            busy = ray.get(self._actors[index].ping.remote(), timeout=_PING_TIMEOUT)
        except RayError:
            return "nor does it answer a ping"
        if busy.seq is None:
            return "it answers a ping, and is not busy"
        return f"it answers a ping, and has been busy for {busy.seconds:.1f} s"

    def _failure(self, index: int, phase: str, timestep: int | None, kind: str, message: str) -> Failure:
        scope = self._scopes[index]
        return Failure(
            scope=scope.index,
            rows=scope.rows,
            phase=phase,
            timestep=timestep,
            node=self.nodes[index],
            kind=kind,
            message=message,
        )
