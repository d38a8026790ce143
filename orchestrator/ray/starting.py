"""How long a start may take: workers that make progress are waited for, and the log says what they are doing."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import monotonic
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from orchestrator.ray.deaths import death, uncoloured
from orchestrator.ray.requests import Door, UnreachableError
from workers.errors import ClusterError, Failure, WorkerError
from workers.node import socket_domain
from workers.remote.replies import Busy
from workers.types import Phase, Scope

__all__ = ["MISSING", "StartPatience", "StartTime", "open_doors", "with_hint"]

_logger = logging.getLogger("lockstep")

_FIRST_LINE = 5.0
"""Seconds of waiting after which the log says what is waited for; then again after twice the time."""

_LOOK_INTERVAL = 2.0
"""Seconds between looks at workers that are starting."""

_MOST_NAMED = 4
_IMPORT_ERRORS = ("ModuleNotFoundError", "ImportError")
_OWN_MODULES = (
    "modules of your own must be importable on every node: run the program with `lockstep submit` or `ray job submit "
    "--working-dir DIR`, or call ray.init(runtime_env={'working_dir': DIR}) first; packages must be installed there"
)
MISSING = "Lockstep and what it needs must be installed on every node, in the same versions"


class StartTime:
    """The time that one start may take.

    Attributes:
        limit: Its length in seconds.
        option: The option of `RayOrchestrator` that sets it.
    """

    def __init__(
        self, limit: float, option: str = "start_timeout", *, check: Callable[[], None] = lambda: None
    ) -> None:
        """Begin.

        Args:
            limit: See the attributes.
            option: See the attributes.
            check: Called now and then while something is waited for; what it raises ends the wait.
        """
        self.limit, self.option = limit, option
        self._check = check
        self._started = monotonic()
        self._next_line = self._started + _FIRST_LINE

    @property
    def left(self) -> float:
        """Seconds that are left; 0 if there are none."""
        return max(0.0, self._started + self.limit - monotonic())

    def say(self, doing: str) -> None:
        """Log what is waited for, at growing intervals."""
        self._check()
        now = monotonic()
        if now >= self._next_line:
            self._next_line = now + (now - self._started)
            _logger.info("%s", doing)


class StartPatience:
    """Patience with workers that are being built: those that live are waited for until the start takes too long."""

    def __init__(
        self, time: StartTime, scopes: Sequence[Scope], nodes: Sequence[str], *, hang_timeout: float = 60.0
    ) -> None:
        """Wait for workers.

        Args:
            time: The time of the start.
            scopes: Their scopes.
            nodes: Where they live.
            hang_timeout: Seconds without an answer to a ping after which a worker counts as frozen.
        """
        self._time, self._scopes, self._nodes, self._hang_timeout = time, scopes, nodes, hang_timeout
        self._silent_since: dict[int, float] = {}

    def deadline(self) -> float:
        """Return the time of the first look."""
        return monotonic() + min(_LOOK_INTERVAL, self._time.left)

    def extend(self, late: Sequence[int], busy: Mapping[int, Busy | None]) -> dict[int, float | UnreachableError]:
        """Extend the deadlines of all workers but those that have not answered for long."""
        doing = [self._doing(index, busy) for index in late[:_MOST_NAMED]]
        if len(late) > _MOST_NAMED:
            doing.append(f"{len(late) - _MOST_NAMED} more are not ready")
        self._time.say(", ".join(doing))
        return {index: self._extended(index, busy) for index in late}

    def _doing(self, index: int, busy: Mapping[int, Busy | None]) -> str:
        where = f"scope {self._scopes[index].index} on {self._nodes[index]}"
        if index not in busy:
            return f"{where} is not ready"
        answer = busy[index]
        if answer is None:
            return f"{where} does not answer"
        return f"{where} is still {answer.doing or 'starting'} ({answer.seconds:.0f} s)"

    def _extended(self, index: int, busy: Mapping[int, Busy | None]) -> float | UnreachableError:
        now = monotonic()
        if busy.get(index) is None and index in busy:
            silence = now - self._silent_since.setdefault(index, now)
            if silence >= self._hang_timeout:
                return UnreachableError("WorkerHung", f"it has not answered a ping for {silence:.0f} s")
        else:
            self._silent_since.pop(index, None)
        if not self._time.left:
            return UnreachableError("TimeoutError", f"it was not built within {_limit(self._time)}")
        return now + min(_LOOK_INTERVAL, self._time.left)


def open_doors(actors: Sequence[Any], scopes: Sequence[Scope], time: StartTime, *, connects: bool = True) -> list[Door]:
    """Make all workers listen, which waits for their processes to start.

    Args:
        actors: The actors.
        scopes: Their scopes.
        time: The time of the start.
        connects: Whether this process will connect to them. Only then may they listen on the network.

    Raises:
        WorkerError: Processes died, or cannot start.
        ClusterError: Ray has not started all processes in time.
    """
    keys = [secrets.token_bytes(32) for _ in actors]
    domain = socket_domain() if connects else None
    calls = [actor.open.remote(key, domain) for actor, key in zip(actors, keys, strict=True)]
    started = monotonic()
    waiting = calls
    while waiting:
        ray.wait(waiting, timeout=min(_LOOK_INTERVAL, time.left))  # for the first
        done, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        failures = [
            _failure(error, scope)
            for call, scope in zip(calls, scopes, strict=True)
            if call in done and (error := _error_of(call)) is not None
        ]
        if failures:
            raise WorkerError(failures)
        if waiting:
            late = [scope.index for call, scope in zip(calls, scopes, strict=True) if call in waiting]
            which = f"the {'process of scope' if len(late) == 1 else 'processes of scopes'} {_listed(late)}"
            if not time.left:
                raise ClusterError(f"Ray has not started {which} within {_limit(time)}")
            time.say(f"Ray is still starting {which} ({monotonic() - started:.0f} s)")
    return [Door(address, key, node) for (address, node), key in zip(ray.get(calls), keys, strict=True)]


def with_hint(failure: Failure) -> Failure:
    """Add what to do to the failure of a build for which a module was missing."""
    if failure.kind not in _IMPORT_ERRORS:
        return failure
    return replace(failure, message=f"{failure.message}; {_OWN_MODULES}")


def _error_of(call: Any) -> RayError | None:
    """Return the error of a call that has ended."""
    try:
        ray.get(call)
    except RayError as error:
        return error
    return None


def _failure(error: RayError, scope: Scope) -> Failure:
    text = uncoloured(error)
    if any(f"{kind}: " in text for kind in _IMPORT_ERRORS):
        text = f"{text.rstrip()}\n{MISSING}"
    return Failure(
        scope=scope.index,
        rows=scope.rows,
        phase=Phase.BUILD.value,
        timestep=None,
        node="an unknown node",
        kind=death(error).kind if isinstance(error, RayActorError) else "WorkerDied",
        message=f"the worker's process did not start: {text}",
    )


def _listed(numbers: Sequence[int]) -> str:
    named = ", ".join(map(str, numbers[:_MOST_NAMED]))
    return named if len(numbers) <= _MOST_NAMED else f"{named} and {len(numbers) - _MOST_NAMED} more"


def _limit(time: StartTime) -> str:
    return f"{time.limit:g} s; if it may take longer, increase RayOrchestrator({time.option}=…)"
