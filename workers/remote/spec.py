"""WorkerSpec: everything that a remote worker is built from."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from workers.errors import type_name
from workers.types import Scope

__all__ = ["WorkerSpec", "check_spec"]


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """Everything that a remote worker is built from. User objects are pickled: unpickling errors become replies, too.

    Attributes:
        scope: Rows of the worker, and seed of its agent.
        framework: Name of the framework.
        agent: The pickled agent or factory.
        env: The pickled `EnvFactory` of a worker that owns its environments; None if it shares the driver's.
        observation_space: The pickled `EnvSlice.observation_space` of shared environments; None if the worker owns its
            environments.
        cfg: The pickled configuration of the trainer.
        seed: The trainer's seed.
        num_threads: Number of compute threads.
        replay_limit: See `EnvSlice`.
        modules: Modules to import first, because the build depends on whether they are imported.
    """

    scope: Scope
    framework: str
    agent: bytes
    env: bytes | None
    observation_space: bytes | None
    cfg: bytes
    seed: int | None
    num_threads: int = 1
    replay_limit: int = 10_000
    modules: tuple[str, ...] = ()


def check_spec(spec: Any) -> None:
    """Check what every failure is told with.

    Raises:
        TypeError: It is not the description of a worker.
    """
    scope = getattr(spec, "scope", None)
    if type(spec) is not WorkerSpec or type(scope) is not Scope or len(vars(spec)) != len(fields(WorkerSpec)):
        raise TypeError(f"a worker cannot be built from a {type_name(type(spec))}")
    if any(type(number) is not int for number in (scope.index, *scope.rows)):
        raise TypeError("a worker cannot be built without numbers of its scope")
