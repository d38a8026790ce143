"""A `MultiAgentEnvWrapper` of PettingZoo environments: copies stepped in turn, as one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar, get_args

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.spaces.utils import flatdim
from gymnasium.vector.utils import batch_space, iterate

from workers.copying import copy_containers
from workers.envs.base import MultiAgentEnvWrapper
from workers.envs.sample_rows import SampleRows
from workers.envs.states.log import ActionLog
from workers.envs.team_copy import ByAgent, TeamCopy, as_parallel, check_alike, reserved_keys
from workers.errors import EnvError, close_all, mark_row
from workers.frameworks import load_framework
from workers.info_rows import merge_rows
from workers.spaces import action_width, check_space, mask_columns, native_actions
from workers.types import Array

__all__ = ["PettingZooWrapper", "States"]

NumpyArray = npt.NDArray[Any]
States = Literal["own", "joint", "none"]
T = TypeVar("T")


class PettingZooWrapper(MultiAgentEnvWrapper):
    """Copies of a PettingZoo environment, each with its own generator.

    PettingZoo converts AEC environments to Parallel ones. In an AEC environment that is not parallelizable (a
    turn-based game), only the agent to move is alive.

    Every array has a row for each copy, whether or not the agent is in it:

    - In the step in which an agent ends, its row is its true final observation and its flag is True. Later rows are
      zero, with both flags False. An agent that leaves without a flag and does not return ends when its copy is reset:
      it is truncated if it has an observation then, else terminated.
    - A copy is reset in the step in which no agent is left alive. Its rows are then those after the reset. The true
      final ones are in ``infos["final_obs"][agent]`` (and ``infos["final_state"][agent]``), valid where
      ``infos["_final_obs"]`` is True.
    - ``infos["alive"][agent]``, ``(num_envs, 1)`` bool, is present after every step and reset. It marks the copies in
      which the agent acts in the next step; actions in other rows are ignored.
    - Each agent that acts must get a reward and both flags. The only exception is an agent that leaves ``agents`` in
      that step and is in none of the outputs.

    Observations and actions are flat, as in `workers.envs.gymnasium.GymnasiumWrapper`. If an observation space is a
    Dict with an ``action_mask``, the mask is also in ``infos[agent]["action_mask"]``, ``(num_envs, n)`` bool. States
    are flat, float32 and the same for all agents.

    Attributes:
        envs: The copies, as Parallel environments.
    """

    gives_arrays_away = True
    dead_rows_are_zero = True

    def __init__(self, envs: Sequence[Any], *, framework: str, states: States = "own") -> None:
        """Wrap the copies.

        Args:
            envs: Parallel or AEC environments, all of the same kind.
            framework: Name of the framework whose arrays the wrapper takes and returns.
            states: ``"own"``: the results of ``state()``, if the copies have a ``state_space``. ``"joint"``: the
                concatenated observations of all agents. ``"none"``: no states.

        Raises:
            EnvError: A space does not have a fixed flat width, `possible_agents` is empty or has unsuitable names, the
                copies differ in agents or spaces, or `states` is unknown.
        """
        self.framework = framework
        self._framework = load_framework(framework)
        self.envs = copies = [as_parallel(env) for env in envs]
        first = copies[0]
        self._name = str(first)
        self.num_envs = len(copies)
        self.possible_agents = _checked_names(first, self._name)
        self._copies = [TeamCopy(env, frozenset(self.possible_agents)) for env in copies]
        self.observation_spaces = {name: first.observation_space(name) for name in self.possible_agents}
        self.action_spaces = {name: first.action_space(name) for name in self.possible_agents}
        for kind, spaces in (("observation", self.observation_spaces), ("action", self.action_spaces)):
            for name, space in spaces.items():
                check_space(space, f"{self._name}: {kind} space of {name!r}")
        for row, env in enumerate(copies):
            check_alike(env, row, self._name, self.observation_spaces, self.action_spaces)
        self._action_widths = {name: action_width(space) for name, space in self.action_spaces.items()}
        self._batch_spaces = {name: batch_space(space, len(envs)) for name, space in self.action_spaces.items()}
        self._masks = {name: mask_columns(space) for name, space in self.observation_spaces.items()}
        if states not in get_args(States):
            raise EnvError(f"{self._name}: states is {states!r}; expected one of {', '.join(get_args(States))}")
        self._native_state_space: Any = getattr(first, "state_space", None) if states == "own" else None
        if self._native_state_space is not None:
            check_space(self._native_state_space, f"{self._name}: state space")
        self._has_joint_states = states == "joint"
        self._joint_states: NumpyArray | None = None
        self.log = ActionLog(len(copies))
        self._shown: dict[str, SampleRows] = {}

    @property
    def agents(self) -> list[str]:
        """Names of the agents that are alive in any copy."""
        return [name for name in self.possible_agents if any(name in copy.members for copy in self._copies)]

    @property
    def state_spaces(self) -> dict[str, gymnasium.Space[Any] | None]:
        """State space of each agent in one copy; None if there are no states."""
        space = self._native_state_space
        if self._has_joint_states:
            width = sum(flatdim(space) for space in self.observation_spaces.values())
            space = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float32)
        return dict.fromkeys(self.possible_agents, space)

    def reset(self, *, seed: int | None = None) -> tuple[dict[str, Array], dict[str, Any]]:
        """Start all copies; see `MultiAgentEnvWrapper.reset`."""
        shown = self._observation_rows()

        def reset_one(row: int, copy: TeamCopy) -> dict[str, Any]:
            observations, infos = self._reset_copy(row, None if seed is None else seed + row)
            _add(shown, row, observations)
            return infos

        told = self._in_each(reset_one)
        observations, infos = _flat(shown), merge_rows(told)
        self._tell(infos, observations, shown)
        return self._to_framework(observations), infos

    def step(
        self, actions: dict[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array], dict[str, Array], dict[str, Any]]:
        """Step all copies; see `MultiAgentEnvWrapper.step`.

        Raises:
            EnvError: Actions are missing or not of shape ``(num_envs, size)``, or a copy returns something other than
                dictionaries by agent, an unknown agent, no observation where one is needed, an observation outside its
                space, no reward or flag of an agent that acted, something else as a reward or flag (such as None), or
                infos with a key that the wrapper adds itself.
        """
        native = {name: self._native_actions(name, actions) for name in self.possible_agents}
        taken = {name: list(iterate(self._batch_spaces[name], batch)) for name, batch in native.items()}
        rewards = {name: np.zeros((self.num_envs, 1)) for name in self.possible_agents}
        terminated, truncated = (
            {name: np.zeros((self.num_envs, 1), np.bool_) for name in self.possible_agents} for _ in range(2)
        )
        self.log.add(native, rewards)
        shown = self._observation_rows()
        final: dict[str, SampleRows] = {}  # filled when the first copy is over
        final_states: SampleRows | None = None

        def step_one(row: int, copy: TeamCopy) -> tuple[dict[str, Any], dict[str, Any] | None]:
            nonlocal final_states
            given = copy.step({name: taken[name][row] for name in copy.acting()})
            outcome = (rewards, given.rewards), (terminated, given.terminated), (truncated, given.truncated)
            for arrays, by_agent in outcome:
                for name, value in by_agent.items():
                    arrays[name][row] = value
            if not copy.is_over:
                _add(shown, row, given.observations)
                return given.infos, None
            if not final:
                final.update(self._observation_rows())
                final_states = self._state_rows()
            _add(final, row, given.observations)
            if final_states is not None:
                final_states.add(row, copy.state())
            observations, infos = self._reset_copy(row)
            _add(shown, row, observations)
            return infos, given.infos

        told, final_told = zip(*self._in_each(step_one), strict=True)
        flat_observations, infos = _flat(shown), merge_rows(told)
        with np.errstate(over="ignore"):  # infinity is reported as such; the log keeps the other arrays
            rewards = {name: array.astype(np.float32) for name, array in rewards.items()}
        if any(final_told):
            infos["final_info"] = merge_rows(final_told, where=("final_info",))
            infos["_final_info"] = np.array([bool(row_infos) for row_infos in final_told])
        if any(copy.was_reset for copy in self._copies):
            self._tell_final(infos, _flat(final), final_states)
        self._tell(infos, flat_observations, shown)
        outputs = (self._to_framework(arrays) for arrays in (flat_observations, rewards, terminated, truncated))
        return *outputs, infos  # type: ignore[return-value]

    def state(self) -> dict[str, Array | None]:
        """Return the global states ``(num_envs, size)``, the same array for all agents; None if there are no states."""
        states, rows = self._joint_states, self._state_rows()
        if rows is not None:
            self._in_each(lambda row, copy: rows.add(row, copy.state()))
            states = _flat_states(rows)
        return dict.fromkeys(self.possible_agents, None if states is None else self._framework.from_numpy(states))

    def render(self) -> Any:
        """Render all copies, if they were made with a render mode."""
        if getattr(self._copies[0].env, "render_mode", None) is None:
            return None
        return tuple(self._in_each(lambda _, copy: copy.env.render()))

    def close(self) -> None:
        """Close all copies, even if some of them raise; see `workers.errors.close_all`."""
        close_all((f"copy {row} of {self._name}", partial(_close, env)) for row, env in enumerate(self.envs))

    def _native_actions(self, name: str, actions: dict[str, Array]) -> Any:
        """Return the agent's actions for all copies, in a vector environment's format."""
        if name not in actions:
            raise EnvError(
                f"{self._name}: actions are given for {list(actions)}; expected actions for {self.possible_agents}"
            )
        space, flat = self.action_spaces[name], self._framework.to_numpy(actions[name])
        return native_actions(space, flat, self.num_envs, self._action_widths[name], f"{self._name}: {name!r}")

    def _reset_copy(self, row: int, seed: int | None = None) -> tuple[ByAgent, dict[str, Any]]:
        copy = self._copies[row]
        self.log.reset(row, copy.env, seed)
        return copy.reset(seed)

    def _in_each(self, call: Callable[[int, TeamCopy], T]) -> list[T]:
        """Return what a function returns for each row and copy; errors are marked with the row."""
        results = []
        for row, copy in enumerate(self._copies):
            try:
                results.append(call(row, copy))
            except BaseException as error:
                mark_row(error, row, self._name)
                raise
        return results

    def _observation_rows(self) -> dict[str, SampleRows]:
        return {
            name: SampleRows(space, self.num_envs, f"the observation of {name!r}", self._name)
            for name, space in self.observation_spaces.items()
        }

    def _state_rows(self) -> SampleRows | None:
        space = self._native_state_space
        return None if space is None else SampleRows(space, self.num_envs, "a state", self._name)

    def _to_framework(self, arrays: dict[str, NumpyArray]) -> dict[str, Array]:
        return {name: self._framework.from_numpy(array) for name, array in arrays.items()}

    def _tell(self, infos: dict[str, Any], observations: dict[str, NumpyArray], shown: dict[str, SampleRows]) -> None:
        """Add to the infos which agents act next and which of their actions are legal."""
        acting = [copy.acting() for copy in self._copies]
        alive = {name: np.array([[name in names] for names in acting]) for name in self.possible_agents}
        infos["alive"] = self._to_framework(alive)
        for name, columns in self._masks.items():
            if columns is not None:
                given = shown[name].mask
                masks = {"action_mask": observations[name][:, columns] != 0, "_action_mask": given}
                infos[name] = infos.get(name, {}) | masks
                infos[f"_{name}"] = infos.get(f"_{name}", given) | given
        self._shown = shown
        if self._has_joint_states:
            self._joint_states = self._joined(observations)

    def _tell_final(
        self, infos: dict[str, Any], observations: dict[str, NumpyArray], states: SampleRows | None
    ) -> None:
        """Add the final observations and states of the copies that have been reset to the infos."""
        mask = np.array([copy.was_reset for copy in self._copies])
        infos["final_obs"], infos["_final_obs"] = self._to_framework(observations), mask
        joined = self._joined(observations) if self._has_joint_states else None
        if states is not None:
            joined = _flat_states(states)
        if joined is not None:
            infos["final_state"] = dict.fromkeys(self.possible_agents, self._framework.from_numpy(joined))
            infos["_final_state"] = mask.copy()

    def _joined(self, observations: dict[str, NumpyArray]) -> NumpyArray:
        return np.concatenate([observations[name].astype(np.float32) for name in self.possible_agents], axis=1)

    def copy_of(self, row: int) -> TeamCopy:
        """Return a copy, to store or restore it; see `workers.envs.states.rows.Copies` for this and the following."""
        return self._copies[row]

    def wrap_copy(self, row: int, wrap: Callable[[Any], Any]) -> None:
        """Put a wrapper around the environment of a row, which has not been reset yet."""
        self._copies[row].env = self.envs[row] = wrap(self.envs[row])

    def shown(self, row: int) -> dict[str, Any]:
        """Return copies of the native observations and the native state of a row."""
        observations = {name: rows.sample(row) for name, rows in self._shown.items()}
        state = None if self._native_state_space is None else copy_containers(self._copies[row].state())
        return {"observation": _given(observations), "native_state": state}

    def converted(self, observation: ByAgent) -> dict[str, Any]:
        """Return observations in the formats of their spaces."""
        if not isinstance(observation, Mapping) or not set(observation) <= set(self.possible_agents):
            raise EnvError(f"{self._name}: stored are other agents than {self.possible_agents}")
        rows = {
            name: SampleRows(self.observation_spaces[name], 1, "an observation", self._name) for name in observation
        }
        _add({name: rows[name] for name in rows}, 0, observation)
        return _given({name: samples.sample(0) for name, samples in rows.items()})

    def check(self, tree: dict[str, Any]) -> None:
        """Check the stored observations, agents and state of a row."""
        self.converted(tree.get("observation"))  # type: ignore[arg-type]
        for key in ("members", "ended", "acting"):
            if not isinstance(tree.get(key), list) or not set(tree[key]) <= set(self.possible_agents):
                raise EnvError(f"{self._name}: {key!r} of a stored row is {tree.get(key)!r}; expected a list of agents")
        if self._native_state_space is not None:
            SampleRows(self._native_state_space, 1, "a state", self._name).add(0, tree.get("native_state"))

    def stored(self, row: int) -> dict[str, Any] | None:
        """Return the tree with which a row was lost, if it has not been stepped or reset since."""
        return self._copies[row].lost

    def show(self, row: int, copy: TeamCopy, tree: dict[str, Any], *, is_lost: bool) -> None:
        """Show stored observations; truncate the row in its next step if it is lost."""
        if is_lost:
            copy.lose(tree)
        if not row:
            self._shown = self._observation_rows()
        _add(self._shown, row, tree["observation"])
        if self._has_joint_states and row == self.num_envs - 1:
            self._joint_states = self._joined(_flat(self._shown))


def _given(observations: ByAgent) -> dict[str, Any]:
    return {name: observation for name, observation in observations.items() if observation is not None}


def _add(rows: Mapping[str, SampleRows], row: int, observations: ByAgent) -> None:
    """Add the observations of one copy; None is no observation."""
    for name, observation in observations.items():
        if observation is not None:
            rows[name].add(row, observation)


def _flat(rows: Mapping[str, SampleRows]) -> dict[str, NumpyArray]:
    return {name: samples.flat() for name, samples in rows.items()}


def _flat_states(rows: SampleRows) -> NumpyArray:
    return rows.flat().astype(np.float32, copy=False)


def _close(env: Any) -> None:
    env.close()


def _checked_names(env: Any, owner: str) -> list[str]:
    names = list(getattr(env, "possible_agents", ()))
    if not names:
        raise EnvError(f"{owner} has no possible_agents; expected the names of all agents that can ever appear")
    taken = reserved_keys(names)
    if wrong := [name for name in names if not isinstance(name, str) or name in taken or names.count(name) > 1]:
        raise EnvError(
            f"{owner} has possible_agents {names}; expected different strings, and none like {wrong[0]!r}, which would "
            "clash with another entry of infos"
        )
    return names
