"""An environment on a GPU: Pendulum in PyTorch, 4,096 copies; on a machine without a GPU, 64 copies on the CPU.

    python examples/torch_env.py [cuda:1]

Environments, agents and outputs stay on the device, and nothing waits for it within a rollout. A configuration for
``lockstep train`` has ``env: {factory: "examples.torch_env:build", num_envs: 4096}`` and ``device: cuda``, which is for
both.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from trainer.torch import StepTrainer
from workers.agents.torch import PPO
from workers.envs import EnvFactory, Wrapper
from workers.types import Scope

TIMESTEPS = 2000
STEPS_PER_EPISODE = 200
DT = 0.05


class Pendulum(Wrapper):
    """Gymnasium's Pendulum-v1 (gravity 10, mass 1, length 1); a copy is truncated 200 steps after its start."""

    framework = "torch"
    observation_space = Box(np.float32([-1, -1, -8]), np.float32([1, 1, 8]))
    action_space = Box(-2.0, 2.0, (1,), np.float32)
    num_envs = 0  # abstract in Wrapper, so it needs a value here, too

    def __init__(self, num_envs: int, first_env: int, device: str) -> None:
        self.num_envs = num_envs
        self.device = torch.device(device)  # so that a checkpoint of another device is restored on this one
        self.keys = self.first_keys(first_env)
        self.angles, self.speeds = torch.zeros(2, num_envs, 1, device=self.device)
        self.steps = torch.zeros(num_envs, 1, dtype=torch.int64, device=self.device)

    def first_keys(self, seed: int) -> Tensor:
        """Return the states of the copies' random numbers, ``(num_envs, 1)``: copy i has that of ``seed + i``."""
        return torch.arange(seed, seed + self.num_envs, device=self.device)[:, None] * -7046029288634856825

    def reset(self, *, seed: int | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Start all copies."""
        if seed is not None:
            self.keys = self.first_keys(seed)
        self.angles, self.speeds = self.draw()
        self.steps = torch.zeros_like(self.steps)
        return observe(self.angles, self.speeds), {}

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Step all copies and reset those that end, without a look at the values."""
        torques = actions.clamp(-2.0, 2.0)
        normal = torch.remainder(self.angles + torch.pi, 2 * torch.pi) - torch.pi
        rewards = -(normal**2 + 0.1 * self.speeds**2 + 0.001 * torques**2)
        speeds = (self.speeds + (15.0 * self.angles.sin() + 3.0 * torques) * DT).clamp(-8.0, 8.0)
        angles, steps = self.angles + speeds * DT, self.steps + 1
        truncated = steps >= STEPS_PER_EPISODE
        infos = {"final_obs": observe(angles, speeds), "_final_obs": truncated[:, 0]}
        fresh_angles, fresh_speeds = self.draw()
        self.angles = torch.where(truncated, fresh_angles, angles)
        self.speeds = torch.where(truncated, fresh_speeds, speeds)
        self.steps = torch.where(truncated, 0, steps)
        terminated = torch.zeros_like(truncated)
        return observe(self.angles, self.speeds), rewards, terminated, truncated, infos

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return random angles and angular velocities of all copies.

        Each copy has a stream of its own, so a slice of a batch equals the same rows of the whole. A `torch.Generator`
        would serve all of them together.
        """
        angles, speeds = uniform(self.keys + 1), uniform(self.keys + 2)
        self.keys = self.keys + 3
        return angles * torch.pi, speeds

    def render(self) -> None:
        """Do nothing: there is nothing to render."""

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def observe(angles: Tensor, speeds: Tensor) -> Tensor:
    """Return observations ``(num_envs, 3)``."""
    return torch.cat([angles.cos(), angles.sin(), speeds], 1)


def uniform(keys: Tensor) -> Tensor:
    """Return a number in [-1, 1) for each key: SplitMix64 (https://doi.org/10.1145/2714064.2660195)."""
    bits = keys * -7046029254386353131
    bits = (bits ^ (bits >> 30 & (1 << 34) - 1)) * -4658895280553007687
    bits = (bits ^ (bits >> 27 & (1 << 37) - 1)) * -7723592293110705685
    bits = bits ^ (bits >> 31 & (1 << 33) - 1)
    return (bits >> 11).float() / (1 << 52)


def default_device() -> str:
    """Return the first GPU, or the CPU."""
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def build(num_envs: int, first_env: int, device: str | None = None) -> Pendulum:
    """Build the copies from ``first_env`` up to ``first_env + num_envs`` (exclusive)."""
    return Pendulum(num_envs, first_env, device or default_device())


def make_agent(scope: Scope, device: str) -> PPO:
    """Build the agent of one scope."""
    return PPO(
        observation_space=Pendulum.observation_space,
        action_space=Pendulum.action_space,
        num_envs=scope.num_envs,
        cfg={"rollouts": 32, "learning_epochs": 8, "learning_rate": 1e-3, "discount_factor": 0.95},
        device=device,
    )


def main() -> None:
    """Train two simultaneous agents on one device."""
    device = sys.argv[1] if len(sys.argv) > 1 else default_device()
    num_envs = 64 if device == "cpu" else 4096
    cfg = {"timesteps": TIMESTEPS, "headless": True, "disable_progressbar": True}
    env = EnvFactory(functools.partial(build, device=device), num_envs=num_envs)
    agents = [functools.partial(make_agent, device=device)] * 2
    with StepTrainer(env=env, agents=agents, cfg=cfg, seed=0) as trainer:
        print(trainer)
        total: Any = 0.0
        for timestep in range(TIMESTEPS):
            _, rewards, *_ = trainer.train(timestep=timestep)
            total = total + rewards.mean(dim=1)
            if timestep % STEPS_PER_EPISODE == STEPS_PER_EPISODE - 1:
                returns = [float(total[start:stop].mean()) for start, stop in trainer.scopes]  # this waits
                print(f"timestep {timestep + 1}: return {', '.join(f'{value:.0f}' for value in returns)}")
                total = 0.0


if __name__ == "__main__":
    main()
