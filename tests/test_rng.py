"""The user's random generators are theirs: a run leaves them as they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from orchestrator.ray import RayOrchestrator
from tests.support.agents import NoisyAgent, NullAgent
from tests.support.envs import noisy_factory
from tests.support.parity import CFG, assert_same
from trainer.torch import StepTrainer


class ConstantAgent(NullAgent):
    def act(self, observations, states, *, timestep, timesteps):
        return torch.zeros(len(observations), 2), {}


def states():
    return {"torch": torch.get_rng_state().numpy(), "numpy": list(np.random.get_state())}


def used_states(agents, *, seed, orchestrator="local"):
    """States of the generators after a seeded start with one Gaussian cached, and after a run."""
    torch.manual_seed(1)
    np.random.seed(1)
    torch.randn(3)
    np.random.standard_normal(3)
    before = states()
    trainer = StepTrainer(
        env=noisy_factory(4), agents=agents, cfg={**CFG, "timesteps": 20}, orchestrator=orchestrator, seed=seed
    )
    with trainer:
        for step in range(20):
            (trainer.train if step % 2 else trainer.eval)()
        trainer.reset()
        trainer.train()
        assert len(trainer.agents) == len(agents)
    return before, states()


@pytest.mark.parametrize("agents", [[NoisyAgent], [NoisyAgent, NoisyAgent]], ids=["one", "two"])
def test_local_run_with_a_seed_leaves_the_generators_alone(agents):
    before, after = used_states(agents, seed=5)
    assert_same(after, before)


def test_local_run_without_a_seed_draws_only_what_the_agents_draw():
    before, after = used_states([ConstantAgent], seed=None)
    assert_same(after, before)
    before, after = used_states([NoisyAgent], seed=None)
    with pytest.raises(AssertionError):
        assert_same(after, before)


@pytest.mark.parametrize("seed", [None, 5])
def test_ray_run_leaves_the_generators_alone(ray_cluster, seed):
    before, after = used_states([NoisyAgent, NoisyAgent], seed=seed, orchestrator=RayOrchestrator())
    assert_same(after, before)


def test_generators_are_given_back_after_an_error():
    class Failing(NoisyAgent):
        def act(self, observations, states, *, timestep, timesteps):
            torch.randn(1)
            np.random.standard_normal()
            raise RuntimeError("no action")

    torch.manual_seed(1)
    np.random.seed(1)
    before = states()
    trainer = StepTrainer(env=noisy_factory(2), agents=Failing, cfg=CFG, seed=5)
    with trainer, pytest.raises(RuntimeError, match="no action"):
        trainer.train()
    assert_same(states(), before)
