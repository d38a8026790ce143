"""AgentGroup: the agents of several scopes in one process."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import repeat
from typing import Any

from workers.by_agent import row_splitter
from workers.errors import Failure, WorkerError
from workers.frameworks import Framework, Lane
from workers.infos import take_rows
from workers.node import node_name
from workers.scope.agent_runner import AgentRunner
from workers.storage.snapshot import Part
from workers.types import Arrays, Tick, Transition

__all__ = ["AgentGroup"]


class AgentGroup:
    """The agents of all rows of one `EnvSlice`, in this process.

    Those that share a GPU compute there at the same time, each in its lane.
    """

    def __init__(self, runners: Sequence[AgentRunner], framework: Framework, *, copies: bool = True) -> None:
        """Build the group.

        Args:
            runners: The agents, in scope order.
            framework: The trainer's framework.
            copies: Whether the agents get copies of arrays; not needed by a single agent whose arrays are not shared.
        """
        self.runners = runners
        self._framework = framework
        self._sizes = [runner.scope.num_envs for runner in runners]
        self._num_envs = sum(self._sizes)
        self._first_env = runners[0].scope.start
        self._nothing = (None,) * len(runners)
        self._copies = row_splitter(framework, self._sizes, by_agent=bool(runners[0].agents))
        self._split = self._copies if copies or len(runners) > 1 else lambda arrays: (arrays,)
        self._last_split: tuple[Arrays | None, Sequence[Any]] = (None, ())
        self._lanes = framework.lanes([getattr(runner.agent, "device", None) for runner in runners])

    def act(
        self, tick: Tick, observations: Arrays, states: Arrays | None, infos: dict[str, Any] | None
    ) -> Sequence[Arrays]:
        """Return the actions of every agent, in scope order."""
        split, rows = self._last_split
        if split is not observations:
            rows = self._copies(observations)
        # not the recorded next states: an agent may have changed them
        state_rows = self._nothing if states is None else self._copies(states)
        parts = self._nothing if infos is None else self._split_infos(infos)
        return self._each(AgentRunner.act, repeat(tick), rows, state_rows, parts)

    def learn(self, tick: Tick, transition: Transition) -> None:
        """Pass every agent its rows of the transition."""
        split = self._split
        rewards, next_observations, next_states, terminated, truncated, infos, step_time = transition
        rows = split(next_observations)
        # the next iteration usually acts on these observations
        self._last_split = (next_observations, rows)
        self._each(
            AgentRunner.learn,
            repeat(tick),
            split(rewards),
            rows,
            self._nothing if next_states is None else split(next_states),
            split(terminated),
            split(truncated),
            self._split_infos(infos),
            repeat(step_time),
        )

    def collect(self) -> list[dict[str, float]]:
        """Return the scalars of every agent since the last call, by tag."""
        return self._each(AgentRunner.collect)

    def agent_files(self, scopes: Collection[int]) -> dict[int, tuple[str, bytes]]:
        """Return the name and content of the files of the agents of some scopes, by scope."""
        files = self._each(lambda runner: runner.agent_file() if runner.scope.index in scopes else None)
        return {runner.scope.index: file for runner, file in zip(self.runners, files, strict=True) if file}

    def load_agent_files(self, files: Mapping[int, tuple[str, bytes]]) -> None:
        """Load files into the agents of some scopes; see `AgentRunner.load_agent_file`."""
        given = [files.get(runner.scope.index) for runner in self.runners]
        self._each(lambda runner, file: file and runner.load_agent_file(*file), given)

    def hyperparameters(self) -> list[dict[str, float]]:
        """Return the hyper-parameters of every agent; see `AgentRunner.hyperparameters`."""
        return self._each(AgentRunner.hyperparameters)

    def set_hyperparameters(self, scope: int, values: Mapping[str, float]) -> None:
        """Change hyper-parameters of the agent of one scope; see `AgentRunner.set_hyperparameters`."""
        self._each(lambda runner: runner.set_hyperparameters(values) if runner.scope.index == scope else None)

    def snapshot(self, *, allow_pickle: bool) -> Sequence[Part]:
        """Return the whole state of every agent; see `AgentRunner.snapshot`."""
        return self._each(lambda runner: runner.snapshot(allow_pickle=allow_pickle))

    def stage(self, parts: Sequence[Part]) -> None:
        """Check that snapshots fit, and keep them for `restore`; see `AgentRunner.stage`."""
        self._each(AgentRunner.stage, parts)

    def restore(self) -> None:
        """Go on from the snapshots of `stage`."""
        self._last_split = (None, ())
        self._each(AgentRunner.restore)

    def restart(self) -> None:
        """Prepare for an iteration that does not continue from the last one."""
        self._last_split = (None, ())
        for runner in self.runners:
            runner.restart()

    def _split_infos(self, infos: dict[str, Any]) -> list[dict[str, Any]]:
        if not infos:
            return [{} for _ in self.runners]
        first, scopes = self._first_env, (runner.scope for runner in self.runners)
        return [
            take_rows(infos, scope.start - first, scope.stop - first, self._num_envs, self._framework)
            for scope in scopes
        ]

    def _each(self, method: Callable[..., Any], *columns: Iterable[Any]) -> list[Any]:
        """Call `method` of every runner, even if one fails, so that every failed scope is reported."""
        results, failures, cause = [], [], None
        if self._lanes:
            calls = map(partial(_in_lane, method), self._lanes, self.runners, *columns)
        else:
            calls = map(method, self.runners, *columns)
        for runner in self.runners:
            try:
                results.append(next(calls))  # continues with the next runner after an error
            except Exception as error:
                cause = error
                failures.append(
                    Failure.of(
                        error,
                        scope=runner.scope.index,
                        rows=runner.scope.rows,
                        phase=runner.phase.value,
                        timestep=runner.timestep,
                        node=node_name(),
                    )
                )
        for lane in self._lanes:
            lane.join()
        if failures:
            raise WorkerError(failures) from cause
        return results


def _in_lane(method: Callable[..., Any], lane: Lane, *args: Any) -> Any:
    with lane:
        return method(*args)
