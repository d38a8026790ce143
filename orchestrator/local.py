"""LocalOrchestrator: all agents, and all environments in one slice, in this process."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from orchestrator.base import (
    Plan,
    Recovered,
    Result,
    build_environments,
    check_num_threads,
    check_replay_limit,
    close_environments,
    failure_here,
    names_keys,
)
from orchestrator.merge import share_outcome
from workers.envs.statistics import Statistics
from workers.errors import WorkerError, build_error, close_all, close_or_log
from workers.members import is_factory
from workers.scope.agent_group import AgentGroup
from workers.scope.agent_runner import AgentRunner
from workers.scope.worker import ScopeWorker
from workers.storage.snapshot import Snapshot
from workers.threads import thread_variables
from workers.types import Description, Outcome, Phase, Tick

__all__ = ["LocalOrchestrator"]

T = TypeVar("T")


@names_keys
@dataclass(frozen=True, kw_only=True)
class LocalOrchestrator:
    """The default orchestrator, which runs all scopes in this process."""

    num_threads: int = 1
    """Number of compute threads while the trainer works. Each call sets it and restores the previous number afterwards.
    XLA fixes its threads when it starts, and keeps this number for the rest of the process."""

    replay_limit: int = 10_000
    """Most actions of an episode that are kept, so that `StepTrainer.load` can repeat the episode where there is no
    other way to restore an environment. 0 keeps none."""

    def __post_init__(self) -> None:
        check_num_threads(self.num_threads)
        check_replay_limit(self.replay_limit)

    def start(self, plan: Plan) -> LocalSession:
        """Build the environments and agents."""
        with thread_variables(self.num_threads):
            return LocalSession(plan, replay_limit=self.replay_limit)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Keep a KeyboardInterrupt that comes while Python deletes an object, and would discard it.

    Yields:
        A function that raises it then, and otherwise returns True.
    """
    lost: list[type[BaseException]] = []
    before = sys.unraisablehook

    def note(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            lost.append(unraisable.exc_type)
        else:
            before(unraisable)

    def goes_on() -> bool:
        if lost:
            raise lost[0]
        return True

    sys.unraisablehook = note
    try:
        yield goes_on
    finally:
        sys.unraisablehook = before


class LocalSession:
    """The environments and agents in this process; see `orchestrator.base.Session`."""

    def __init__(self, plan: Plan, *, replay_limit: int) -> None:
        self._plan = plan
        self._submitted: deque[tuple[Tick, int]] = deque()
        self._env_slice = build_environments(plan, replay_limit=replay_limit)
        self.env = self._env_slice.env
        self._runners: list[AgentRunner] = []
        try:
            self._build_runners()
        except BaseException:
            close_or_log("what was built before", lambda: self.close(close_environment=False))
            raise
        self._agents = AgentGroup(self._runners, plan.framework)
        self._worker = ScopeWorker(self._env_slice, self._agents, plan.framework, scopes=plan.scopes)
        self.recoveries: Sequence[Recovered] = ()
        self.workers: Sequence[Description] = [runner.describe(self._env_slice.notes) for runner in self._runners]

    def _build_runners(self) -> None:
        plan, failures, cause = self._plan, [], None
        space = self._env_slice.observation_space
        for agent, scope in zip(plan.agents, plan.scopes, strict=True):
            try:
                runner = AgentRunner(
                    agent,
                    scope,
                    plan.framework,
                    cfg=plan.cfg,
                    observation_space=space,
                    action_space=self._env_slice.action_space,
                    keeps_files=not is_factory(agent),
                )
                self._runners.append(runner)
            except Exception as error:
                cause = error
                failures.append(failure_here(error, scope.index, scope.rows, Phase.BUILD))
        if failures:
            raise build_error(failures) from cause

    def check(self) -> None:
        """Do nothing: iterations can always go on."""

    def submit(self, tick: Tick, count: int = 1) -> None:
        """Record iterations; `result` runs them."""
        self._submitted.append((tick, count))

    def result(self) -> Outcome:
        """Run the oldest submission and return the outcome of its last iteration."""
        with _interruptible() as goes_on:
            outcome = self._worker.run(*self._submitted.popleft(), goes_on=goes_on)
            goes_on()
        return share_outcome(outcome, self._plan.scopes, self._plan.framework)

    def restart(self) -> None:
        """Make the next iteration reset the environments."""
        self._worker.restart()

    def collect(self) -> list[dict[str, float]]:
        """Return the scalars of each scope since the last call, by tag."""
        return self._worker.collect()

    def agents(self) -> list[Any]:
        """Return the agent of each scope."""
        return [runner.agent for runner in self._runners]

    def agent_files(self, scopes: Collection[int]) -> dict[int, tuple[str, bytes]]:
        """Return the name and content of the agent files of some scopes."""
        return self._agents.agent_files(scopes)

    def load_agent_files(self, files: Mapping[int, tuple[str, bytes]]) -> None:
        """Load agent files into the agents of some scopes."""
        self._agents.load_agent_files(files)

    def hyperparameters(self) -> list[dict[str, float]]:
        """Return the hyper-parameters of each scope's agent."""
        return self._agents.hyperparameters()

    def set_hyperparameters(self, scope: int, values: Mapping[str, float]) -> None:
        """Change hyper-parameters of the agent of one scope."""
        self._agents.set_hyperparameters(scope, values)

    def statistics(self) -> list[Statistics]:
        """Return the running statistics of each row's wrappers."""
        return self._worker.statistics()

    def snapshot(self, *, allow_pickle: bool) -> Snapshot:
        """Return the whole state of all scopes."""
        return self._worker.snapshot(allow_pickle=allow_pickle)

    def stage(self, snapshot: Snapshot) -> None:
        """Check that a snapshot fits all scopes, and keep it for `restore`."""
        self._worker.stage(snapshot)

    def restore(self) -> None:
        """Go on from the snapshot of `stage`."""
        self._worker.restore()

    def beside(self, function: Callable[[], T]) -> Result[T]:
        """Compute a function at once."""
        return _Known(function())

    def close(self, *, close_environment: bool) -> None:
        """Close environments that were built here; close one that the user passed only if asked to."""
        closers: list[tuple[str, Callable[[], object]]] = [
            (f"the agent of scope {runner.scope.index}", partial(_release, runner)) for runner in self._runners
        ]
        if self._env_slice.built or close_environment:
            closers.append(("the environments", partial(close_environments, self.env, self._plan)))
        close_all(closers)


@dataclass(frozen=True)
class _Known(Generic[T]):
    """A result that is known; see `orchestrator.base.Result`."""

    value: T

    def is_known(self) -> bool:
        return True

    def wait(self) -> T:
        return self.value

    def cancel(self) -> None:
        pass


def _release(runner: AgentRunner) -> None:
    try:
        runner.release()
    except Exception as error:
        raise WorkerError([failure_here(error, runner.scope.index, runner.scope.rows, Phase.CLOSE)]) from error
