"""The tree of errors.

Every error that Lockstep raises on purpose is a `LockstepError`, and is also the built-in kind that fits, so that
``except ValueError`` keeps working::

    LockstepError
    ├── ConfigError            (ValueError)    a value of a configuration is wrong
    ├── ScopeError             (ValueError)    the scopes do not fit the environments or the agents
    ├── EnvError               (ValueError)    an environment lacks a member, or breaks the contract
    ├── AgentError             (ValueError)    an agent lacks a member, cannot travel, or breaks the contract
    ├── LifecycleError         (RuntimeError)  a call that the state does not allow, such as train() after close()
    ├── ClusterError           (RuntimeError)  Ray cannot be reached, or has not what was asked of it
    └── WorkerError            (RuntimeError)  scopes failed in an iteration; `failures` has one `Failure` for each

All of them survive pickling: what they carry is plain data.
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
]


class LockstepError(Exception):
    """Base of every error that Lockstep raises on purpose."""


class ConfigError(LockstepError, ValueError):
    """A value of a configuration is wrong."""


class ScopeError(LockstepError, ValueError):
    """The scopes do not fit the environments or the agents."""


class EnvError(LockstepError, ValueError):
    """An environment lacks a required member, or breaks the contract."""


class AgentError(LockstepError, ValueError):
    """An agent lacks a required member, cannot travel to its worker, or breaks the contract."""


class LifecycleError(LockstepError, RuntimeError):
    """A call that the trainer's state does not allow."""


class ClusterError(LockstepError, RuntimeError):
    """Ray cannot be reached, or has not what was asked of it."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What went wrong in one scope, as plain data, so that it crosses any wire.

    Attributes:
        scope: Index of the scope, or None where the environments of all scopes failed together.
        rows: The environments ``[start, stop)`` that it concerns.
        phase: Where in the iteration it happened, such as ``"act"`` (see `workers.types.Phase`).
        timestep: Timestep of the iteration; None outside of one.
        node: Host name and process id of the process in which it happened.
        kind: Qualified name of the exception's type.
        message: The exception's message.
        traceback: The original traceback as text; empty where there is none (a process that died).
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
        """Describe `error`, with its traceback as text."""
        kind = type(error)
        return cls(
            scope=scope,
            rows=rows,
            phase=phase,
            timestep=timestep,
            node=node,
            kind=kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}",
            message=_message(error),
            traceback="".join(traceback.format_exception(error)),
        )

    def __str__(self) -> str:
        scope = "all scopes" if self.scope is None else f"scope {self.scope}"
        when = "" if self.timestep is None else f", timestep {self.timestep}"
        where = f"{scope} (environments {self.rows[0]}:{self.rows[1]}), phase {self.phase}{when}, on {self.node}"
        text = f"{where}: {self.kind}: {self.message}"
        return f"{text}\n{self.traceback.rstrip()}" if self.traceback else text


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as another:  # a user's exception may fail even in this
        return f"(str() of the exception failed: {type(another).__name__})"


class WorkerError(LockstepError, RuntimeError):
    """One or more scopes failed; all of them are reported.

    Attributes:
        failures: One `Failure` for each scope that failed.
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
    """What to raise where workers could not be built: the error of ours that all failed with, else a `WorkerError`."""
    ours = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in (AgentError, EnvError, ConfigError)}
    kinds = {failure.kind for failure in failures}
    if len(kinds) == 1 and (kind := ours.get(kinds.pop())):
        return kind("; ".join(f"{failure.message} [on {failure.node}]" for failure in failures))
    return WorkerError(failures)
