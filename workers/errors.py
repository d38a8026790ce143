"""Exception hierarchy.

Every exception that Lockstep raises deliberately is a `LockstepError` and also a subclass of the fitting built-in
exception, so ``except ValueError`` keeps working::

    LockstepError
    ├── ConfigError            (ValueError)    a configuration value is invalid
    ├── ScopeError             (ValueError)    the scopes do not fit the environments or the agents
    ├── EnvError               (ValueError)    an environment lacks a member or breaks the contract
    ├── AgentError             (ValueError)    an agent lacks a member, cannot be sent, or breaks the contract
    ├── LifecycleError         (RuntimeError)  a call is not allowed in the current state, such as train() after close()
    ├── ClusterError           (RuntimeError)  Ray cannot be reached, or does not provide what was requested
    └── WorkerError            (RuntimeError)  scopes failed in an iteration; `failures` has one `Failure` per scope

All exceptions can be pickled: they carry only plain data.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "AgentError",
    "ClusterError",
    "ConfigError",
    "EnvError",
    "Failure",
    "LifecycleError",
    "LockstepError",
    "ScopeError",
    "WorkerError",
    "build_error",
    "ends_process",
    "message_of",
]


class LockstepError(Exception):
    """Base class of every exception that Lockstep raises deliberately."""


class ConfigError(LockstepError, ValueError):
    """A configuration value is invalid."""


class ScopeError(LockstepError, ValueError):
    """The scopes do not fit the environments or the agents."""


class EnvError(LockstepError, ValueError):
    """An environment lacks a required member or breaks the contract."""


class AgentError(LockstepError, ValueError):
    """An agent lacks a required member, cannot be sent to its worker, or breaks the contract."""


class LifecycleError(LockstepError, RuntimeError):
    """A call is not allowed in the trainer's current state."""


class ClusterError(LockstepError, RuntimeError):
    """Ray cannot be reached, or does not provide what was requested."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Failure of one scope, as plain data that can be sent between processes.

    Attributes:
        scope: Index of the scope, or None if the environments of all scopes failed together.
        rows: Affected environments ``[start, stop)``.
        phase: Phase in which it happened, such as ``"act"`` (see `workers.types.Phase`).
        timestep: Timestep of the iteration; None outside an iteration.
        node: Host name and process id of the process in which it happened.
        kind: Qualified name of the exception's type.
        message: The exception's message.
        traceback: The original traceback as text; empty if there is none (the process died).
    """

    scope: int | None
    rows: tuple[int, int]
    phase: str
    timestep: int | None
    node: str
    kind: str
    message: str
    traceback: str = ""

    @classmethod
    def of(
        cls,
        error: BaseException,
        *,
        scope: int | None,
        rows: tuple[int, int],
        phase: str,
        timestep: int | None,
        node: str,
    ) -> Failure:
        """Build a failure from `error`, with its traceback as text."""
        kind = type(error)
        return cls(
            scope=scope,
            rows=rows,
            phase=phase,
            timestep=timestep,
            node=node,
            kind=kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}",
            message=message_of(error),
            traceback=_traceback_of(error),
        )

    def __str__(self) -> str:
        scope = "all scopes" if self.scope is None else f"scope {self.scope}"
        when = "" if self.timestep is None else f", timestep {self.timestep}"
        where = f"{scope} (environments {self.rows[0]}:{self.rows[1]}), phase {self.phase}{when}, on {self.node}"
        text = f"{where}: {self.kind}: {self.message}"
        return f"{text}\n{self.traceback.rstrip()}" if self.traceback else text


def message_of(error: BaseException) -> str:
    """Return the message of an exception, whatever its ``str()`` does."""
    try:
        return "".join([str(error)])  # of an instance of a subclass of str, its characters
    except BaseException as another:
        return f"(str() of the exception failed: {type(another).__name__})"


def _traceback_of(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:  # attributes of a user's exception may fail, too
        return "Traceback (most recent call last):\n" + "".join(traceback.format_tb(error.__traceback__))


def ends_process(error: BaseException) -> bool:
    """Return whether Ray raised `error` to end this process, on SIGTERM."""
    return isinstance(error, SystemExit) and hasattr(error, "ray_terminate_msg")


class WorkerError(LockstepError, RuntimeError):
    """One or more scopes failed; all of them are reported.

    Attributes:
        failures: One `Failure` per failed scope.
    """

    def __init__(self, failures: Sequence[Failure]) -> None:
        self.failures = tuple(failures)
        super().__init__(self.failures)

    def __str__(self) -> str:
        count = len(self.failures)
        head = "1 failure" if count == 1 else f"{count} failures"
        return "\n".join(
            [f"{head} in the workers", *(f"[{i + 1}] {failure}" for i, failure in enumerate(self.failures))]
        )


def build_error(failures: Sequence[Failure]) -> LockstepError:
    """Return the error for a failed build: the Agent-, Env- or ConfigError of all workers, else a `WorkerError`."""
    ours = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in (AgentError, EnvError, ConfigError)}
    kinds = {failure.kind for failure in failures}
    if len(kinds) == 1 and (kind := ours.get(kinds.pop())):
        return kind("; ".join(f"{failure.message} [on {failure.node}]" for failure in failures))
    return WorkerError(failures)
