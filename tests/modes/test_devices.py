"""Environments and agents on different devices, with JAX's CPU as two devices."""

from __future__ import annotations

from tests.support.processes import python

PROGRAM = """
import sys, tempfile
import jax, numpy as np
from tests.gpu.linear import ACTION_SPACE, OBSERVATION_SPACE, JaxLinear
from tests.support.parity import assert_same
from trainer.jax import StepTrainer
from workers.agents.jax import PPO

CFG = {"timesteps": 100, "headless": True, "disable_progressbar": True}

def build(env_at, *agents_at):
    def make(scope):
        spaces = {"observation_space": OBSERVATION_SPACE, "action_space": ACTION_SPACE}
        return PPO(**spaces, num_envs=scope.num_envs, cfg={"rollouts": 4}, device=agents_at[scope.index])
    return StepTrainer(env=JaxLinear(8, 0, env_at), agents=[make] * len(agents_at), cfg=CFG, seed=0)

def numbers(trainer):
    return [np.asarray(array) for array in trainer.train()[:4]]

def learned(trainer):
    return [jax.device_get(agent.state_dict()) for agent in trainer.agents]

with build("cpu:0", "cpu:0", "cpu:0") as trainer, tempfile.TemporaryDirectory() as folder:
    for _ in range(6):
        numbers(trainer)
    trainer.save(folder + "/checkpoint")
    expected = [numbers(trainer) for _ in range(6)]
    weights = learned(trainer)
    for places in (("cpu:1", "cpu:0", "cpu:1"), ("cpu:0", "cpu:1", "cpu:0"), ("cpu:1", "cpu:1", "cpu:1")):
        with build(*places) as other:
            other.load(folder + "/checkpoint")
            assert_same([numbers(other) for _ in range(6)], expected)
            assert_same(learned(other), weights)
            env_device = jax.devices()[int(places[0][-1])]
            assert other.train()[0].devices() == {env_device}, places
            for place, line in zip(places[1:], str(other).splitlines()[1:]):
                assert f"PPO, on {place} of " in line, line
"""


def test_numbers_are_the_same_wherever_environments_and_agents_are():
    done = python("-W", "error", "-c", PROGRAM, env={"XLA_FLAGS": "--xla_force_host_platform_device_count=2"})
    assert done.returncode == 0, done.stderr
