"""Scalars of two agents, our PPO and skrl's, in every mode; nothing is left on a worker's disk."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.agents import copied
from tests.support.envs import NoisyEnv, noisy_factory
from tests.support.parity import CFG, assert_same, ppo, step_trainer
from tests.support.skrl_agents import skrl_ppo
from trainer.torch import StepTrainer
from workers.agents.torch import PPO
from workers.envs import make_env, wrap_env
from workers.types import Scope

STEPS = 90
ENV = make_env("CartPole-v1", num_envs=5, framework="torch")


def our_agent(scope: Scope) -> PPO:
    spaces = {"observation_space": ENV.observation_space, "action_space": ENV.action_space}
    return PPO(**spaces, num_envs=scope.num_envs, cfg={"rollouts": 16})


def skrl_agent(folder: Path, scope: Scope) -> Any:
    """Build skrl's agent, set to write event files and checkpoints; it remembers the content of its folder."""
    agent = skrl_ppo(scope.num_envs)
    agent.write_interval = agent.checkpoint_interval = 10
    agent.experiment_dir = str(folder / "experiment")
    agent.was_there = (os.getcwd(), sorted(os.listdir()))
    return agent


def collected(folder: Path, env: Any, orchestrator: Any) -> list[list[dict[str, float]]]:
    agents = [our_agent, partial(skrl_agent, folder)]
    with StepTrainer(
        env=env, agents=agents, scopes=[2, 3], cfg={**CFG, "timesteps": STEPS}, orchestrator=orchestrator, seed=3
    ) as trainer:
        rows = [trainer.collect_metrics()]
        for timestep in range(STEPS):
            trainer.train(timestep=timestep)
            if timestep % 20 == 19:
                rows.append(trainer.collect_metrics())
        cwd, before = trainer.agents[1].was_there
        assert sorted(os.listdir(cwd)) == before
        assert not (folder / "experiment").exists()
    return rows


def without_times(rows: list[list[dict[str, float]]]) -> list[list[dict[str, float]]]:
    return [
        [{tag: value for tag, value in scope.items() if not re.search(r"time \(ms\)$", tag)} for scope in scopes]
        for scopes in rows
    ]


def test_scalars_are_equal_in_every_mode(tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    local = collected(tmp_path, ENV, "local")
    sharded = collected(tmp_path, make_env("CartPole-v1", num_envs=5, framework="torch"), "ray")
    without_recipe = make_env("CartPole-v1", num_envs=5, framework="torch")
    without_recipe.recipe = None
    shared = collected(tmp_path, without_recipe, "ray")
    for other in (sharded, shared):
        assert_same(without_times(other), without_times(local))
        assert [[sorted(scope) for scope in scopes] for scopes in other] == [
            [sorted(scope) for scope in scopes] for scopes in local
        ]
    ours, theirs = local[-1]
    assert {"Loss / Policy loss", "Policy / KL divergence", "Episode / Return (mean)"} <= set(ours)
    assert {"Loss / Policy loss", "Reward / Total reward (mean)", "Episode / Return (mean)"} <= set(theirs)
    # skrl's own statistics of the last 100 episodes agree with our measurement
    first = next(scopes[1] for scopes in local if "Episode / Return (max)" in scopes[1])
    assert first["Reward / Total reward (max)"] == first["Episode / Return (max)"]


def test_collecting_changes_no_number(framework: str):
    outputs = []
    agents = [partial(noisy_agent, framework)] * 2
    for collect in (False, True):
        with step_trainer(framework)(env=noisy_factory(4, discrete=True), agents=agents, cfg=CFG, seed=1) as trainer:
            for _ in range(40):
                observations = trainer.train()[0]
                if collect:
                    trainer.collect_metrics()
                    trainer.agent_files()
            outputs.append([copied(observations), *(copied(agent.state_dict()["models"]) for agent in trainer.agents)])
    assert_same(outputs[1], outputs[0])


def noisy_agent(framework: str, scope: Scope) -> Any:
    env = wrap_env(NoisyEnv(discrete=True), framework=framework)
    return ppo(framework)(
        observation_space=env.observation_space,
        action_space=env.action_space,
        num_envs=scope.num_envs,
        cfg={"rollouts": 8},
    )
