"""The ordered streams of requests to all workers, and plain actor calls that carry them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from time import monotonic
from typing import Any, NamedTuple

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from workers.errors import ClusterError, Failure, WorkerError
from workers.remote.service import Busy, Reply
from workers.types import Scope

__all__ = ["ActorCalls", "NoReplyError", "Request", "Streams", "UnreachableError", "cause_of_death", "payloads"]

_PING_TIMEOUT = 2.0
_LOOK_INTERVAL = 0.5
"""Seconds for which one worker is waited for before the others are looked at."""


class NoReplyError(Exception):
    """A worker's reply cannot be had.

    Attributes:
        kind: Name of what happened.
    """

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


class UnreachableError(NoReplyError):
    """A worker will not reply any more, to nothing."""


class Request(NamedTuple):
    """A request to all workers.

    Attributes:
        seq: Its number.
        method: Method of `workers.remote.service.Service`.
        common: Arguments that are the same for all workers.
        each: The last argument for each worker, in scope order, if there is one.
    """

    seq: int
    method: str
    common: tuple[Any, ...]
    each: Sequence[Any] | None


class Streams(ABC):
    """Numbered requests to all workers, done by each in order. Every wait has a deadline.

    Several may be under way. A worker that died or did not reply in time is lost: it is not asked again, and its
    failure stands for its replies.

    Attributes:
        nodes: Where each worker lives, for its failures.
    """

    def __init__(self, actors: Sequence[Any], scopes: Sequence[Scope]) -> None:
        self.nodes = ["an unknown node"] * len(actors)
        self._actors = actors
        self._scopes = scopes
        self._seq = 0
        self._lost: dict[int, UnreachableError] = {}
        self._under_way: list[int] = []

    @abstractmethod
    def _send(self, index: int, request: Request, ack: int) -> None:
        """Send a request to one worker; a failure shows when its reply is waited for."""

    @abstractmethod
    def _receive(self, index: int, seq: int, timeout: float) -> Reply | None:
        """The reply of one worker, None if it does not come in time.

        Raises:
            UnreachableError: It will not come.
        """

    @abstractmethod
    def close(self) -> None:
        """Release what the streams hold; no request is under way any more."""

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
        """Send a request to all workers and wait for their replies; see `send` and `receive`. Their payloads.

        Raises:
            WorkerError: Workers failed, died or did not reply in time; all of them are reported.
            ClusterError: Ray has been shut down.
        """
        return payloads(self.receive(self.send(method, common, each), timeout=timeout, phase=phase, timestep=timestep))

    def send(self, method: str, common: tuple[Any, ...] = (), each: Sequence[Any] | None = None) -> int:
        """Send a request to all workers: its number; see `Request`.

        Raises:
            ClusterError: Ray has been shut down.
        """
        if not ray.is_initialized():
            raise ClusterError("Ray was shut down while a trainer used it; its workers are gone: build a new trainer")
        self._seq += 1  # before sending: a request that was interrupted has used its number up
        request = Request(self._seq, method, common, each)
        self._under_way.append(request.seq)
        try:
            for index in range(len(self._actors)):
                if index not in self._lost:
                    self._send(index, request, self._under_way[0])
        except BaseException:
            self._under_way.remove(request.seq)  # nobody will wait for it
            raise
        return request.seq

    def receive(
        self, seq: int, *, timeout: float, phase: str, timestep: int | None = None, halts: bool = False
    ) -> list[Reply]:
        """Wait for the replies of all workers to a request, in scope order.

        Args:
            seq: Its number.
            timeout: Time for it, in seconds; if it asks for several iterations, for each of them.
            phase: Phase to report for a worker that does not reply.
            timestep: Timestep to report for a worker that does not reply.
            halts: Whether an error of one lets the others stop after the iteration that is under way.
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
                self._halt()  # what is interrupted is not gone on with
            raise
        finally:
            if seq in self._under_way:
                self._under_way.remove(seq)
        return [replies[index] for index in range(len(self._actors))]

    def abandon(self) -> None:
        """Wait for nothing that is under way any more; workers stop after the iteration that they are at."""
        self._under_way.clear()
        self._halt()

    def _reply(self, index: int, seq: int, deadline: float, phase: str, timestep: int | None) -> Reply | None:
        """The reply of one worker, or what stands for it; None if it may yet come."""
        try:
            if index in self._lost:
                raise self._lost[index]
            return self._receive(index, seq, max(0.0, min(deadline - monotonic(), _LOOK_INTERVAL)))
        except NoReplyError as error:
            if isinstance(error, UnreachableError):
                self._lost[index] = error
            return Reply("error", seq, (self._failure(index, error, phase, timestep),))

    def _look_after(self, late: Sequence[int], deadlines: list[float], idle: set[int], timeout: float) -> None:
        """Give workers more time that are at an iteration for less than it may take; the others are lost.

        One that is not busy has a moment in which its reply may come, or it may begin: it is lost the second time.
        """
        for index, busy in self._ping(late).items():
            if busy is not None and busy.seq is not None and busy.seconds < timeout:
                deadlines[index] = monotonic() + timeout - busy.seconds
            elif busy is not None and busy.seq is None and index not in idle:
                idle.add(index)
                deadlines[index] = monotonic() + _LOOK_INTERVAL
            else:
                state = "nor does it answer a ping"
                if busy is not None:
                    doing = "is not busy" if busy.seq is None else f"has been busy for {busy.seconds:.1f} s"
                    state = f"it answers a ping, and {doing}"
                self._lost[index] = UnreachableError("TimeoutError", f"no reply within {timeout:g} s; {state}")

    def _ping(self, indices: Sequence[int]) -> dict[int, Busy | None]:
        """What workers are busy with, all asked at once; None for those that do not answer."""
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
        """Let workers that do several iterations stop after the one under way."""
        if ray.is_initialized():
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
    """The payloads of replies.

    Raises:
        WorkerError: Some are errors; all of them are reported.
    """
    failures = [failure for reply in replies if reply.status == "error" for failure in reply.payload]
    if failures:
        raise WorkerError(failures)
    return [reply.payload for reply in replies]


def cause_of_death(ref: Any, timeout: float) -> str | None:
    """Why an actor does not do a call any more that has no end; None if it still does, for all that Ray knows."""
    try:
        ray.get(ref, timeout=timeout)
    except RayActorError as error:
        return f"the worker's process died: {error}"
    except GetTimeoutError:
        return None
    except RayError as error:
        return f"the worker does not listen any more: {error}"
    return "the worker does not listen any more"


class ActorCalls(Streams):
    """Plain actor calls."""

    def __init__(self, actors: Sequence[Any], scopes: Sequence[Scope]) -> None:
        super().__init__(actors, scopes)
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
        except RayError as error:  # the reply could not be sent, but the worker lives
            raise NoReplyError(type(error).__name__, str(error)) from error
        del self._refs[index][seq]
        return reply

    def close(self) -> None:
        """Forget what was asked."""
        self._refs = [{} for _ in self._actors]
