"""The device of the tests on a GPU, and the trainers that they run there."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import Any

from tests.gpu.linear import ACTION_SPACE, LINEAR, OBSERVATION_SPACE
from workers.frameworks import load_framework

__all__ = ["DEVICE", "ENVS", "LINEAR", "cfg_of", "make_agent", "missing", "train", "values"]

DEVICE = os.environ.get("LOCKSTEP_DEVICE", "cuda:0")
ENVS, ROLLOUTS = 64, 8


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


def cfg_of(**changes: Any) -> Any:
    return {"rollouts": ROLLOUTS, "learning_epochs": 2, "mini_batches": 2, "kl_threshold": 0.01} | changes


def make_agent(framework: str, device: Any = DEVICE, **changes: Any) -> Any:
    """Return a factory of agents."""
    from workers.agents import load_ppo

    def make(scope: Any) -> Any:
        return load_ppo(framework)(
            observation_space=OBSERVATION_SPACE,
            action_space=ACTION_SPACE,
            num_envs=scope.num_envs,
            cfg=cfg_of(**changes),
            device=device,
        )

    return make


def train(
    framework: str, steps: int = 3 * ROLLOUTS + 1, *, agents: int = 1, seed: int | None = 3, at: Any = DEVICE,
    env_at: Any = DEVICE, **changes: Any
) -> tuple[list[Any], list[Any]]:  # fmt: skip
    """Train; return the outputs of every step and the agents' states, in NumPy arrays."""
    module = importlib.import_module(f"trainer.{framework}")
    cfg = {"timesteps": 1000, "headless": True, "disable_progressbar": True}
    env = LINEAR[framework](ENVS, 0, env_at)
    with module.StepTrainer(
        env=env, agents=[make_agent(framework, at, **changes)] * agents, cfg=cfg, seed=seed
    ) as trainer:
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
