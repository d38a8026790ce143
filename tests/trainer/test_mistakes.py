"""Mistakes with agents and environments of several frameworks: each has an error that says what to do."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box

from tests.support.agents import RecordingAgent
from tests.support.parity import CFG, assert_same, step_trainer
from tests.support.ppo import BOX, CLOCK, STEPS, make, run, state_of
from workers.agents import load_ppo
from workers.envs import make_env
from workers.errors import AgentError, ConfigError
from workers.frameworks import load_framework


@pytest.mark.parametrize(("trainer", "agent"), [("jax", "torch"), ("warp", "jax"), ("torch", "warp")])
def test_an_agent_of_another_framework(trainer, agent):
    env = make_env("Pendulum-v1", num_envs=2, framework=trainer)
    kind = load_ppo(agent)
    given = kind(observation_space=env.observation_space, action_space=env.action_space, num_envs=2)
    with pytest.raises(Exception, match=f"PPO, is for '{agent}', but the trainer is for '{trainer}'"):
        step_trainer(trainer)(env=env, agents=given, cfg=CFG)


def test_numpys_observations(framework):
    agent = make(framework)
    with pytest.raises(AgentError, match=f"is of type ndarray; expected a {framework} array"):
        agent.act(np.zeros((3, BOX.shape[0]), np.float32), None, **CLOCK)


@pytest.mark.parametrize(("framework", "package"), [("jax", "flax"), ("jax", "optax"), ("warp", "warp")])
def test_a_package_that_is_not_installed(framework, package, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(f"workers.agents.{framework}")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"pip install 'lockstep-rl\[{framework}\]'"):
        load_ppo(framework)


def test_a_device_that_there_is_not(framework):
    with pytest.raises(AgentError, match=r"device is 'nowhere:3'; expected None for .*'s default device, or "):
        load_ppo(framework)(observation_space=BOX, action_space=BOX, num_envs=1, device="nowhere:3")


@pytest.mark.parametrize("framework", ["jax", "warp"])  # torch is tested in tests/scope/test_devices.py
def test_an_agent_of_a_device_that_is_not_here_is_unpickled_on_the_default_one(framework):
    agent = load_ppo(framework)(observation_space=BOX, action_space=BOX, num_envs=1)
    other = object.__new__(type(agent))
    other.__setstate__(dict(agent.__getstate__()) | {"device": "cuda:7"})
    assert str(other.device) == str(agent.device)
    assert_same(other.snapshot(), agent.snapshot())


def test_an_update_that_fails_lets_the_agent_go_on(framework, monkeypatch):
    agent = make(framework)
    before = state_of(agent)

    def fail(orders: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(agent, "_update", fail)
    with pytest.raises(ZeroDivisionError):
        run(agent, range(STEPS))
    monkeypatch.undo()
    agent.init()  # as the next trainer does
    run(agent, range(STEPS))
    assert (state_of(agent)["models"]["value.0.weight"] != before["models"]["value.0.weight"]).any()


class OneArray:
    """Foreign single environment with one observation array, which is written in place if the framework can."""

    observation_space, action_space, state_space, num_envs = Box(-9, 9, (1,)), Box(-9, 9, (1,)), None, 1

    def __init__(self, framework: str) -> None:
        self.framework = load_framework(framework)
        self.memory = self.framework.from_numpy(np.zeros((1, 1), np.float32))
        self.flags = [self.framework.from_numpy(np.full((1, 1), flag)) for flag in (False, True)]
        self.time = 0

    def observe(self) -> Any:
        values = self.framework.to_numpy(self.memory)
        if values.flags.writeable:
            values[:] = self.time
        else:
            self.memory = self.framework.from_numpy(np.full((1, 1), self.time, np.float32))
        return self.memory

    def reset(self) -> Any:
        self.time = 0
        return self.observe(), {}

    def step(self, actions: Any) -> Any:
        self.time += 1
        rewards = self.framework.from_numpy(np.zeros((1, 1), np.float32))
        return self.observe(), rewards, self.flags[self.time == 3], self.flags[0], {}

    def state(self) -> None:
        return None

    def render(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_an_environment_that_writes_to_one_array(framework):
    with step_trainer(framework)(env=OneArray(framework), agents=RecordingAgent, cfg=CFG) as trainer:
        for _ in range(7):
            trainer.train()
        records = trainer.agents[0].records()
    trace = [(record["observations"].item(), record["next_observations"].item()) for record in records]
    assert trace == [(0, 1), (1, 2), (2, 3), (0, 1), (1, 2), (2, 3), (0, 1)]
