"""ScopeWorker: environments and their agents; every mode runs its iterations through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from workers.by_agent import concatenate_rows, map_arrays
from workers.envs.statistics import Statistics, read_statistics
from workers.errors import Failure, WorkerError, marked_row
from workers.frameworks import Framework
from workers.node import node_name
from workers.scalars import prefix_of
from workers.scope.env_slice import EnvSlice
from workers.storage.snapshot import Part, Snapshot
from workers.types import Arrays, Outcome, Phase, Scope, Tick, Transition

__all__ = ["Agents", "ScopeWorker"]


class Agents(Protocol):
    """The agents of the rows of an `EnvSlice`, in this process or in Ray actors."""

    def act(
        self, tick: Tick, observations: Arrays, states: Arrays | None, infos: dict[str, Any] | None
    ) -> Sequence[Arrays]:
        """Return the actions of every agent, in scope order; `infos` are those of `EnvSlice.begin`.

        Raises:
            WorkerError: Some agents failed; all failures are reported.
        """

    def learn(self, tick: Tick, transition: Transition) -> None:
        """Pass every agent its rows of the transition.

        Raises:
            WorkerError: Some agents failed; all failures are reported.
        """

    def collect(self) -> list[dict[str, float]]:
        """Return the scalars of every agent since the last call, by tag, in scope order.

        Raises:
            WorkerError: Some agents failed; all failures are reported.
        """

    def restart(self) -> None:
        """Prepare for an iteration that does not continue from the last one."""

    def snapshot(self, *, allow_pickle: bool) -> Sequence[Part]:
        """Return the whole state of every agent, in scope order; with pickle only if `allow_pickle`.

        Raises:
            WorkerError: States cannot be kept; all failures are reported.
        """

    def stage(self, parts: Sequence[Part]) -> None:
        """Check that snapshots fit, and keep them for `restore`; no agent changes.

        Raises:
            WorkerError: Some do not fit; all failures are reported.
        """

    def restore(self) -> None:
        """Go on from the snapshots of `stage`."""


class ScopeWorker:
    """Environments and their agents.

    In local mode there is one worker, with all environments and all agents; in sharded mode one per scope, in a Ray
    actor; in shared mode one in the driver, whose agents are in Ray actors.

    Attributes:
        env_slice: The environments.
        agents: The agents of all their rows.
        timestep: Timestep of the last iteration.
    """

    def __init__(
        self,
        env_slice: EnvSlice,
        agents: Agents,
        framework: Framework,
        *,
        scopes: Sequence[Scope],
        pack: Callable[[Outcome], Any] = lambda outcome: outcome,
    ) -> None:
        """Build the worker.

        Args:
            env_slice: The environments.
            agents: The agents of all their rows.
            framework: The trainer's framework.
            scopes: The scopes of the agents, whose rows are those of the environments.
            pack: Converts an outcome to the result of `run`, before the agents record the transition: their changes to
                arrays do not affect it.
        """
        self.env_slice = env_slice
        self.agents = agents
        self.timestep = 0
        self._framework = framework
        self._scopes = scopes
        self._pack = pack

    def run(self, tick: Tick, count: int, *, goes_on: Callable[[], bool] = lambda: True) -> Any:
        """Run `count` iterations, starting with `tick`.

        Args:
            tick: The first iteration.
            count: Number of iterations, at least 1.
            goes_on: Called between iterations; returns whether to continue.

        Returns:
            The packed outcome of the last iteration; None if `goes_on` stopped the run.

        Raises:
            WorkerError: Something failed; the error says where.
        """
        mode, timestep, timesteps = tick
        self.env_slice.scalars.prefix = prefix_of(mode)
        for _ in range(count - 1):
            self._iterate(tick, is_last=False)
            if not goes_on():
                return None
            timestep += 1
            tick = Tick(mode, timestep, timesteps)
        return self._iterate(tick, is_last=True)

    def _iterate(self, tick: Tick, is_last: bool) -> Any:
        env_slice = self.env_slice
        self.timestep = tick.timestep
        try:
            observations, states, infos = env_slice.begin()
            env_slice.phase = Phase.ACT
            actions = self._joined(self.agents.act(tick, observations, states, infos), observations)
            outcome, transition = env_slice.step(actions, tick.timestep)
            packed = self._pack(outcome) if is_last else None
            env_slice.render(tick.timestep)
            env_slice.phase = Phase.RECORD
            self.agents.learn(tick, transition)
            env_slice.advance(outcome)
        except WorkerError:
            raise
        except Exception as error:
            raise WorkerError([self._failure(error, tick.timestep)]) from error
        return packed

    def _joined(self, parts: Sequence[Arrays], observations: Arrays) -> Arrays:
        """Return the actions of all agents on the device of the observations: agents may have devices of their own."""
        framework = self._framework
        if not framework.has_devices():
            return concatenate_rows(parts, framework)
        first = next(iter(observations.values())) if isinstance(observations, dict) else observations
        device, to_device = framework.device_of(first), framework.to_device
        moved = [map_arrays(lambda array: to_device(array, device), part) for part in parts]
        return concatenate_rows(moved, framework)

    def collect(self) -> list[dict[str, float]]:
        """Return the scalars since the last call, by tag: of each agent, in scope order, with the environments'.

        Raises:
            WorkerError: Something failed; the error says where.
        """
        with self._asking():
            shared = self.env_slice.collect()
        return [shared | scalars for scalars in self.agents.collect()]

    def statistics(self) -> list[Statistics]:
        """Return the running statistics of each row's wrappers; see `workers.envs.statistics`.

        Raises:
            WorkerError: Something failed; the error says where.
        """
        self.env_slice.phase = Phase.STORE
        with self._asking():  # those of an AsyncVectorEnv, in other processes
            return read_statistics(self.env_slice.env)

    def restart(self) -> None:
        """Make the next iteration reset the environments."""
        self.env_slice.restart()
        self.agents.restart()

    def snapshot(self, *, allow_pickle: bool) -> Snapshot:
        """Return the whole state between two iterations: of the agents, the environments, and all random streams.

        It is kept by agent and by row, so that a worker with other scopes, in any mode, can go on from it.

        Args:
            allow_pickle: Whether to pickle what does not offer its state as plain data.

        Raises:
            WorkerError: The state cannot be kept.
        """
        agents = tuple(self.agents.snapshot(allow_pickle=allow_pickle))
        with self._asking():
            return Snapshot(agents, self.env_slice.snapshot(self._scopes, allow_pickle=allow_pickle))

    def stage(self, snapshot: Snapshot) -> None:
        """Check that a snapshot fits, and keep it for `restore`; nothing changes.

        Args:
            snapshot: The parts of these agents and rows.

        Raises:
            WorkerError: It does not fit.
        """
        with self._asking():
            self.env_slice.stage(snapshot.envs)
        self.agents.stage(snapshot.agents)

    def restore(self, *, is_exact: bool = False) -> bool:
        """Go on from the snapshot of `stage`; random streams are restored last.

        Args:
            is_exact: Whether episodes that cannot be restored are an error.

        Returns:
            Whether all episodes go on; else, some are truncated in the next step.

        Raises:
            WorkerError: Something failed half-way; this worker cannot be used any more.
        """
        with self._asking():
            goes_on = self.env_slice.restore(is_exact=is_exact)
        self.agents.restore()
        return goes_on

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Report an error of the environments outside of an iteration."""
        try:
            yield
        except Exception as error:
            raise WorkerError([self._failure(error, None)]) from error

    def _failure(self, error: Exception, timestep: int | None) -> Failure:
        scopes, row, first = self._scopes, marked_row(error), self._scopes[0].start
        if row is not None:
            scopes = [scope for scope in scopes if scope.start <= first + row < scope.stop]
        return Failure.of(
            error,
            scope=scopes[0].index if len(scopes) == 1 else None,
            rows=(first, self._scopes[-1].stop),
            phase=self.env_slice.phase.value,
            timestep=timestep,
            node=node_name(),
        )
