"""EnvSlice: rows of the vectorised environments, with their current observations and states."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from numpy.random import SeedSequence

from workers.by_agent import map_arrays
from workers.envs import EnvFactory, MultiAgentEnvWrapper, Wrapper
from workers.envs.checking import check_wrapped, is_multi_agent
from workers.envs.making import build_rows
from workers.envs.outputs import EnvChecks
from workers.envs.samples import checked_reset, checked_step
from workers.envs.states import (
    NOT_KEPT,
    EnvState,
    check_state,
    prepare_state,
    read_state,
    set_replay_limit,
    write_state,
)
from workers.errors import AgentError, CheckpointError, close_or_log, message_of
from workers.frameworks import Framework
from workers.generators import DrawWatch
from workers.info_rows import check_infos
from workers.scalars import Scalars
from workers.scope.env_state import Rows, SliceState, cut_outcome, join_parts, split_parts
from workers.seeding import skrl_key
from workers.storage.snapshot import Part, decode_part, encode_part
from workers.types import Arrays, Outcome, Phase, Scope, Transition

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
        replay_limit: int = 10_000,
        pickler: type[pickle.Pickler] = pickle.Pickler,
    ) -> None:
        """Take an environment, or build it.

        Args:
            env: The environment of these rows, or its factory.
            framework: The trainer's framework.
            cfg: The trainer's configuration.
            seed: The trainer's seed.
            num_envs: Number of rows to build; all rows of the factory if None. Not used for an environment.
            first_env: First row in the full batch.
            replay_limit: Most actions of a copy's episode that are kept, to repeat it; see `workers.envs.states`.
            pickler: Pickles environments whose state only pickle can hold.
        """
        self.phase = Phase.BUILD
        self.scalars = Scalars()
        built = isinstance(env, EnvFactory)
        if built:
            rows = env.num_envs if num_envs is None else num_envs
            env = build_rows(env, rows, first_env, framework=framework.name, seed=seed)
        check_wrapped(env, framework.name)
        set_replay_limit(env, replay_limit)
        self.env = env
        self.built = built
        self.num_envs = int(env.num_envs)
        self._framework = framework
        self._pickler = pickler
        self._no_grad = framework.no_grad()
        self._first_env = first_env
        self._seed = self._first_seed = seed
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
        self._was_reset = False
        self._lost: EnvState | None = None  # could not be restored: the episodes are truncated in the next step
        self._staged: SliceState | None = None

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
        if self._lost is not None:
            return self._cut(timestep)
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
        self._observations = self._states = self._lost = None

    def snapshot(self, scopes: Sequence[Scope], *, allow_pickle: bool) -> dict[Rows, Part]:
        """Return the state between two iterations, by the rows of scopes, or of all if it can only be kept whole.

        Args:
            scopes: The scopes that share these environments.
            allow_pickle: Whether to pickle environments that can be kept in no other way.

        Raises:
            CheckpointError: The state cannot be kept.
            EnvError: On a device, an earlier step was not finite.
        """
        self.phase = Phase.STORE
        self._checks.read()
        env = self._lost
        if not self._was_reset:
            prepare_state(self.env, self._framework, allow_pickle=allow_pickle)
        elif env is None:
            env = read_state(self.env, self._framework, allow_pickle=allow_pickle)
        kept = self._observations, self._states, self._checks.alive, self._reset_infos
        state = SliceState(self._spaces, env, *kept, self.scalars.state())
        return {
            rows: encode_part(tree, self._framework, allow_pickle=allow_pickle, what=_what(rows), pickler=self._pickler)
            for rows, tree in split_parts(state, [scope.rows for scope in scopes]).items()
        }

    def stage(self, parts: Mapping[Rows, Part]) -> None:
        """Check that the parts of a snapshot fit, and keep them for `restore`; nothing changes.

        Raises:
            CheckpointError: They do not fit.
        """
        self.phase = Phase.STORE
        rows = (self._first_env, self._first_env + self.num_envs)
        trees = {rows: decode_part(part, self._framework, what=_what(rows)) for rows, part in parts.items()}
        try:
            state = join_parts(trees, rows, self._framework)
            if state.spaces != self._spaces:
                raise ValueError(f"it is for the spaces {state.spaces}; expected {self._spaces}")
            Scalars().load(state.scalars)
            if state.env is not None:
                check_state(self.env, self._framework, state.env)
            if state.observations is not None:
                checks = EnvChecks(self.env, self._framework)
                checks.check_reset(state.observations, state.states, {"alive": state.alive}, self._timestep)
                checks.read()
        except CheckpointError:
            raise
        except Exception as error:
            told = f"{type(error).__name__}: {message_of(error)}"
            raise CheckpointError(f"the checkpoint does not fit {_what(rows)}: {told}") from error
        self._staged = state

    def restore(self, *, is_exact: bool = False) -> bool:
        """Go on from the snapshot of `stage`. Rows whose episode cannot go on are truncated in the next step.

        Args:
            is_exact: Whether such rows are an error.

        Returns:
            Whether there are none.

        Raises:
            CheckpointError: There are some, and must not be.
        """
        self.phase = Phase.STORE
        state, self._staged = self._staged, None
        assert state is not None, "restore() must follow stage()"
        self._was_reset, self._lost = state.env is not None, None
        self._checks.forget()
        self._observations, self._states = self._on_device(state.observations), self._on_device(state.states)
        self._reset_infos = state.reset_infos
        self.scalars.load(state.scalars)
        if state.env is None:
            self._seed = self._first_seed
            return True
        self._seed = None
        with self._no_grad:
            lost = write_state(self.env, self._framework, state.env)
        if state.observations is None:  # a reset follows in any case
            return True
        if is_exact and lost.any():
            rows = (np.flatnonzero(lost) + self._first_env).tolist()
            raise CheckpointError(f"environments {rows} of the lost worker cannot be restored exactly")
        self._checks.check_reset(state.observations, state.states, {"alive": state.alive}, self._timestep)
        if state.env.rows is None and lost.all():
            self._lost = state.env
        return not lost.any()

    def _on_device(self, arrays: Arrays | None) -> Arrays | None:
        """Return arrays on the environments' own device, if they name one: agents' actions follow the observations."""
        if arrays is None or not hasattr(self.env, "device"):
            return arrays
        framework = self._framework
        try:
            device = framework.find_device(self.env.device)
        except AgentError:  # it means something else
            return arrays
        return map_arrays(lambda array: None if array is None else framework.to_device(array, device), arrays)

    def lose(self) -> None:
        """Truncate all episodes in the next step, because they do not go on as they did."""
        self.phase = Phase.STORE
        if self._observations is not None:
            self._lost = NOT_KEPT

    @property
    def _spaces(self) -> list[str]:
        return [str(self.observation_space), str(self.action_space)]

    def _cut(self, timestep: int) -> tuple[Outcome, Transition]:
        """Truncate all episodes without a step: with their last observations, and with those after a reset."""
        self._lost = None
        final, final_states, alive = self._observations, self._states, self._checks.alive
        infos: dict[str, Any] = {}
        if not self._resets_explicitly:  # else its reset follows
            if self._first_seed is not None:  # other episodes than those at the start of the run
                spawned = SeedSequence(self._first_seed, spawn_key=(2, timestep))
                self._seed = int(spawned.generate_state(1)[0])
            self._reset()
            infos, self._reset_infos = self._reset_infos or {}, None
        outcome = cut_outcome(final, final_states, self._observations, infos, alive, self._framework)
        self._next_states = self._states
        transition = Transition(
            outcome.rewards, final, final_states, outcome.terminated, outcome.truncated, outcome.infos, 0.0
        )
        return outcome, transition

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
            self._was_reset = True
            self._checks.check_reset(observations, states, infos, self._timestep)
            # a copy: an environment may always write its observations to the same array
            self._observations, self._states = map_arrays(self._framework.copy, observations), states
            self._reset_infos = infos
        self.scalars.add("Stats / Resetting time (ms)", (perf_counter() - start) * 1e3)


def _what(rows: Rows) -> str:
    return f"the environments of the rows {rows[0]}:{rows[1]}"
