"""A `MultiAgentEnvWrapper` of PettingZoo environments: copies stepped in turn, as one batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.spaces.utils import flatdim
from gymnasium.vector.utils import batch_space, iterate

from workers.copying import copy_containers
from workers.envs.base import MultiAgentEnvWrapper
from workers.envs.samples import checked_flag, checked_number
from workers.envs.spaces import action_width, check_space, flatten_samples, mask_columns, native_actions
from workers.envs.team_copy import ByAgent, TeamCopy, as_parallel, check_alike
from workers.errors import EnvError, close_all, mark_row
from workers.frameworks import load_framework
from workers.info_rows import merge_rows
from workers.types import Array

__all__ = ["PettingZooWrapper", "States"]

NumpyArray = npt.NDArray[Any]
States = Literal["own", "joint", "none"]

_RESERVED = {"alive", "final_obs", "final_state", "final_info"}


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
        self._names = _checked_names(first, self._name)
        self._copies = [TeamCopy(env, frozenset(self._names)) for env in copies]
        self._spaces = {name: first.observation_space(name) for name in self._names}
        self._action_spaces = {name: first.action_space(name) for name in self._names}
        for kind, spaces in (("observation", self._spaces), ("action", self._action_spaces)):
            for name, space in spaces.items():
                check_space(space, f"{self._name}: {kind} space of {name!r}")
        for row, env in enumerate(copies):
            check_alike(env, row, self._name, self._spaces, self._action_spaces)
        self._action_widths = {name: action_width(space) for name, space in self._action_spaces.items()}
        self._batch_spaces = {name: batch_space(space, len(envs)) for name, space in self._action_spaces.items()}
        self._masks = {name: mask_columns(space) for name, space in self._spaces.items()}
        if states not in get_args(States):
            raise EnvError(f"{self._name}: states is {states!r}; expected one of {', '.join(get_args(States))}")
        self._native_state_space: Any = getattr(first, "state_space", None) if states == "own" else None
        if self._native_state_space is not None:
            check_space(self._native_state_space, f"{self._name}: state space")
        self._has_joint_states = states == "joint"
        self._joint_states: NumpyArray | None = None

    @property
    def num_envs(self) -> int:
        """Number of copies."""
        return len(self._copies)

    @property
    def possible_agents(self) -> list[str]:
        """Names of all agents that can ever appear, in the environment's order."""
        return list(self._names)

    @property
    def agents(self) -> list[str]:
        """Names of the agents that are alive in any copy."""
        return [name for name in self._names if any(name in copy.members for copy in self._copies)]

    @property
    def observation_spaces(self) -> dict[str, gymnasium.Space[Any]]:
        """Observation space of each agent in one copy."""
        return dict(self._spaces)

    @property
    def action_spaces(self) -> dict[str, gymnasium.Space[Any]]:
        """Action space of each agent in one copy."""
        return dict(self._action_spaces)

    @property
    def state_spaces(self) -> dict[str, gymnasium.Space[Any] | None]:
        """State space of each agent in one copy; None if there are no states."""
        space = self._native_state_space
        if self._has_joint_states:
            width = sum(flatdim(space) for space in self._spaces.values())
            space = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float32)
        return dict.fromkeys(self._names, space)

    def reset(self, *, seed: int | None = None) -> tuple[dict[str, Array], dict[str, Any]]:
        """Start all copies; see `MultiAgentEnvWrapper.reset`."""
        shown, told = _Observations(self._spaces), []
        for row, copy in enumerate(self._copies):
            try:
                observations, row_infos = copy.reset(None if seed is None else seed + row)
            except BaseException as error:
                mark_row(error, row, self._name)
                raise
            shown.add(row, observations)
            told.append(row_infos)
        observations, infos = self._flat(shown), self._merged(told)
        self._tell(infos, observations, shown)
        return self._to_framework(observations), infos

    def step(
        self, actions: dict[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array], dict[str, Array], dict[str, Any]]:
        """Step all copies; see `MultiAgentEnvWrapper.step`.

        Raises:
            EnvError: Actions are missing or not of shape ``(num_envs, size)``, or a copy returns an unknown agent, no
                observation where one is needed, an observation outside its space, or None as a reward or flag.
        """
        taken = {name: self._native_actions(name, actions) for name in self._names}
        rewards = {name: np.zeros((self.num_envs, 1), np.float32) for name in self._names}
        terminated, truncated = (
            {name: np.zeros((self.num_envs, 1), np.bool_) for name in self._names} for _ in range(2)
        )
        shown, final, final_states = _Observations(self._spaces), _Observations(self._spaces), {}
        told, final_told = [], [None] * self.num_envs
        for row, copy in enumerate(self._copies):
            try:
                given = copy.step({name: taken[name][row] for name in copy.acting()})
                self._put(rewards, row, given.rewards, checked_number, "the reward")
                self._put(terminated, row, given.terminated, checked_flag, "terminated")
                self._put(truncated, row, given.truncated, checked_flag, "truncated")
                observations, row_infos = given.observations, given.infos
                if copy.is_over:
                    # environments may overwrite arrays they returned
                    observations, final_told[row] = copy_containers((observations, row_infos))
                    final.add(row, observations)
                    if self._native_state_space is not None:
                        final_states[row] = copy_containers(copy.env.state())
                    observations, row_infos = copy.reset()
            except BaseException as error:
                mark_row(error, row, self._name)
                raise
            shown.add(row, observations)
            told.append(row_infos)
        flat_observations, infos = self._flat(shown), self._merged(told)
        if any(final_told):
            infos["final_info"] = merge_rows(final_told, where=("final_info",))
            infos["_final_info"] = np.array([bool(row_infos) for row_infos in final_told])
        if any(copy.was_reset for copy in self._copies):
            self._tell_final(infos, self._flat(final), final_states)
        self._tell(infos, flat_observations, shown)
        outputs = (self._to_framework(arrays) for arrays in (flat_observations, rewards, terminated, truncated))
        return *outputs, infos  # type: ignore[return-value]

    def state(self) -> dict[str, Array | None]:
        """Return the global states ``(num_envs, size)``, the same array for all agents; None if there are no states."""
        states = self._joint_states
        if self._native_state_space is not None:
            states = self._flat_states({row: copy.env.state() for row, copy in enumerate(self._copies)})
        return dict.fromkeys(self._names, None if states is None else self._framework.from_numpy(states))

    def render(self) -> Any:
        """Render all copies, if they were made with a render mode."""
        if getattr(self._copies[0].env, "render_mode", None) is None:
            return None
        return tuple(copy.env.render() for copy in self._copies)

    def close(self) -> None:
        """Close all copies, even if some of them raise; see `workers.errors.close_all`."""
        close_all((f"copy {row} of {self._name}", partial(_close, env)) for row, env in enumerate(self.envs))

    def _native_actions(self, name: str, actions: dict[str, Array]) -> list[Any]:
        """Return the agent's action for each copy, in the format of its action space."""
        if name not in actions:
            raise EnvError(f"{self._name}: actions are given for {list(actions)}; expected actions for {self._names}")
        space, flat = self._action_spaces[name], self._framework.to_numpy(actions[name])
        native = native_actions(space, flat, self.num_envs, self._action_widths[name], f"{self._name}: {name!r}")
        return list(iterate(self._batch_spaces[name], native))

    def _put(
        self, flat: dict[str, Any], row: int, values: ByAgent, checked: Callable[[Any, str], Any], what: str
    ) -> None:
        for name, value in values.items():
            flat[name][row] = checked(value, f"{what} of {name!r}")

    def _to_framework(self, arrays: dict[str, NumpyArray]) -> dict[str, Array]:
        return {name: self._framework.from_numpy(array) for name, array in arrays.items()}

    def _flat(self, observations: _Observations) -> dict[str, NumpyArray]:
        return {name: observations.flat(name, self.num_envs, self._name) for name in self._names}

    def _flat_states(self, states: Mapping[int, Any]) -> NumpyArray:
        """Return the states of some rows, ``(num_envs, size)``, with zeros in the others."""
        space, samples = self._native_state_space, list(states.values())
        flat = flatten_samples(space, samples, list(states), self.num_envs, "a state", self._name)
        return flat.astype(np.float32, copy=False)

    def _merged(self, told: Sequence[Mapping[Any, Any]]) -> dict[str, Any]:
        """Merge the infos of all copies; see `workers.info_rows.merge_rows`."""
        infos = merge_rows(told)
        if taken := [key for key in infos if key in _RESERVED]:
            raise EnvError(
                f"{self._name}: the infos have {taken[0]!r}, which the wrapper adds itself; rename it, for example in "
                "a wrapper of the environment"
            )
        return infos

    def _tell(self, infos: dict[str, Any], observations: dict[str, NumpyArray], shown: _Observations) -> None:
        """Add to the infos which agents act next and which of their actions are legal."""
        acting = [copy.acting() for copy in self._copies]
        alive = {name: np.array([[name in names] for names in acting]) for name in self._names}
        infos["alive"] = self._to_framework(alive)
        for name, columns in self._masks.items():
            if columns is not None:
                given = shown.mask(name, self.num_envs)
                masks = {"action_mask": observations[name][:, columns] != 0, "_action_mask": given}
                infos[name] = infos.get(name, {}) | masks
                infos[f"_{name}"] = infos.get(f"_{name}", given) | given
        if self._has_joint_states:
            self._joint_states = self._joined(observations)

    def _tell_final(
        self, infos: dict[str, Any], observations: dict[str, NumpyArray], states: Mapping[int, Any]
    ) -> None:
        """Add the final observations and states of the copies that have been reset to the infos."""
        mask = np.array([copy.was_reset for copy in self._copies])
        infos["final_obs"], infos["_final_obs"] = self._to_framework(observations), mask
        joined = self._joined(observations) if self._has_joint_states else None
        if states:
            joined = self._flat_states(states)
        if joined is not None:
            infos["final_state"] = dict.fromkeys(self._names, self._framework.from_numpy(joined))
            infos["_final_state"] = mask.copy()

    def _joined(self, observations: dict[str, NumpyArray]) -> NumpyArray:
        return np.concatenate([observations[name].astype(np.float32) for name in self._names], axis=1)


class _Observations:
    """Observations of some rows by agent."""

    def __init__(self, spaces: Mapping[str, gymnasium.Space[Any]]) -> None:
        self._spaces = spaces
        self._rows: dict[str, list[int]] = defaultdict(list)
        self._samples: dict[str, list[Any]] = defaultdict(list)

    def add(self, row: int, observations: ByAgent) -> None:
        """Add the observations of one copy."""
        for name, observation in observations.items():
            if observation is not None:
                self._rows[name].append(row)
                self._samples[name].append(observation)

    def mask(self, name: str, num_envs: int) -> npt.NDArray[np.bool_]:
        """Return the rows in which the agent has an observation, ``(num_envs,)`` bool."""
        mask = np.zeros(num_envs, np.bool_)
        mask[self._rows[name]] = True
        return mask

    def flat(self, name: str, num_envs: int, owner: str) -> NumpyArray:
        """Return the agent's flat observations, ``(num_envs, size)``; rows without an observation are zero.

        Raises:
            EnvError: An observation does not fit its space.
        """
        what = f"the observation of {name!r}"
        return flatten_samples(self._spaces[name], self._samples[name], self._rows[name], num_envs, what, owner)


def _close(env: Any) -> None:
    env.close()


def _checked_names(env: Any, owner: str) -> list[str]:
    names = list(getattr(env, "possible_agents", ()))
    if not names:
        raise EnvError(f"{owner} has no possible_agents; expected the names of all agents that can ever appear")
    taken = {f"_{name}" for name in (*names, *_RESERVED)} | _RESERVED
    if wrong := [name for name in names if not isinstance(name, str) or name in taken or names.count(name) > 1]:
        raise EnvError(
            f"{owner} has possible_agents {names}; expected different strings, and none like {wrong[0]!r}, which would "
            "clash with another entry of infos"
        )
    return names
