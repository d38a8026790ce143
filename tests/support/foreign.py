"""An environment wrapped by another library, and local trainers with it."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box

from tests.support.agents import NullAgent
from tests.support.parity import CFG, step_trainer
from workers.frameworks import load_framework


class ForeignEnv:
    """Wrapper of another library: has the required members, and records the calls."""

    observation_space = Box(-1, 1, (4,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)
    state_space = Box(-1, 1, (2,), np.float32)

    def __init__(self, num_envs: int = 2, infos: dict[str, Any] | None = None, framework: str = "torch") -> None:
        self.num_envs = num_envs
        self.from_numpy = load_framework(framework).from_numpy
        self.calls: list[str] = []
        self.time = 0
        self.infos = infos or {}

    def _observe(self) -> Any:
        return self.from_numpy(np.full((self.num_envs, 4), self.time, np.float32))

    def reset(self) -> Any:
        self.calls.append("reset")
        self.time = 0
        return self._observe(), {}

    def step(self, actions: Any) -> Any:
        self.calls.append("step")
        self.time += 1
        flags = np.zeros((self.num_envs, 1), np.bool_)
        ended = flags.copy()
        ended[0] = self.time == 3
        rewards = np.ones((self.num_envs, 1), np.float32)
        return self._observe(), *map(self.from_numpy, (rewards, ended, flags)), self.infos

    def state(self) -> Any:
        return self.from_numpy(np.full((self.num_envs, 2), -self.time, np.float32))

    def render(self) -> Any:
        self.calls.append("render")

    def close(self) -> None:
        self.calls.append("close")


def trainer_of(env: Any = None, agents: Any = NullAgent, framework: str = "torch", **options: Any) -> Any:
    cfg = {**CFG, "timesteps": 10, **options.pop("cfg", {})}
    env = env or ForeignEnv(framework=framework)
    return step_trainer(framework)(env=env, agents=agents, cfg=cfg, **options)
