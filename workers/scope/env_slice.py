"""EnvSlice: rows of the vectorised environments, with their current observations and states."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from workers.by_agent import map_arrays
from workers.envs import EnvFactory, MultiAgentEnvWrapper, Wrapper
from workers.envs.checking import check_wrapped, is_multi_agent
from workers.envs.making import build_rows
from workers.envs.outputs import EnvChecks
from workers.envs.samples import checked_reset, checked_step
from workers.errors import close_or_log
from workers.frameworks import Framework
from workers.generators import DrawWatch
from workers.info_rows import check_infos
from workers.scalars import Scalars
from workers.seeding import skrl_key
from workers.types import Arrays, Outcome, Phase, Transition

__all__ = ["EnvSlice"]


class EnvSlice:
    """Environments ``first_env`` to ``first_env + num_envs`` of the full batch.

    One iteration::

        observations, states, infos = env_slice.begin()
        outcome, transition = env_slice.step(actions)
        env_slice.render(timestep)
        env_slice.advance(outcome)

    Attributes:
        env: The environments.
        num_envs: Number of rows.
        phase: Current phase, or the phase that failed.
        notes: Notes that Lockstep logs once per run.
        scalars: Durations of rendering and resetting.
    """

    def __init__(
        self,
        env: Any,
        framework: Framework,
        *,
        cfg: Any,
        seed: int | None = None,
        num_envs: int | None = None,
        first_env: int = 0,
    ) -> None:
        """Take an environment, or build it.

        Args:
            env: The environment of these rows, or its factory.
            framework: The trainer's framework.
            cfg: The trainer's configuration.
            seed: The trainer's seed.
            num_envs: Number of rows to build; all rows of the factory if None. Not used for an environment.
            first_env: First row in the full batch.
        """
        self.phase = Phase.BUILD
        self.scalars = Scalars()
        built = isinstance(env, EnvFactory)
        if built:
            rows = env.num_envs if num_envs is None else num_envs
            env = build_rows(env, rows, first_env, framework=framework.name, seed=seed)
        check_wrapped(env, framework.name)
        self.env = env
        self.built = built
        self.num_envs = int(env.num_envs)
        self._framework = framework
        self._no_grad = framework.no_grad()
        self._first_env = first_env
        self._seed = seed
        self._timestep = 0
        self._watch = None if seed is None else DrawWatch(framework)
        self._render_interval = 0 if cfg.headless else cfg.render_interval
        self._ours = isinstance(env, (Wrapper, MultiAgentEnvWrapper))
        self.notes = self._notes()
        # a foreign object with one environment needs explicit resets: everything else resets itself in step
        self._resets_explicitly = self.num_envs == 1 and not self._ours and not built
        self._is_multi_agent = is_multi_agent(env)
        self._checks = EnvChecks(env, framework)
        self._prove_reset_mask()
        self._observations: Arrays | None = None
        self._states: Arrays | None = None
        self._next_states: Arrays | None = None
        self._reset_infos: dict[str, Any] | None = None

    def _prove_reset_mask(self) -> None:
        prove = getattr(self.env, "prove_reset_mask", None)
        if prove is not None and self._seed is not None:
            try:
                prove(seed=self._seed + self._first_env, first_env=self._first_env)
            except BaseException:
                if self.built:
                    close_or_log("the environments", self.env.close)
                raise

    def _notes(self) -> tuple[str, ...]:
        kind = type(self.env)
        if self._ours or self._seed is None or kind.__module__.startswith("skrl."):
            return ()
        return (
            f"{kind.__qualname__} is another library's wrapper: its reset() is called without a seed, so its random "
            "numbers depend on the trainer's seed only if its factory seeds it from first_env",
        )

    @property
    def gives_arrays_away(self) -> bool:
        """Whether the environments' arrays are not shared once they are packed."""
        return bool(vars(type(self.env)).get("gives_arrays_away")) and self._ours  # not inherited by a subclass

    @property
    def observation_space(self) -> Any:
        """Observation space of one environment; by agent name in a multi-agent environment."""
        return dict(self.env.observation_spaces) if self._is_multi_agent else self.env.observation_space

    @property
    def action_space(self) -> Any:
        """Action space of one environment; by agent name in a multi-agent environment."""
        return self.env.action_spaces if self._is_multi_agent else self.env.action_space

    def begin(self) -> tuple[Arrays, Arrays | None, dict[str, Any] | None]:
        """Return the observations and states to act on, and their infos if they are from a reset.

        The infos are None if the observations are from the last step. Without current observations, it resets first.
        """
        if self._observations is None:
            self._reset()
        infos, self._reset_infos = self._reset_infos, None
        return self._observations, self._states, infos

    def step(self, actions: Arrays, timestep: int) -> tuple[Outcome, Transition]:
        """Step the environments; return the outcome of the iteration and the transition for the agents.

        Raises:
            EnvError: The environments returned something odd; see `EnvChecks`.
        """
        self.phase = Phase.STEP
        self._timestep = timestep
        watch = self._watch
        with self._no_grad:
            if watch is not None:
                watch.start()
            start = perf_counter()
            observations, rewards, terminated, truncated, infos = checked_step(self.env.step(actions))
            states = self.env.state()
            step_time = (perf_counter() - start) * 1e3
            if watch is not None:
                self._watch = watch.stop()
            infos = check_infos(infos, self._checks.name)
            outcome = Outcome(observations, rewards, terminated, truncated, infos)
            transition = self._checks.transition(outcome, states, timestep=timestep, step_time=step_time)
            self._next_states = states
        return outcome, transition

    def render(self, timestep: int) -> None:
        """Render, if the configuration requests it at this timestep."""
        if self._render_interval and not timestep % self._render_interval:
            self.phase = Phase.RENDER
            start = perf_counter()
            with self._no_grad:
                self.env.render()
            self.scalars.add("Stats / Rendering time (ms)", (perf_counter() - start) * 1e3)

    def advance(self, outcome: Outcome) -> None:
        """Make the outcome's observations current; reset a foreign single environment if it has ended."""
        if self._resets_explicitly and self._has_ended(outcome):
            self._reset()
        else:
            self._observations, self._states = outcome.observations, self._next_states

    def collect(self) -> dict[str, float]:
        """Return the durations since the last call, by tag.

        Raises:
            EnvError: On a device, an earlier step was not finite.
        """
        self.phase = Phase.COLLECT
        self._checks.read()
        return self.scalars.drain()

    def _has_ended(self, outcome: Outcome) -> bool:
        if self._is_multi_agent:
            return not self.env.agents
        to_numpy = self._framework.to_numpy
        return bool(to_numpy(outcome.terminated).any() or to_numpy(outcome.truncated).any())

    def restart(self) -> None:
        """Discard the current observations: the next iteration resets the environments."""
        self._observations = self._states = None

    def close(self) -> None:
        """Close the environments."""
        self.env.close()

    def _reset(self) -> None:
        self.phase = Phase.RESET
        start, watch = perf_counter(), self._watch
        with self._no_grad:
            if watch is not None:
                watch.start()
            if self._ours and self._seed is not None:
                observations, infos = checked_reset(self.env.reset(seed=self._seed + self._first_env))
            else:
                with skrl_key(self._framework.name, None if self._seed is None else self._seed + self._first_env):
                    observations, infos = checked_reset(self.env.reset())
            if watch is not None:
                self._watch = watch.stop()
            self._seed = None  # only the first reset seeds: later ones continue the random generators
            states = self.env.state()
            infos = check_infos(infos, self._checks.name)
            self._checks.check_reset(observations, states, infos, self._timestep)
            # a copy: an environment may always write its observations to the same array
            self._observations, self._states = map_arrays(self._framework.copy, observations), states
            self._reset_infos = infos
        self.scalars.add("Stats / Resetting time (ms)", (perf_counter() - start) * 1e3)
