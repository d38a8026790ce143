"""What a trainer asks of an orchestrator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from workers.errors import ConfigError
from workers.frameworks import Framework
from workers.types import Description, Outcome, Scope, Tick

__all__ = ["Orchestrator", "Plan", "Session", "check_num_threads"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a trainer wants to be run.

    Attributes:
        env: The environment or `EnvFactory` that the user handed over.
        agents: The agents or factories that the user handed over, one per scope.
        scopes: The scopes.
        cfg: The trainer's configuration.
        framework: The trainer's framework.
        seed: The trainer's seed.
    """

    env: Any
    agents: Sequence[Any]
    scopes: Sequence[Scope]
    cfg: Any
    framework: Framework
    seed: int | None


class Session(Protocol):
    """The workers of one trainer, started.

    Attributes:
        env: The live environments if they are in this process, else what the user handed over.
        workers: Where and how the worker of each scope lives.
    """

    env: Any
    workers: Sequence[Description]

    def submit(self, tick: Tick, count: int = 1) -> None:
        """Begin `count` iterations in all scopes, the first of which is `tick`.

        Several may be under way, where the workers can do them on their own.
        """

    def result(self) -> Outcome:
        """Wait for what was submitted first, and not waited for yet: the outcome of the last of its iterations.

        Raises:
            WorkerError: Scopes failed; all of them are reported.
        """

    def restart(self) -> None:
        """Make the next iteration reset the environments."""

    def collect(self) -> list[dict[str, float]]:
        """Scalars of each scope since the last call, by tag; the first call starts the measuring.

        Raises:
            WorkerError: Scopes failed; all of them are reported.
        """

    def agents(self) -> list[Any]:
        """The trained agent of each scope.

        Raises:
            AgentError: One cannot be brought back from where it lives.
        """

    def agent_files(self) -> list[tuple[str, bytes]]:
        """Name and content of the file of each scope's agent; see `workers.storage.agent_file.dump_agent`.

        Raises:
            WorkerError: Some cannot be stored; all of them are reported.
        """

    def close(self, *, close_environment: bool) -> None:
        """Release all that was built: workers, actors, environments, and Ray if it was started for them.

        Args:
            close_environment: Whether to close also an environment that the user handed over.
        """


class Orchestrator(Protocol):
    """How a trainer's scopes are run.

    Attributes:
        num_threads: Compute threads of each worker, and of this process while the trainer works.
    """

    @property
    def num_threads(self) -> int:
        """Number of compute threads, 1 or more."""

    def start(self, plan: Plan) -> Session:
        """Build all workers. If one cannot be built, everything built before is released."""


def check_num_threads(num_threads: object) -> None:
    """Check a number of compute threads.

    Raises:
        ConfigError: It is no integer of at least 1.
    """
    if not isinstance(num_threads, int) or isinstance(num_threads, bool) or num_threads < 1:
        raise ConfigError(f"num_threads is {num_threads!r}; expected an integer of at least 1")
