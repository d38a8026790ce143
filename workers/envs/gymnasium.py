"""Gymnasium's environments as a `Wrapper` that resets in the same step, whatever their autoreset mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Discrete
from gymnasium.spaces.utils import flatdim
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from workers.envs.base import Wrapper
from workers.errors import EnvError
from workers.frameworks import load_framework
from workers.infos import mask_rows, overlay
from workers.types import Array

__all__ = ["GymnasiumWrapper", "vectorize"]

NumpyArray = npt.NDArray[Any]


def vectorize(envs: Sequence[gymnasium.Env[Any, Any]]) -> VectorEnv[Any, Any, Any]:
    """Single environments as one vectorised environment, stepped one after the other, each with its own generator."""
    # states of ended environments are read before the reset, which only an explicit reset allows
    mode = AutoresetMode.DISABLED if hasattr(envs[0].unwrapped, "state_space") else AutoresetMode.SAME_STEP
    return SyncVectorEnv([lambda env=env: env for env in envs], autoreset_mode=mode)  # type: ignore[misc]


class GymnasiumWrapper(Wrapper):
    """A Gymnasium vector environment.

    Whatever its autoreset mode, it behaves as in SAME_STEP mode: in the modes NEXT_STEP and DISABLED the ended
    environments are reset by ``reset(options={"reset_mask": ended})`` right after the step.

    Observations are flattened to ``(num_envs, size)``: Box by reshaping, floating-point values as float32; Discrete
    one-hot, as Gymnasium's ``flatten`` does. Actions are ``(num_envs, size)`` for Box and ``(num_envs, 1)`` for
    Discrete. If the environments have a ``state_space`` and a method ``state()``, their states are passed on.

    Raises:
        EnvError: A space is neither Box nor Discrete, or the autoreset mode is not known.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], *, framework: str) -> None:
        self._env = env
        self.framework = framework
        self._framework = load_framework(framework)
        for kind in ("observation", "action"):
            space = getattr(env, f"single_{kind}_space")
            if not isinstance(space, (Box, Discrete)):
                raise EnvError(f"{self._name}: {kind} space {space} is not supported; expected Box or Discrete")
        try:
            self._mode = AutoresetMode(env.metadata["autoreset_mode"])
        except (KeyError, ValueError) as error:
            raise EnvError(
                f"{self._name}: metadata['autoreset_mode'] is {env.metadata.get('autoreset_mode')!r}; "
                f"expected a gymnasium.vector.AutoresetMode"
            ) from error
        base = env.unwrapped
        first = base.envs[0].unwrapped if isinstance(base, SyncVectorEnv) else env
        self._state_space = getattr(first, "state_space", None) if callable(getattr(first, "state", None)) else None
        if self._state_space is not None and self._mode is AutoresetMode.SAME_STEP:
            raise EnvError(
                f"{self._name} has states, but in autoreset mode SAME_STEP the final ones are lost; "
                "build it with autoreset_mode=AutoresetMode.DISABLED"
            )

    @property
    def _name(self) -> str:
        return str(self._env)

    @property
    def num_envs(self) -> int:
        """Number of environments."""
        return self._env.num_envs

    @property
    def observation_space(self) -> gymnasium.Space[Any]:
        """Observation space of one environment."""
        return self._env.single_observation_space

    @property
    def action_space(self) -> gymnasium.Space[Any]:
        """Action space of one environment."""
        return self._env.single_action_space

    @property
    def state_space(self) -> gymnasium.Space[Any] | None:
        """State space of one environment, None if there are no states."""
        return self._state_space

    def reset(self, *, seed: int | None = None) -> tuple[Array, dict[str, Any]]:
        """Start all environments; see `Wrapper.reset`."""
        observations, infos = self._env.reset(seed=seed)
        return self._framework.from_numpy(self._flatten(observations)), infos

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Step all environments; see `Wrapper.step`.

        Raises:
            EnvError: The environment does not reset by mask as its autoreset mode requires.
        """
        observations, rewards, terminated, truncated, infos = self._env.step(self._native_actions(actions))
        ended = terminated | truncated
        if ended.any():
            if self._mode is AutoresetMode.SAME_STEP:
                infos = dict(infos)
                final = self._flatten_final(infos["final_obs"], ended)
            else:
                final = mask(ended, self._flatten(observations))
                states = self._native_state()
                observations, infos = self._reset_ended(observations, infos, ended)
                if states is not None:
                    infos["final_state"] = self._framework.from_numpy(mask(ended, states))
                    infos["_final_state"] = ended
            infos["final_obs"] = self._framework.from_numpy(final)
            infos["_final_obs"] = ended
        convert = self._framework.from_numpy
        return (
            convert(self._flatten(observations)),
            convert(np.asarray(rewards, dtype=np.float32).reshape(-1, 1)),
            convert(np.asarray(terminated, dtype=np.bool_).reshape(-1, 1)),
            convert(np.asarray(truncated, dtype=np.bool_).reshape(-1, 1)),
            infos,
        )

    def state(self) -> Array | None:
        """Privileged global states ``(num_envs, size)``, or None."""
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
        """Reset the ended environments: observations and infos as SAME_STEP mode would have given them."""
        before = np.array(observations)
        # first of all: wrappers may reset in place what they have put into the infos
        final_infos, running_infos = mask_rows(infos, ended), mask_rows(infos, ~ended)
        try:
            observations, reset_infos = self._env.reset(options=_Options(reset_mask=ended.copy()))
        except (TypeError, ValueError, KeyError) as error:
            raise EnvError(self._refusal()) from error
        if not np.array_equal(observations[~ended], before[~ended], equal_nan=before.dtype.kind == "f"):
            raise EnvError(self._refusal())
        merged = overlay(running_infos, mask_rows(reset_infos, ended), ended)
        if final_infos:
            merged["final_info"], merged["_final_info"] = final_infos, ended
        return observations, merged

    def _refusal(self) -> str:
        return (
            f"{self._name} has autoreset mode {self._mode.name} and does not reset just the environments of "
            "reset(options={'reset_mask': …}) and leaves the others as they are; build it with "
            "autoreset_mode=AutoresetMode.SAME_STEP, and normalise observations in the agent rather than in a wrapper"
        )

    def _flatten(self, observations: NumpyArray) -> NumpyArray:
        space = self._env.single_observation_space
        if isinstance(space, Discrete):
            return np.eye(int(space.n), dtype=np.int64)[np.asarray(observations, dtype=np.int64) - int(space.start)]
        flat = observations.reshape(len(observations), -1)
        return flat.astype(np.float32, copy=False) if flat.dtype.kind == "f" else flat

    def _flatten_final(self, final: NumpyArray, ended: npt.NDArray[np.bool_]) -> NumpyArray:
        rows = self._flatten(np.array(list(final[ended])))
        flat = np.zeros((len(ended), flatdim(self._env.single_observation_space)), dtype=rows.dtype)
        flat[ended] = rows
        return flat

    def _native_actions(self, actions: Array) -> NumpyArray:
        space, native = self._env.single_action_space, self._framework.to_numpy(actions)
        shape, dtype = ((), np.int64) if isinstance(space, Discrete) else (space.shape, space.dtype)
        try:
            return native.reshape(self.num_envs, *shape).astype(dtype, copy=False)  # type: ignore[misc]
        except ValueError as error:
            raise EnvError(
                f"{self._name}: actions have shape {native.shape}; expected ({self.num_envs}, {math.prod(shape)})"  # type: ignore[arg-type]
            ) from error

    def _native_state(self) -> NumpyArray | None:
        if self._state_space is None:
            return None
        if isinstance(base := self._env.unwrapped, SyncVectorEnv):
            states = np.stack(base.call("state"))
        else:
            states = np.asarray(self._env.state())  # type: ignore[attr-defined]
        return states.reshape(len(states), -1).astype(np.float32, copy=False)


class _Options(dict[str, Any]):
    """Options that stay whole.

    Gymnasium's vector environments pop the mask out of them; a wrapper that looks for it afterwards, as
    RecordEpisodeStatistics does, would take the call for a reset of all environments.
    """

    def pop(self, key: str, default: Any = None) -> Any:
        return self.get(key, default)


def mask(rows: npt.NDArray[np.bool_], array: NumpyArray) -> NumpyArray:
    """`array` with zeros in all other rows."""
    return np.where(rows[:, None], array, np.zeros((), dtype=array.dtype))
