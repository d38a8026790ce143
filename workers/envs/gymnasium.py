"""A `Wrapper` of Gymnasium environments that resets in the same step, in every autoreset mode."""

from __future__ import annotations

import logging
from functools import partial
from reprlib import repr as short
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from workers.envs.base import Wrapper
from workers.envs.copies import CheckedSyncVectorEnv, check_copies
from workers.envs.reset_mask import check_class, prove_reset_mask, reset_rows
from workers.envs.sample_rows import SampleRows
from workers.envs.samples import RESERVED, check_reserved, checked_reset, checked_step
from workers.errors import EnvError, marks_row, type_name
from workers.frameworks import load_framework
from workers.info_rows import add_row, check_infos
from workers.infos import mask_rows, overlay
from workers.spaces import (
    action_width,
    check_space,
    column,
    flatten_rows,
    mask_columns,
    native_actions,
)
from workers.types import Array

__all__ = ["GymnasiumWrapper"]

_logger = logging.getLogger("lockstep")

NumpyArray = npt.NDArray[Any]


class GymnasiumWrapper(Wrapper):
    """A wrapper of a Gymnasium vector environment.

    It behaves as in SAME_STEP mode, whatever the environment's autoreset mode: in NEXT_STEP and DISABLED mode it resets
    ended environments with ``reset(options={"reset_mask": ended})`` right after the step.

    Observations are ``(num_envs, size)``, flattened as by Gymnasium's ``flatten`` (Discrete and MultiDiscrete are
    one-hot encoded); floating-point values are float32. Actions are ``(num_envs, size)`` and not encoded: one column
    for each element of a Box, MultiDiscrete or MultiBinary, one for a Discrete. The members of a Dict or Tuple follow
    in the space's order. If the environments have a ``state_space`` and a ``state()`` method, the wrapper returns their
    states, flattened in the same way, as float32. If the observation space is a Dict with an ``action_mask``, the mask
    is also in ``infos["action_mask"]``, ``(num_envs, n)`` bool.

    Raises:
        EnvError: A space does not have a fixed flat width (Graph, OneOf, Sequence, Text), the autoreset mode is
            unknown, or an environment with states is in SAME_STEP mode.
    """

    gives_arrays_away = True
    is_stateless = True  # what it wraps has the state

    def __init__(self, env: VectorEnv[Any, Any, Any], *, framework: str) -> None:
        self._env = env
        self._name = str(env)
        self.framework = framework
        self._framework = load_framework(framework)
        self.num_envs = env.num_envs
        self.observation_space, self.action_space = env.single_observation_space, env.single_action_space
        check_space(self.observation_space, f"{self._name}: observation space")
        check_space(self.action_space, f"{self._name}: action space")
        self._action_width = action_width(self.action_space)
        self._mask_columns = mask_columns(self.observation_space)
        try:
            self._mode = AutoresetMode(env.metadata["autoreset_mode"])
        except (KeyError, ValueError) as error:
            raise EnvError(
                f"{self._name}: metadata['autoreset_mode'] is {env.metadata.get('autoreset_mode')!r}; "
                f"expected a gymnasium.vector.AutoresetMode"
            ) from error
        base = env.unwrapped
        if type(base) is SyncVectorEnv:
            check_copies(base)
        elif type(base)._add_info is VectorEnv._add_info:  # which takes the layout of a key from its first row
            base._add_info = partial(add_row, base.num_envs)  # type: ignore[method-assign]
        if self._mode is not AutoresetMode.SAME_STEP:
            check_class(env)
        # in another process, or a class of the user, a copy may overwrite its final observation by a reset
        self._doubts_final = not isinstance(base, CheckedSyncVectorEnv)
        first = base.envs[0].unwrapped if isinstance(base, SyncVectorEnv) else env
        self.state_space = getattr(first, "state_space", None) if callable(getattr(first, "state", None)) else None
        if self.state_space is not None:
            check_space(self.state_space, f"{self._name}: state space")
        if self.state_space is not None and self._mode is AutoresetMode.SAME_STEP:
            raise EnvError(
                f"{self._name} has states, but autoreset mode SAME_STEP loses the final ones; "
                "build it with autoreset_mode=AutoresetMode.DISABLED"
            )

    def prove_reset_mask(self, *, seed: int, first_env: int) -> None:
        """Check that the environment resets by mask, if that is needed and unknown; see `prove_reset_mask`."""
        if self._mode is not AutoresetMode.SAME_STEP:
            prove_reset_mask(self._env, self._flatten, seed=seed, first_env=first_env)

    def reset(self, *, seed: int | None = None) -> tuple[Array, dict[str, Any]]:
        """Start all environments; see `Wrapper.reset`."""
        native, infos = checked_reset(self._env.reset(seed=seed))
        infos = check_infos(infos, self._env)
        observations = self._flatten(native)
        return self._framework.from_numpy(observations), self._with_mask(infos, observations)

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Step all environments; see `Wrapper.step`.

        Raises:
            EnvError: The actions have the wrong shape, the environment does not respect ``reset_mask``, or it gives
                something odd.
        """
        native, *columns, infos = checked_step(self._env.step(self._native_actions(actions)))
        infos = check_infos(infos, self._env)
        observations = self._flatten(native)
        # before a reset: environments may overwrite arrays that they returned
        rewards = column(columns[0], np.float32, self.num_envs, f"{self._name}: rewards")
        terminated, truncated = (
            column(flags, np.bool_, self.num_envs, f"{self._name}: {name}")
            for flags, name in zip(columns[1:], ("terminated", "truncated"), strict=True)
        )
        convert = self._framework.from_numpy
        outputs = convert(rewards), convert(terminated), convert(truncated)
        ended = (terminated | truncated)[:, 0]
        self._check_final(infos, ended)
        if ended.any():
            if self._mode is AutoresetMode.SAME_STEP:
                infos = dict(infos)
                final = self._flatten_final(infos.get("final_obs"), ended)
                self._doubt(final, observations, ended)
            else:
                final, states = mask(ended, observations), self._native_state()
                final_states = None if states is None else mask(ended, states)
                observations, infos = self._reset_ended(observations, infos, ended)
                if final_states is not None:
                    infos["final_state"] = convert(final_states)
                    infos["_final_state"] = ended
            infos["final_obs"] = convert(final)
            infos["_final_obs"] = ended
        elif not RESERVED.isdisjoint(infos):  # with a mask that marks nothing
            infos = {key: value for key, value in infos.items() if key not in RESERVED}
        return convert(observations), *outputs, self._with_mask(infos, observations)

    def _check_final(self, infos: dict[str, Any], ended: npt.NDArray[np.bool_]) -> None:
        """Check that only environments in SAME_STEP mode give final observations, and only when they end."""
        if self._mode is not AutoresetMode.SAME_STEP:
            check_reserved(infos, RESERVED, self._name)
        elif not np.array_equal(given := infos.get("_final_obs", ended), ended):
            raise EnvError(
                f"{self._name}: infos['_final_obs'] marks the environments {np.flatnonzero(given).tolist()}; expected "
                f"those that have ended in this step, {np.flatnonzero(ended).tolist()}"
            )

    def _doubt(self, final: NumpyArray, observations: NumpyArray, ended: npt.NDArray[np.bool_]) -> None:
        """Say once if the final observations look like those after the reset; the first end decides."""
        if self._doubts_final and np.array_equal(final[ended], observations[ended]):
            _logger.warning(
                "%s: final_obs equals the observation after the reset. If its environments write every observation to "
                "the same array, their final observations are lost in autoreset mode SAME_STEP: build it with "
                "autoreset_mode=AutoresetMode.NEXT_STEP, or return copies",
                self._name,
            )
        self._doubts_final = False

    def state(self) -> Array | None:
        """Return the privileged global states ``(num_envs, size)``, or None."""
        states = self._native_state()
        return None if states is None else self._framework.from_numpy(states)

    def render(self) -> Any:
        """Render the environments, if they were made with a render mode."""
        return None if self._env.render_mode is None else self._env.render()

    def close(self) -> None:
        """Close the environments."""
        self._env.close()

    def _reset_ended(
        self, observations: NumpyArray, infos: dict[str, Any], ended: npt.NDArray[np.bool_]
    ) -> tuple[NumpyArray, dict[str, Any]]:
        """Reset the ended environments and return the observations and infos that SAME_STEP mode would return."""
        before = observations[~ended]  # a copy: environments may overwrite arrays they returned
        # copies, before the reset: environments and their wrappers may change their infos in place
        final_infos, running_infos = mask_rows(infos, ended), mask_rows(infos, ~ended)
        observations, reset_infos = reset_rows(self._env, self._flatten, ended, before)
        merged = overlay(running_infos, mask_rows(reset_infos, ended), ended)
        if final_infos:
            merged["final_info"], merged["_final_info"] = final_infos, ended
        return observations, merged

    def _with_mask(self, infos: dict[str, Any], observations: NumpyArray) -> dict[str, Any]:
        if self._mask_columns is None:
            return infos
        mask = observations[:, self._mask_columns] != 0
        return infos | {"action_mask": mask, "_action_mask": np.ones(self.num_envs, np.bool_)}

    def _flatten(self, native: Any) -> NumpyArray:
        return flatten_rows(self._env.single_observation_space, native)

    def _flatten_final(self, final: Any, ended: npt.NDArray[np.bool_]) -> NumpyArray:
        num_envs = self.num_envs
        if final is None:
            raise EnvError(f"{self._name} is in autoreset mode SAME_STEP, but gives no infos['final_obs'] at an end")
        is_list = (isinstance(final, np.ndarray) and final.ndim > 0) or isinstance(final, (list, tuple))
        if not is_list or len(final) != num_envs:
            given = f"{short(final)} of type {type_name(type(final))}"
            raise EnvError(f"{self._name}: infos['final_obs'] is {given}; expected an array of {num_envs} observations")
        rows = SampleRows(self._env.single_observation_space, num_envs, "a final observation", self._name)
        for row in np.flatnonzero(ended).tolist():
            with marks_row(row, self._name):
                rows.add(row, final[row])
        return rows.flat()

    def _native_actions(self, actions: Array) -> Any:
        space, flat = self._env.single_action_space, self._framework.to_numpy(actions)
        return native_actions(space, flat, self.num_envs, self._action_width, self._name)

    def _native_state(self) -> NumpyArray | None:
        if self.state_space is None:
            return None
        if isinstance(base := self._env.unwrapped, SyncVectorEnv):
            rows = SampleRows(self.state_space, self.num_envs, "a state", self._name)
            for row, copy in enumerate(base.envs):
                with marks_row(row, self._name):
                    rows.add(row, copy.get_wrapper_attr("state")())
            states = rows.flat()
        else:
            states = flatten_rows(self.state_space, self._env.state())  # type: ignore[attr-defined]
        return states.astype(np.float32, copy=False)


def mask(rows: npt.NDArray[np.bool_], array: NumpyArray) -> NumpyArray:
    """Return a copy of `array` with zeros in the rows that `rows` does not select."""
    return np.where(rows[:, None], array, np.zeros((), dtype=array.dtype))
