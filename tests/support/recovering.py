"""Trainers whose workers are killed."""

from __future__ import annotations

from typing import Any

import numpy as np
import psutil
from gymnasium.spaces import Box

from orchestrator.ray import RayOrchestrator
from tests.support.agents import RecordingAgent
from tests.support.parity import CFG, step_trainer
from tests.support.processes import still_alive
from tests.support.states import Row
from workers.envs import EnvFactory
from workers.envs.making import build_rows

__all__ = ["kill", "pids_of", "trainer_of"]


class Walk(Row):
    """Shows the last action, and a draw of its own generator."""

    action_space = Box(-np.inf, np.inf, (1,), np.float32)

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.last = 0.0

    def extra(self) -> float:
        return self.last + self.np_random.random()

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.last = 0.0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        self.last = float(action[0])
        return super().step(action)


def trainer_of(agents: Any = RecordingAgent, env: Any = None, *, mode: str = "sharded", **options: Any) -> Any:
    env = env or EnvFactory(lambda n, first: [Walk(first + row) for row in range(n)], num_envs=4)
    if mode != "sharded":
        env = build_rows(env, 4, 0, framework="warp", seed=1)
    options = {"num_cpus": 0.5, **options}
    return step_trainer("warp")(
        env=env,
        agents=agents if isinstance(agents, list) else [agents] * 2,
        cfg={**CFG, "timesteps": 100},
        orchestrator="local" if mode == "local" else RayOrchestrator(**options),
        seed=1,
    )


def pids_of(trainer: Any) -> list[int]:
    return [int(worker.node.rpartition("pid ")[2].rstrip(")")) for worker in trainer._session.workers]


def kill(trainer: Any, *scopes: int) -> None:
    """Kill workers, and wait until they are dead."""
    processes = [psutil.Process(pids_of(trainer)[scope]) for scope in scopes]
    for process in processes:
        process.kill()
    assert still_alive(processes) == []
