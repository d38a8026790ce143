"""ScopeWorker: environments and their agents; it does a whole iteration. The one body of every mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from workers.by_agent import concatenate_rows
from workers.errors import Failure, WorkerError
from workers.frameworks import Framework
from workers.node import node_name
from workers.scope.env_slice import EnvSlice
from workers.types import Arrays, Outcome, Phase, Tick, Transition

__all__ = ["Agents", "ScopeWorker"]


class Agents(Protocol):
    """The agents of the rows of an `EnvSlice`, wherever they live: in this process or in Ray actors."""

    def act(
        self, tick: Tick, observations: Arrays, states: Arrays | None, infos: dict[str, Any] | None
    ) -> Sequence[Arrays]:
        """Actions of every agent, in scope order; `infos` as `EnvSlice.begin` gives them.

        Raises:
            WorkerError: Some failed; all of them are reported.
        """

    def learn(self, tick: Tick, transition: Transition) -> None:
        """Hand every agent its rows of the transition.

        Raises:
            WorkerError: Some failed; all of them are reported.
        """

    def collect(self) -> list[dict[str, float]]:
        """Scalars of every agent since the last call, by tag, in scope order.

        Raises:
            WorkerError: Some failed; all of them are reported.
        """

    def restart(self) -> None:
        """The next iteration acts on other observations than those that the last one led to."""


class ScopeWorker:
    """Environments and their agents.

    In local mode there is one of them, with all environments and all agents; in sharded mode one per scope, in a Ray
    actor; in shared mode one on the driver, whose agents are in Ray actors.
    """

    def __init__(
        self,
        env_slice: EnvSlice,
        agents: Agents,
        framework: Framework,
        *,
        scope: int | None,
        first_env: int = 0,
        pack: Callable[[Outcome], Any] = lambda outcome: outcome,
    ) -> None:
        """Put them together.

        Args:
            env_slice: The environments.
            agents: The agents of all their rows.
            framework: The trainer's framework.
            scope: Index of the scope, None if there are several.
            first_env: First row in the full batch.
            pack: Makes of an outcome what `run` returns, before the agents record the transition: what they do to
                their arrays does not change it.
        """
        self.env_slice = env_slice
        self.agents = agents
        self._framework = framework
        self._scope = scope
        self._rows = (first_env, first_env + env_slice.num_envs)
        self._pack = pack

    def run(self, tick: Tick, count: int, *, goes_on: Callable[[], bool] = lambda: True) -> Any:
        """Do `count` iterations, the first of which is `tick`.

        Args:
            tick: The first iteration.
            count: Number of iterations, 1 or more.
            goes_on: Called between iterations: whether to go on.

        Returns:
            What the last iteration gives, packed; None if they did not go on.

        Raises:
            WorkerError: Something failed; says where.
        """
        mode, timestep, timesteps = tick
        for _ in range(count - 1):
            self._iterate(tick, is_last=False)
            if not goes_on():
                return None
            timestep += 1
            tick = Tick(mode, timestep, timesteps)
        return self._iterate(tick, is_last=True)

    def _iterate(self, tick: Tick, is_last: bool) -> Any:
        env_slice = self.env_slice
        try:
            observations, states, infos = env_slice.begin()
            env_slice.phase = Phase.ACT
            actions = concatenate_rows(self.agents.act(tick, observations, states, infos), self._framework)
            outcome, transition = env_slice.step(actions)
            packed = self._pack(outcome) if is_last else None
            env_slice.render(tick.timestep)
            self.agents.learn(tick, transition)
            env_slice.advance(outcome)
        except WorkerError:
            raise
        except Exception as error:
            raise WorkerError([self._failure(error, tick.timestep)]) from error
        return packed

    def collect(self) -> list[dict[str, float]]:
        """Scalars since the last call, by tag: those of each agent, in scope order, with those of the environments.

        Raises:
            WorkerError: Something failed; says where.
        """
        shared = self.env_slice.scalars.drain()
        return [shared | scalars for scalars in self.agents.collect()]

    def restart(self) -> None:
        """Make the next iteration reset the environments."""
        self.env_slice.restart()
        self.agents.restart()

    def _failure(self, error: Exception, timestep: int) -> Failure:
        return Failure.of(
            error,
            scope=self._scope,
            rows=self._rows,
            phase=self.env_slice.phase.value,
            timestep=timestep,
            node=node_name(),
        )
