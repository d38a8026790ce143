"""Environments of the tests and benchmarks on a GPU: a stable linear system with random resets, in each framework.

48 observations, 12 actions. An episode ends after 200 steps, or where an observation leaves [-6, 6]. The reward is
minus the mean square of the observations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.spaces import Box

from workers.agents import load_ppo
from workers.envs import Wrapper
from workers.frameworks import load_framework

OBSERVATIONS, ACTIONS, LENGTH, LIMIT = 48, 12, 200, 6.0
OBSERVATION_SPACE = Box(-np.inf, np.inf, (OBSERVATIONS,), np.float32)
ACTION_SPACE = Box(-1, 1, (ACTIONS,), np.float32)


def matrices() -> tuple[Any, Any]:
    """Return the system: how the observations follow from the last ones, and from the actions."""
    rng = np.random.default_rng(7)
    rotation = np.linalg.qr(rng.normal(size=(OBSERVATIONS, OBSERVATIONS)))[0]
    return np.float32(0.97 * rotation), np.float32(0.1 * rng.normal(size=(ACTIONS, OBSERVATIONS)))


class _Linear(Wrapper):
    observation_space, action_space = OBSERVATION_SPACE, ACTION_SPACE
    gives_arrays_away = True
    num_envs = 0

    def __init__(self, num_envs: int, first_env: int = 0, device: Any = None) -> None:
        self.num_envs, self.first_env = num_envs, first_env
        self._prepare(device)

    def _prepare(self, device: Any) -> None:
        raise NotImplementedError

    def render(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class TorchLinear(_Linear):
    """In PyTorch."""

    framework = "torch"

    def _prepare(self, device: Any) -> None:
        import torch

        self.torch, self.device = torch, torch.device(device or "cpu")
        self._along, self._across = (torch.tensor(matrix, device=self.device) for matrix in matrices())
        self._random = torch.Generator(device=self.device).manual_seed(self.first_env)

    def _draw(self) -> Any:
        return self.torch.randn(self.num_envs, OBSERVATIONS, device=self.device, generator=self._random)

    def reset(self, *, seed: int | None = None) -> Any:
        """Start all copies."""
        if seed is not None:
            self._random.manual_seed(seed + self.first_env)
        self._state = self._draw()
        shape = (self.num_envs, 1)
        self._steps = self.torch.randint(0, LENGTH, shape, device=self.device, generator=self._random)
        return self._state, {}

    def step(self, actions: Any) -> Any:
        """Step all copies."""
        torch = self.torch
        state = self._state @ self._along + actions.clamp(-1, 1) @ self._across + 0.05 * self._draw()
        steps = self._steps + 1
        truncated, terminated = steps >= LENGTH, state.abs().amax(1, keepdim=True) > LIMIT
        ended = truncated | terminated
        self._steps = torch.where(ended, 0, steps)
        self._state = torch.where(ended, self._draw(), state)
        rewards = -(state * state).mean(1, keepdim=True)
        return self._state, rewards, terminated, truncated, {"final_obs": state, "_final_obs": ended[:, 0]}

    def get_state(self) -> Any:
        """Return everything that the next steps depend on."""
        return {"state": self._state, "steps": self._steps, "random": self._random.get_state()}

    def set_state(self, state: Any) -> None:
        """Set a result of `get_state`, of any device."""
        self._state, self._steps = state["state"].to(self.device), state["steps"].to(self.device)
        self._random.set_state(state["random"].cpu())


class JaxLinear(_Linear):
    """In JAX: a step is one compiled call."""

    framework = "jax"

    def _prepare(self, device: Any) -> None:
        import jax
        from jax import numpy as jnp

        self.device = jax.devices()[0] if device is None else load_framework("jax").find_device(device)
        along, across = (jax.device_put(matrix, self.device) for matrix in matrices())

        @jax.jit
        def start(key: Any) -> Any:
            key, one, other = jax.random.split(key, 3)
            state = jax.random.normal(one, (self.num_envs, OBSERVATIONS))
            return key, state, jax.random.randint(other, (self.num_envs, 1), 0, LENGTH)

        @jax.jit
        def advance(key: Any, state: Any, steps: Any, actions: Any) -> Any:
            key, one, other = jax.random.split(key, 3)
            noise = 0.05 * jax.random.normal(one, state.shape)
            after = state @ along + jnp.clip(actions, -1, 1) @ across + noise
            steps = steps + 1
            truncated = steps >= LENGTH
            terminated = jnp.abs(after).max(1, keepdims=True) > LIMIT
            ended = truncated | terminated
            state = jnp.where(ended, jax.random.normal(other, state.shape), after)
            rewards = -(after * after).mean(1, keepdims=True)
            infos = {"final_obs": after, "_final_obs": ended[:, 0]}
            return key, state, jnp.where(ended, 0, steps), (state, rewards, terminated, truncated, infos)

        self._start, self._advance, self._key = start, advance, None
        self._put = lambda tree: jax.device_put(tree, self.device)
        self._new = lambda seed: self._put(jax.random.key(seed))

    def reset(self, *, seed: int | None = None) -> Any:
        """Start all copies."""
        if seed is not None or self._key is None:
            self._key = self._new((seed or 0) + self.first_env)
        self._key, self._state, self._steps = self._start(self._key)
        return self._state, {}

    def step(self, actions: Any) -> Any:
        """Step all copies."""
        self._key, self._state, self._steps, outputs = self._advance(self._key, self._state, self._steps, actions)
        return outputs

    def get_state(self) -> Any:
        """Return everything that the next steps depend on."""
        return {"key": self._key, "state": self._state, "steps": self._steps}

    def set_state(self, state: Any) -> None:
        """Set a result of `get_state`, of any device."""
        self._key, self._state, self._steps = self._put([state["key"], state["state"], state["steps"]])


class WarpLinear(_Linear):
    """In Warp: a step is one kernel."""

    framework = "warp"

    def _prepare(self, device: Any) -> None:
        import warp as wp

        from tests.gpu import linear_warp

        self.wp, self._kernels = wp, linear_warp
        self.device = wp.get_device(device)
        self._matrices = [wp.array(matrix, dtype=float, device=self.device) for matrix in matrices()]
        self._noise = wp.zeros(2, dtype=int, device=self.device)
        self._steps = wp.zeros(self.num_envs, dtype=int, device=self.device)

    def _empty(self, width: int, dtype: Any = float) -> Any:
        return self.wp.empty((self.num_envs, width), dtype=dtype, device=self.device)

    def reset(self, *, seed: int | None = None) -> Any:
        """Start all copies."""
        self._noise.assign([(seed or 0) + self.first_env, 0])
        self._state = self._empty(OBSERVATIONS)
        outputs = [self._steps, self._state]
        self.wp.launch(self._kernels.start, self.num_envs, [self._noise], outputs, device=self.device)
        return self._state, {}

    def step(self, actions: Any) -> Any:
        """Step all copies."""
        wp = self.wp
        state, final, rewards = self._empty(OBSERVATIONS), self._empty(OBSERVATIONS), self._empty(1)
        terminated, truncated, ended = (self._empty(1, wp.bool) for _ in range(3))
        outputs = [self._steps, state, final, rewards, terminated, truncated, ended]
        inputs = [self._state, actions, *self._matrices, self._noise]
        wp.launch(self._kernels.advance, self.num_envs, inputs, outputs, device=self.device)
        wp.launch(self._kernels.count, 1, [], [self._noise], device=self.device)
        self._state = state
        return state, rewards, terminated, truncated, {"final_obs": final, "_final_obs": ended.flatten()}

    def get_state(self) -> Any:
        """Return everything that the next steps depend on."""
        return {"state": self._state, "steps": self._steps, "noise": self._noise}

    def set_state(self, state: Any) -> None:
        """Set a result of `get_state`, of any device."""
        self._state = self.wp.clone(state["state"].to(self.device))
        self._steps.assign(state["steps"])
        self._noise.assign(state["noise"])


def make_agent(framework: str, cfg: dict[str, Any], device: Any) -> Callable[[Any], Any]:
    """Return a factory of Lockstep's PPO agents for these environments."""

    def make(scope: Any) -> Any:
        spaces = {"observation_space": OBSERVATION_SPACE, "action_space": ACTION_SPACE}
        return load_ppo(framework)(**spaces, num_envs=scope.num_envs, cfg=cfg, device=device)

    return make


LINEAR: dict[str, Any] = {"torch": TorchLinear, "jax": JaxLinear, "warp": WarpLinear}
