"""Environments whose arrays are made on a framework's device and stay there, in each framework.

Observations are ``(row, step, last action)``. A row is truncated after ``3 + row % 4`` steps and starts again at once.
The reward is ``100 row + step``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import warp as wp
from gymnasium.spaces import Box

from workers.envs import Wrapper

WIDTH = 3


class DeviceEnv(Wrapper):
    """The part that is the same in every framework; `given` holds the last outputs of `step`."""

    observation_space = Box(-np.inf, np.inf, (WIDTH,), np.float32)
    action_space = Box(-np.inf, np.inf, (1,), np.float32)
    num_envs = 0

    def __init__(self, num_envs: int, first_env: int) -> None:
        self.num_envs, self.first_env = num_envs, first_env
        self.given: tuple[Any, ...] = ()

    def render(self) -> None:
        pass

    def close(self) -> None:
        pass

    def step(self, actions: Any) -> Any:
        observations, rewards, terminated, truncated, final, mask = self.advance(actions)
        self.given = observations, rewards, terminated, truncated, {"final_obs": final, "_final_obs": mask}
        return self.given

    def advance(self, actions: Any) -> tuple[Any, ...]:
        raise NotImplementedError


class TorchEnv(DeviceEnv):
    framework = "torch"

    def reset(self, *, seed: int | None = None) -> Any:
        self.rows = torch.arange(self.first_env, self.first_env + self.num_envs).float()[:, None]
        self.steps = torch.zeros(self.num_envs, 1)
        return torch.cat([self.rows, self.steps, self.steps - 1], 1), {}

    def advance(self, actions: Any) -> tuple[Any, ...]:
        steps = self.steps + 1
        truncated = steps >= 3 + self.rows % 4
        self.steps = torch.where(truncated, 0.0, steps)
        final = torch.cat([self.rows, steps, actions], 1)
        observations = torch.cat([self.rows, self.steps, torch.where(truncated, -1.0, actions)], 1)
        return observations, 100 * self.rows + steps, torch.zeros_like(truncated), truncated, final, truncated[:, 0]


class JaxEnv(DeviceEnv):
    framework = "jax"

    def reset(self, *, seed: int | None = None) -> Any:
        self.rows = jnp.arange(self.first_env, self.first_env + self.num_envs, dtype=jnp.float32)[:, None]
        self.steps = jnp.zeros((self.num_envs, 1))
        return jnp.concatenate([self.rows, self.steps, self.steps - 1], 1), {}

    def advance(self, actions: Any) -> tuple[Any, ...]:
        self.steps, outputs = _advance_jax(self.rows, self.steps, actions)
        return outputs


@jax.jit
def _advance_jax(rows: Any, steps: Any, actions: Any) -> Any:
    steps = steps + 1
    truncated = steps >= 3 + rows % 4
    following = jnp.where(truncated, 0.0, steps)
    final = jnp.concatenate([rows, steps, actions], 1)
    observations = jnp.concatenate([rows, following, jnp.where(truncated, -1.0, actions)], 1)
    outputs = observations, 100 * rows + steps, jnp.zeros_like(truncated), truncated, final, truncated[:, 0]
    return following, outputs


class WarpEnv(DeviceEnv):
    framework = "warp"

    def reset(self, *, seed: int | None = None) -> Any:
        self.steps = wp.zeros(self.num_envs, dtype=float)
        rows = np.arange(self.first_env, self.first_env + self.num_envs)
        return wp.array(np.stack([rows, 0 * rows, 0 * rows - 1], 1), dtype=float), {}

    def advance(self, actions: Any) -> tuple[Any, ...]:
        observations, final = (wp.empty((self.num_envs, WIDTH), dtype=float) for _ in range(2))
        rewards = wp.empty((self.num_envs, 1), dtype=float)
        terminated, truncated = (wp.zeros((self.num_envs, 1), dtype=wp.bool) for _ in range(2))
        outputs = [self.steps, observations, rewards, truncated, final]
        wp.launch(_advance_warp, self.num_envs, inputs=[self.first_env, actions], outputs=outputs)
        return observations, rewards, terminated, truncated, final, truncated.flatten()


@wp.kernel(enable_backward=False)
def _advance_warp(
    first_env: int,
    actions: wp.array2d[float],
    steps: wp.array1d[float],
    observations: wp.array2d[float],
    rewards: wp.array2d[float],
    truncated: wp.array2d[wp.bool],
    final: wp.array2d[float],
):
    i = wp.tid()
    row = first_env + i  # type: ignore[operator]
    step = steps[i] + 1.0
    ended = step >= float(3 + row % 4)
    rewards[i, 0] = 100.0 * float(row) + step
    truncated[i, 0] = ended
    final[i, 0] = float(row)
    final[i, 1] = step
    final[i, 2] = actions[i, 0]
    observations[i, 0] = float(row)
    observations[i, 1] = wp.where(ended, 0.0, step)
    observations[i, 2] = wp.where(ended, -1.0, actions[i, 0])
    steps[i] = wp.where(ended, 0.0, step)


ENVS: dict[str, type[DeviceEnv]] = {"torch": TorchEnv, "jax": JaxEnv, "warp": WarpEnv}
