"""An environment on the device: Pendulum in JAX, 256 copies stepped by one compiled function.

    python examples/jax_env.py

Arrays pass between environment and agent unchanged. A configuration for ``lockstep train`` uses the factory:
``env: {factory: "examples.jax_env:build", num_envs: 256}`` with ``framework: jax``.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.spaces import Box

from trainer.jax import StepTrainer
from workers.agents.jax import PPO
from workers.envs import EnvFactory, Wrapper
from workers.types import Scope

TIMESTEPS = 2000
STEPS_PER_EPISODE = 200
DT = 0.05


class Pendulum(Wrapper):
    """Gymnasium's Pendulum-v1 (gravity 10, mass 1, length 1); all copies are truncated after 200 steps."""

    framework = "jax"
    observation_space = Box(np.float32([-1, -1, -8]), np.float32([1, 1, 8]))
    action_space = Box(-2.0, 2.0, (1,), np.float32)
    num_envs = 0

    def __init__(self, num_envs: int, first_env: int) -> None:
        self.num_envs = num_envs
        self._keys = jax.vmap(jax.random.key)(first_env + jnp.arange(num_envs))
        self._states: Any = None  # angles, angular velocities, steps

    def reset(self, *, seed: int | None = None) -> tuple[jax.Array, dict[str, Any]]:
        """Start all copies. Copy i gets the key of ``seed + i``."""
        if seed is not None:
            self._keys = jax.vmap(jax.random.key)(seed + jnp.arange(self.num_envs))
        self._keys, self._states = start(self._keys)
        return observe(self._states), {}

    def step(self, actions: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, dict[str, Any]]:
        """Step all copies and reset those that end."""
        self._keys, self._states, outputs = advance(self._keys, self._states, actions)
        return outputs

    def render(self) -> None:
        """Do nothing: there is nothing to render."""

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


@jax.jit
def start(keys: jax.Array) -> Any:
    """Return new keys and random states."""
    keys, draws = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    numbers = jax.vmap(functools.partial(jax.random.uniform, shape=(2,), minval=-1.0))(draws)
    return keys, (numbers[:, :1] * jnp.pi, numbers[:, 1:], jnp.zeros((len(keys), 1), jnp.int32))


@jax.jit
def observe(states: Any) -> jax.Array:
    """Return observations ``(num_envs, 3)``."""
    angles, speeds, _ = states
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles), speeds], axis=1)


@jax.jit
def advance(keys: jax.Array, states: Any, actions: jax.Array) -> Any:
    """Do one step: return new keys, new states and the outputs of `step`."""
    angles, speeds, steps = states
    torques = jnp.clip(actions, -2.0, 2.0)
    normal = (angles + jnp.pi) % (2 * jnp.pi) - jnp.pi
    rewards = -(normal**2 + 0.1 * speeds**2 + 0.001 * torques**2)
    speeds = jnp.clip(speeds + (15.0 * jnp.sin(angles) + 3.0 * torques) * DT, -8.0, 8.0)
    after = (angles + speeds * DT, speeds, steps + 1)
    truncated = after[2] >= STEPS_PER_EPISODE
    keys, fresh = start(keys)
    following = tuple(jnp.where(truncated, one, other) for one, other in zip(fresh, after, strict=True))
    infos = {"final_obs": observe(after), "_final_obs": truncated[:, 0]}
    return keys, following, (observe(following), rewards, jnp.zeros_like(truncated), truncated, infos)


def build(num_envs: int, first_env: int) -> Pendulum:
    """Build the copies from ``first_env`` up to ``first_env + num_envs`` (exclusive)."""
    return Pendulum(num_envs, first_env)


def make_agent(scope: Scope) -> PPO:
    """Build the agent of one scope."""
    return PPO(
        observation_space=Pendulum.observation_space,
        action_space=Pendulum.action_space,
        num_envs=scope.num_envs,
        cfg={"rollouts": 32, "learning_epochs": 8, "learning_rate": 1e-3, "discount_factor": 0.95},
    )


def main() -> None:
    """Train two simultaneous agents."""
    cfg = {"timesteps": TIMESTEPS, "headless": True, "disable_progressbar": True}
    env = EnvFactory(build, num_envs=256)
    with StepTrainer(env=env, agents=[make_agent] * 2, cfg=cfg, seed=0) as trainer:
        total: Any = 0.0
        for timestep in range(TIMESTEPS):
            _, rewards, *_ = trainer.train(timestep=timestep)
            total += rewards.mean(axis=1)
            if timestep % STEPS_PER_EPISODE == STEPS_PER_EPISODE - 1:
                returns = [float(total[start:stop].mean()) for start, stop in trainer.scopes]
                print(f"timestep {timestep + 1}: return {', '.join(f'{value:.0f}' for value in returns)}")
                total = 0.0


if __name__ == "__main__":
    main()
