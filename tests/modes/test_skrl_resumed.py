"""skrl's torch agents go on from a checkpoint bit for bit, without a pickle in it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch

from orchestrator.checkpoint import read_checkpoint
from orchestrator.ray import RayOrchestrator
from tests.modes.test_skrl_multi_agents import TEAM
from tests.modes.test_skrl_multi_agents import make as make_team
from tests.support.multi_agent_envs import noisy_team_factory
from tests.support.parity import CFG, assert_same, step_trainer
from tests.support.resumed import ending, iterations
from tests.support.schedule import full_or_short
from tests.support.skrl_kept import build
from workers.envs import make_env
from workers.errors import CheckpointError

STEPS = 70
ENVS = {"PPO": "Pendulum-v1", "SAC": "Pendulum-v1", "TD3": "Pendulum-v1", "DQN": "CartPole-v1"}
KINDS = [*ENVS, "IPPO", "MAPPO"]


def build_trainer(kind: str, mode: str = "local", scopes: tuple[int, int] = (2, 3), **changes: Any) -> Any:
    if kind in ENVS:
        env: Any = make_env(ENVS[kind], num_envs=sum(scopes), framework="torch", max_episode_steps=19)
        spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
        agent: Any = partial(changes.pop("build", build), kind, spaces)
    else:
        env, agent = noisy_team_factory(sum(scopes), **TEAM), partial(make_team, "torch", kind)
    return step_trainer("torch")(
        env=env,
        agents=[agent] * 2,
        scopes=list(scopes),
        cfg={**CFG, "timesteps": STEPS},
        orchestrator="local" if mode == "local" else RayOrchestrator(),
        seed=3,
        **changes,
    )


CASES = [(kind, "local", "local", stop) for kind in KINDS for stop in (3, 34, 37)]
CASES += [(kind, *modes, 41) for kind in KINDS for modes in (("ray", "local"), ("local", "ray"))]
SHORT = [(kind, "local", "local", 34 + 3 * (place % 2)) for place, kind in enumerate(KINDS)] + [
    ("SAC", "ray", "local", 41)
]


@pytest.mark.parametrize(("kind", "saved_in", "loaded_in", "stop"), full_or_short(CASES, SHORT))
def test_a_loaded_run_is_the_undisturbed_run(
    kind: str, saved_in: str, loaded_in: str, stop: int, tmp_path: Path, request: pytest.FixtureRequest
):
    if "ray" in (saved_in, loaded_in):
        request.getfixturevalue("ray_cluster")
    with build_trainer(kind, saved_in) as trainer:
        trainer.collect_metrics()
        list(iterations(trainer, 0, stop))
        trainer.save(tmp_path / "checkpoint")
        expected = ending(trainer, stop, STEPS)
    with build_trainer(kind, loaded_in) as trainer:
        if stop < STEPS // 2:  # whatever the agent has done before
            list(iterations(trainer, 0, 9))
        assert trainer.load(tmp_path / "checkpoint") == stop
        assert_same(ending(trainer, stop, STEPS), expected)
    assert read_checkpoint(tmp_path / "checkpoint", allow_pickle=False)[1].agents


class Thing:
    pass


class Pair(NamedTuple):
    one: int


class Level(IntEnum):
    LOW = 1


@dataclass
class Counter:
    count: int = 0


def build_with_a_counter(kind: str, spaces: Any, scope: Any) -> Any:
    agent = build(kind, spaces, scope)
    agent.counter, agent.level, agent.history = Counter(), Level.LOW, None
    return agent


def test_attributes_of_ones_own(tmp_path: Path):
    with build_trainer("PPO", build=build_with_a_counter) as trainer:
        agent = trainer.agents[0]
        agent.counter.count, agent.history = 7, deque([1, 2], 5)
        trainer.save(tmp_path / "checkpoint")
        agent.pair = Pair(3)
        with pytest.raises(CheckpointError, match=r"it holds a .*Pair at \.pair, "):
            trainer.save(tmp_path / "checkpoint")
    with build_trainer("PPO", build=build_with_a_counter) as trainer:
        trainer.load(tmp_path / "checkpoint")
        agent = trainer.agents[0]
        assert (agent.counter, agent.level, agent.history) == (Counter(7), Level.LOW, deque([1, 2], 5))
        assert agent.history.maxlen == 5


def build_with_a_thing(kind: str, spaces: Any, scope: Any) -> Any:
    agent = build(kind, spaces, scope)
    agent.helper = {"parts": [Thing()]}
    return agent


def test_what_cannot_be_kept_is_named(tmp_path: Path):
    with build_trainer("PPO", build=build_with_a_thing) as trainer:
        told = r"PPO, .* it holds a .*Thing at \.helper\['parts'\]\[0\], .* only pickle can keep it; pass allow_pickle"
        with pytest.raises(CheckpointError, match=told):
            trainer.save(tmp_path / "checkpoint")
        trainer.save(tmp_path / "checkpoint", allow_pickle=True)
        with pytest.raises(CheckpointError, match=r"has agents/0\.pickle"):
            trainer.load(tmp_path / "checkpoint")
        trainer.load(tmp_path / "checkpoint", allow_pickle=True)


def wider(kind: str, spaces: Any, scope: Any) -> Any:
    agent = build(kind, spaces, scope)
    agent.models["policy"].net[0] = torch.nn.Linear(3, 17)
    agent.models["policy"].net[2] = torch.nn.Linear(17, 1)
    return agent


def state_of(agent: Any) -> list[np.ndarray[Any, Any]]:
    tensors = [*agent.policy.state_dict().values(), *agent.memory.tensors.values()]
    return [tensor.numpy().copy() for tensor in tensors]


def test_a_state_that_does_not_fit_changes_nothing(tmp_path: Path):
    with build_trainer("SAC", build=wider) as trainer:
        trainer.train()
        trainer.save(tmp_path / "checkpoint")
    with build_trainer("SAC") as trainer:
        list(iterations(trainer, 0, 20))
        before = [state_of(agent) for agent in trainer.agents]
        told = r"does not fit the agent of scope 0, SAC: .*net.0.weight has shape \(17, 3\); expected \(16, 3\)"
        with pytest.raises(CheckpointError, match=told):
            trainer.load(tmp_path / "checkpoint")
        assert_same([state_of(agent) for agent in trainer.agents], before)
        trainer.train()


def test_a_memory_keeps_its_views(tmp_path: Path):
    with build_trainer("SAC") as trainer:
        list(iterations(trainer, 0, 20))
        trainer.save(tmp_path / "checkpoint")
        (agent, _) = trainer.agents
        before = {name: tensor.data_ptr() for name, tensor in agent.memory.tensors.items()}
        trainer.load(tmp_path / "checkpoint")
        for name, tensor in agent.memory.tensors.items():
            views = (tensor, agent.memory.tensors_view[name], getattr(agent.memory, f"_tensor_{name}"))
            assert {view.data_ptr() for view in views} == {before[name]}
        assert agent.checkpoint_modules["policy"] is agent.policy is agent.models["policy"]
        (group,) = agent.entropy_optimizer.param_groups
        assert group["params"][0] is agent.log_entropy_coefficient
    assert isinstance(agent.action_space, gymnasium.spaces.Box)
