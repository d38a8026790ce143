"""The device of the tests on a GPU, and the trainers that they run there."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import Any

from tests.gpu.linear import LINEAR, make_agent
from workers.frameworks import load_framework

__all__ = ["AGENT_CFG", "DEVICE", "ENVS", "LINEAR", "ROLLOUTS", "build", "missing", "train", "values"]

DEVICE = os.environ.get("LOCKSTEP_DEVICE", "cuda:0")
ENVS, ROLLOUTS = 64, 8
AGENT_CFG: dict[str, Any] = {"rollouts": ROLLOUTS, "learning_epochs": 2, "mini_batches": 2, "kl_threshold": 0.01}
CFG: dict[str, Any] = {"timesteps": 1000, "headless": True, "disable_progressbar": True}


@cache
def missing(framework: str) -> str:
    """Return why there is nothing to test; empty if there is a device."""
    if importlib.util.find_spec(framework) is None:
        return f"{framework} is not installed"
    try:
        load_framework(framework).find_device(DEVICE)
    except ValueError as error:
        return str(error)
    return ""


def build(framework: str, *, agents: int = 1, at: Any = DEVICE, env_at: Any = DEVICE, seed: int | None = 3) -> Any:
    """Return a trainer of agents on a device, with environments on another or the same one."""
    module = importlib.import_module(f"trainer.{framework}")
    env, make = LINEAR[framework](ENVS, 0, env_at), make_agent(framework, AGENT_CFG, at)
    return module.StepTrainer(env=env, agents=[make] * agents, cfg=CFG, seed=seed)


def train(framework: str, steps: int = 3 * ROLLOUTS + 1, **options: Any) -> tuple[list[Any], list[Any]]:
    """Train with a trainer of `build`; return the outputs of every step and the agents' states, in NumPy arrays."""
    with build(framework, **options) as trainer:
        outputs = [values(framework, trainer.train()[:4]) for _ in range(steps)]
        return outputs, [values(framework, agent.state_dict()) for agent in trainer.agents]


def values(framework: str, tree: Any) -> Any:
    """Return a tree with copies of its arrays in NumPy."""
    adapter = load_framework(framework)
    if isinstance(tree, dict):
        return {key: values(framework, value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return [values(framework, value) for value in tree]
    return adapter.to_numpy(tree).copy() if adapter.is_array(tree) else tree
