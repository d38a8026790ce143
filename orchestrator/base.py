"""The interface between a trainer and its orchestrator."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, NamedTuple, Protocol, TypeVar

from workers.envs.statistics import Statistics
from workers.errors import ConfigError, Failure, WorkerError, build_error, check_keys
from workers.frameworks import Framework
from workers.node import node_name
from workers.scope.env_slice import EnvSlice
from workers.storage.snapshot import Snapshot
from workers.types import Description, Outcome, Phase, Scope, Tick, is_integer

__all__ = [
    "Orchestrator",
    "Plan",
    "Recovered",
    "Result",
    "Session",
    "build_environments",
    "check_num_threads",
    "check_replay_limit",
    "close_environments",
    "failure_here",
    "names_keys",
]


T = TypeVar("T")
R = TypeVar("R", covariant=True)


class Recovered(NamedTuple):
    """A recovery from the loss of workers.

    Attributes:
        scopes: The scopes whose workers were rebuilt.
        timestep: Timestep of the last iteration that had been asked for; None before the first.
        cause: What happened, as far as is known: ``"WorkerDied"``, ``"WorkerHung"``, ``"NodeDied"``,
            ``"NodeUnreachable"``, ``"ConnectionLost"`` or ``"UnreadableError"``; or the type of an exception.
        message: The same in words.
        seconds: From the notice of the loss until they were back.
        replayed: Number of iterations that were done again.
    """

    scopes: tuple[int, ...]
    timestep: int | None
    cause: str
    message: str
    seconds: float
    replayed: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that an orchestrator needs to build a trainer's workers.

    Attributes:
        env: The environment or `EnvFactory` that the user passed.
        agents: The agents or factories that the user passed, one per scope.
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


class Result(Protocol[R]):
    """What a function returns that is computed beside the training."""

    def is_known(self) -> bool:
        """Return whether the function has returned or raised."""

    def wait(self) -> R:
        """Wait for the function, and return what it returned.

        Raises:
            ClusterError: Ray does not answer any more, or the function takes longer than an hour.
            Exception: What the function raised.
        """

    def cancel(self) -> None:
        """End the function, if it has not returned."""


class Session(Protocol):
    """The running workers of one trainer.

    Attributes:
        env: The live environments if they are in this process, else what the user passed.
    """

    env: Any

    @property
    def workers(self) -> Sequence[Description]:
        """Where and how the worker of each scope runs."""

    @property
    def recoveries(self) -> Sequence[Recovered]:
        """The recoveries from workers that were lost, so far."""

    def check(self) -> None:
        """Check that iterations can go on; if not, the state between two of them can still be asked for.

        Raises:
            ClusterError: Ray's head node does not answer any more.
        """

    def submit(self, tick: Tick, count: int = 1) -> None:
        """Start `count` iterations in all scopes, beginning with `tick`.

        Several submissions may be in flight if the workers can run them on their own. This process computes nothing
        here: what runs in it, `result` runs.
        """

    def result(self) -> Outcome:
        """Wait for the oldest submission in flight and return the outcome of its last iteration.

        Raises:
            WorkerError: Scopes failed; all of them are reported.
        """

    def restart(self) -> None:
        """Make the next iteration reset the environments."""

    def collect(self) -> list[dict[str, float]]:
        """Return the scalars of each scope since the last call, by tag. The first call starts the measurement.

        Raises:
            WorkerError: Scopes failed; all of them are reported.
        """

    def agents(self) -> list[Any]:
        """Return the trained agent of each scope.

        Raises:
            AgentError: An agent cannot be brought back from its worker.
        """

    def agent_files(self, scopes: Collection[int]) -> dict[int, tuple[str, bytes]]:
        """Return the name and content of the agent files of some scopes; see `workers.storage.agent_file.dump_agent`.

        Raises:
            WorkerError: Agents cannot be stored; all of them are reported.
        """

    def load_agent_files(self, files: Mapping[int, tuple[str, bytes]]) -> None:
        """Load agent files, which `agent_files` returned, into the agents of some scopes.

        Raises:
            WorkerError: Agents cannot load them; all of them are reported, and the others have loaded theirs.
        """

    def hyperparameters(self) -> list[dict[str, float]]:
        """Return the hyper-parameters of each scope's agent that may change during a run, by name.

        Raises:
            WorkerError: Agents do not offer them; all of them are reported.
        """

    def set_hyperparameters(self, scope: int, values: Mapping[str, float]) -> None:
        """Change hyper-parameters of the agent of one scope.

        Raises:
            WorkerError: The agent does not offer them, or refuses these.
        """

    def statistics(self) -> list[Statistics]:
        """Return the running statistics of each row's wrappers; see `workers.envs.statistics`.

        Raises:
            WorkerError: Scopes failed; all of them are reported.
        """

    def snapshot(self, *, allow_pickle: bool) -> Snapshot:
        """Return the whole state of all scopes; see `workers.scope.worker.ScopeWorker.snapshot`.

        Raises:
            WorkerError: States cannot be kept; all scopes that cannot are reported.
        """

    def stage(self, snapshot: Snapshot) -> None:
        """Check that a snapshot fits all scopes, and keep it for `restore`; nothing changes.

        Raises:
            WorkerError: It does not fit; all scopes that it does not fit are reported.
        """

    def restore(self) -> None:
        """Go on from the snapshot of `stage`.

        Raises:
            WorkerError: Something failed half-way; the session can only be closed.
        """

    def beside(self, function: Callable[[], T]) -> Result[T]:
        """Compute a function beside the training if other processes can, else at once.

        Args:
            function: The function. It can be pickled by cloudpickle, and may be called again if a process dies.
        """

    def close(self, *, close_environment: bool) -> None:
        """Release everything that was built: workers, actors, environments, and Ray if it was started for them.

        Whatever raises, everything else is still released.

        Args:
            close_environment: Whether to also close an environment that the user passed.

        Raises:
            WorkerError: Environments or agents could not be closed; all of them are reported.
        """


class Orchestrator(Protocol):
    """A way to run a trainer's scopes.

    Attributes:
        num_threads: Compute threads of each worker, and of this process while the trainer works.
    """

    @property
    def num_threads(self) -> int:
        """Number of compute threads, at least 1."""

    def start(self, plan: Plan) -> Session:
        """Build all workers. If one cannot be built, release everything built before."""


def build_environments(plan: Plan, *, replay_limit: int) -> EnvSlice:
    """Take the environments of all scopes into this process, or build them here.

    Args:
        plan: The plan.
        replay_limit: See `EnvSlice`.

    Raises:
        AgentError, ConfigError, EnvError, WorkerError: They raised; see `workers.errors.build_error`.
    """
    try:
        return EnvSlice(plan.env, plan.framework, cfg=plan.cfg, seed=plan.seed, replay_limit=replay_limit)
    except Exception as error:
        raise build_error([_failure(error, plan, Phase.BUILD)]) from error


def close_environments(env: Any, plan: Plan) -> None:
    """Close environments of all scopes in this process.

    Raises:
        WorkerError: They raised.
    """
    try:
        env.close()
    except Exception as error:
        raise WorkerError([_failure(error, plan, Phase.CLOSE)]) from error


def failure_here(error: Exception, scope: int | None, rows: tuple[int, int], phase: Phase) -> Failure:
    """Return the failure of building or closing something in this process."""
    return Failure.of(error, scope=scope, rows=rows, phase=phase.value, timestep=None, node=node_name())


def _failure(error: Exception, plan: Plan, phase: Phase) -> Failure:
    return failure_here(error, 0 if len(plan.scopes) == 1 else None, (0, plan.scopes[-1].stop), phase)


def check_replay_limit(replay_limit: object) -> None:
    """Check a number of actions.

    Raises:
        ConfigError: It is not an integer of at least 0.
    """
    if not is_integer(replay_limit) or replay_limit < 0:
        raise ConfigError(
            f"replay_limit is {reprlib.repr(replay_limit)}; expected an integer of at least 0: the most actions of an "
            "episode that are kept, so that the episode can be repeated"
        )


def names_keys(kind: type[T]) -> type[T]:
    """Make an unknown keyword of a dataclass a `ConfigError` that names those there are."""
    build: Any = kind.__init__
    allowed = [field.name for field in fields(kind)]  # type: ignore[arg-type]

    @wraps(build)
    def checked(self: T, *args: Any, **options: Any) -> None:
        check_keys(options, allowed, kind.__name__)
        build(self, *args, **options)

    kind.__init__ = checked  # type: ignore[assignment, method-assign]
    return kind


def check_num_threads(num_threads: object) -> None:
    """Check a number of compute threads.

    Raises:
        ConfigError: It is not an integer from 1 to some multiple of the CPUs: libraries end the process if they cannot
            start their threads.
    """
    most = max(64, 4 * (os.cpu_count() or 1))
    if not is_integer(num_threads) or not 1 <= num_threads <= most:
        given = reprlib.repr(num_threads)
        raise ConfigError(f"num_threads is {given}; expected an integer of at least 1, and at most {most}")
