"""Environments and agents that do nothing, to measure everything around them."""

from __future__ import annotations

import time
from typing import Any

import gymnasium
import numpy as np
import torch

from workers.types import Scope


class NoOpEnv:
    """Environment that always returns the same arrays."""

    action_space = gymnasium.spaces.Discrete(2)
    state_space = None

    def __init__(self, num_envs: int, size: int = 4) -> None:
        self.num_envs = num_envs
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        flags = torch.zeros(num_envs, 1, dtype=torch.bool)
        self.outputs = torch.zeros(num_envs, size), torch.zeros(num_envs, 1), flags, flags, {}

    def reset(self) -> Any:
        return self.outputs[0], {}

    def step(self, actions: Any) -> Any:
        return self.outputs

    def state(self) -> None:
        return None

    def render(self) -> None:
        pass

    def close(self) -> None:
        pass


class SleepingEnv(NoOpEnv):
    """Environment that waits in every step, like one that works elsewhere: on a GPU, in a simulator, on a robot."""

    def __init__(self, num_envs: int, seconds: float) -> None:
        super().__init__(num_envs)
        self.seconds = seconds

    def step(self, actions: Any) -> Any:
        time.sleep(self.seconds)
        return self.outputs


class NoOpAgent:
    """Agent that always returns the same actions."""

    def __init__(self, num_envs: int) -> None:
        self.acted = torch.zeros(num_envs, 1, dtype=torch.int64), {}

    def init(self, *, trainer_cfg: Any = None) -> None:
        pass

    def enable_training_mode(self, enabled: bool = True) -> None:
        pass

    def pre_interaction(self, *, timestep: int, timesteps: int) -> None:
        pass

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        return self.acted

    def record_transition(self, **arguments: Any) -> None:
        pass

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        pass

    def track_data(self, tag: str, value: float) -> None:
        pass


def no_op_agent(scope: Scope) -> NoOpAgent:
    """Build the agent of one scope, in the process where it will live."""
    return NoOpAgent(scope.num_envs)
