"""Single Gymnasium environments, stepped in turn as one vector environment that checks what each of them gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import create_empty_array, iterate

from workers.copying import copy_containers
from workers.envs.sample_rows import take
from workers.envs.samples import (
    RESERVED,
    checked_flag,
    checked_infos,
    checked_number,
    checked_reset,
    checked_step,
    row_writer,
)
from workers.envs.states.copy import SingleCopy
from workers.envs.states.log import ActionLog
from workers.errors import close_all, mark_row, marks_row
from workers.info_rows import merge_rows

__all__ = ["CheckedSyncVectorEnv", "check_copies", "vectorize"]

_NUMBERS = {float, int, np.float64, np.float32}
"""Types of rewards that need no check, which would take as long as the rest."""


def vectorize(envs: Sequence[gymnasium.Env[Any, Any]]) -> CheckedSyncVectorEnv:
    """Combine single environments into a vector environment that steps them in turn, each with its own generator."""
    # the states of ended environments must be read before the reset, which requires an explicit reset
    mode = AutoresetMode.DISABLED if hasattr(envs[0].unwrapped, "state_space") else AutoresetMode.SAME_STEP
    env = SyncVectorEnv([lambda env=env: env for env in envs], autoreset_mode=mode)  # type: ignore[misc]
    return check_copies(env)


def check_copies(env: SyncVectorEnv[Any, Any]) -> CheckedSyncVectorEnv:
    """Make a `SyncVectorEnv`, which may already be inside of wrappers, check its copies from now on; return it."""
    env.__class__ = CheckedSyncVectorEnv
    assert isinstance(env, CheckedSyncVectorEnv)
    env.put = row_writer(env.single_observation_space, env._observations)
    env.log = ActionLog(env.num_envs)
    return env


class _LostCopy(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A copy that could not be restored: instead of a step, its episode is truncated where it was stored.

    Attributes:
        tree: What was stored.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], tree: dict[str, Any]) -> None:
        super().__init__(env)
        self.tree = tree

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.tree["observation"], 0.0, False, True, {}

    def state(self) -> Any:
        return self.tree["native_state"]


class CheckedSyncVectorEnv(SyncVectorEnv[Any, Any]):
    """A `SyncVectorEnv` that checks each copy's outputs; errors are marked with the row (see `mark_row`).

    It behaves as its base class in every autoreset mode, with these differences. Observations are copied as soon as a
    copy returns them, so a copy may write all of them to one array. In SAME_STEP mode, final observations and infos are
    copied before the reset. Infos follow `workers.info_rows.merge_rows`. Rewards and flags may be arrays of shape
    ``(1,)``. All copies are closed, even if one of them fails.
    """

    resets_by_mask = True
    put: Callable[[int, Any], None]
    log: ActionLog

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the copies, or those of ``options["reset_mask"]``; return all observations, and infos."""
        seeds = [None] * self.num_envs if seed is None else seed
        if isinstance(seed, (int, np.integer)):
            seeds = [int(seed) + row for row in range(self.num_envs)]
        mask = np.ones(self.num_envs, np.bool_)
        if options is not None and "reset_mask" in options:
            mask = options["reset_mask"]
            options = {key: value for key, value in options.items() if key != "reset_mask"} or None
        infos: list[Any] = [{}] * self.num_envs
        for row in np.flatnonzero(mask).tolist():
            with marks_row(row, self):
                infos[row] = self._reset_copy(row, seed=seeds[row], options=options)
        self._autoreset_envs[mask] = False
        return self._copy_of_observations(), merge_rows(infos)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the copies one after the other."""
        put, mode = self.put, self.autoreset_mode
        is_same_step, is_next_step = mode is AutoresetMode.SAME_STEP, mode is AutoresetMode.NEXT_STEP
        rewards = np.zeros(self.num_envs)
        terminations, truncations = np.zeros(self.num_envs, np.bool_), np.zeros(self.num_envs, np.bool_)
        infos: list[Any] = []
        self.log.add(actions, rewards)
        for row, (env, action) in enumerate(zip(self.envs, iterate(self.action_space, actions), strict=True)):
            try:
                if is_next_step and self._autoreset_envs[row]:
                    infos.append(self._reset_copy(row))
                    continue
                given: Any = env.step(action)
                if type(given) is not tuple or len(given) != 5:
                    given = checked_step(given)
                observation, reward, terminated, truncated, info = given
                if type(info) is not dict or info:
                    info = checked_infos(info, RESERVED, self)
                put(row, observation)
                rewards[row] = reward if type(reward) in _NUMBERS else checked_number(reward, "the reward")
                if terminated is not False and terminated is not np.False_:
                    terminations[row] = checked_flag(terminated, "terminated")
                if truncated is not False and truncated is not np.False_:
                    truncations[row] = checked_flag(truncated, "truncated")
                if is_same_step and (terminations[row] or truncations[row]):
                    final = {"final_obs": copy_containers(observation), "final_info": info or {}}
                    info = final | self._reset_copy(row)
                infos.append(info or None)  # an empty dictionary may be filled by the next copy
            except BaseException as error:
                mark_row(error, row, self)
                raise
        self._autoreset_envs = terminations | truncations
        # the log keeps the rewards, which the receiver may change
        return self._copy_of_observations(), rewards.copy(), terminations, truncations, merge_rows(infos)

    def render(self) -> tuple[Any, ...]:
        """Render all copies; return what each of them gives."""
        frames = []
        for row, env in enumerate(self.envs):
            with marks_row(row, self):
                frames.append(env.render())
        return tuple(frames)

    def close_extras(self, **kwargs: Any) -> None:
        """Close all copies, even if one of them fails."""
        close_all((f"copy {row} of {self}", env.close) for row, env in enumerate(self.envs))

    def _reset_copy(self, row: int, **arguments: Any) -> dict[Any, Any]:
        """Reset one copy, put its observation into the batch, and return a copy of its infos."""
        env = self.envs[row]
        if type(env) is _LostCopy:
            self.envs[row] = env = env.env
        self.log.reset(row, env, arguments.get("seed"))
        observation, info = checked_reset(env.reset(**arguments))
        self.put(row, observation)
        return checked_infos(info, RESERVED, self)

    def _copy_of_observations(self) -> Any:
        return deepcopy(self._observations) if self.copy else self._observations

    def copy_of(self, row: int) -> SingleCopy:
        """Return a copy, to store or restore it; see `workers.envs.states.rows.Copies` for this and the following."""
        env = self.envs[row]
        return SingleCopy(env.env if type(env) is _LostCopy else env)

    def wrap_copy(self, row: int, wrap: Callable[[Any], Any]) -> None:
        """Put a wrapper around the environment of a row, which has not been reset yet."""
        self.envs[row] = wrap(self.envs[row])

    def shown(self, row: int) -> dict[str, Any]:
        """Return copies of the native observation and state of a row."""
        env = self.envs[row]
        state = None if _state_space(env) is None else copy_containers(env.get_wrapper_attr("state")())
        return {"observation": copy_containers(take(self._observations, row)), "native_state": state}

    def converted(self, observation: Any) -> Any:
        """Return an observation in the space's format."""
        return _converted(self.single_observation_space, observation, "an observation")

    def check(self, tree: dict[str, Any]) -> None:
        """Check the stored observation and state of a row."""
        self.converted(tree.get("observation"))
        if (space := _state_space(self.envs[0])) is not None:
            _converted(space, tree.get("native_state"), "a state")

    def stored(self, row: int) -> dict[str, Any] | None:
        """Return the tree with which a row was lost, if it has not been stepped or reset since."""
        env = self.envs[row]
        return env.tree if type(env) is _LostCopy else None

    def show(self, row: int, copy: SingleCopy, tree: dict[str, Any], *, is_lost: bool) -> None:
        """Show a stored observation; truncate the row in its next step if it is lost."""
        self.envs[row] = _LostCopy(copy.env, tree) if is_lost else copy.env
        self.put(row, tree["observation"])
        self._autoreset_envs[row] = False


def _state_space(env: gymnasium.Env[Any, Any]) -> Any:
    """Return the space of a copy's states; None if it has none."""
    env = env.unwrapped
    return getattr(env, "state_space", None) if callable(getattr(env, "state", None)) else None


def _converted(space: gymnasium.Space[Any], sample: Any, what: str) -> Any:
    batch = create_empty_array(space, n=1)
    row_writer(space, batch, what)(0, sample)
    return take(batch, 0)
