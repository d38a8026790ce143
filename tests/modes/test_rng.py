"""A run leaves the user's random generators unchanged."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from orchestrator.ray import RayOrchestrator
from tests.support.agents import NoisyAgent, NullAgent, framework_of
from tests.support.envs import noisy_factory
from tests.support.parity import CFG, assert_same, step_trainer
from tests.support.schedule import in_turn


class ConstantAgent(NullAgent):
    def act(self, observations, states, *, timestep, timesteps):
        return framework_of(observations).from_numpy(np.zeros((len(observations), 2), np.float32)), {}


def states():
    """Return the states of all global generators: JAX and Warp have none."""
    return {"torch": torch.get_rng_state().numpy(), "numpy": list(np.random.get_state())}


def used_states(framework, agents, *, seed, orchestrator="local"):
    """Return the states of the generators before a run, seeded and with one Gaussian cached, and after it."""
    torch.manual_seed(1)
    np.random.seed(1)
    torch.randn(3)
    np.random.standard_normal(3)
    before = states()
    trainer = step_trainer(framework)(
        env=noisy_factory(4), agents=agents, cfg={**CFG, "timesteps": 20}, orchestrator=orchestrator, seed=seed
    )
    with trainer:
        for step in range(20):
            (trainer.train if step % 2 else trainer.eval)()
        trainer.reset()
        trainer.train()
        assert len(trainer.agents) == len(agents)
    return before, states()


@pytest.mark.parametrize("count", [1, 2])
def test_local_run_with_a_seed_leaves_the_generators_alone(framework, count):
    before, after = used_states(framework, [partial(NoisyAgent, framework)] * count, seed=5)
    assert_same(after, before)


def test_local_run_without_a_seed_draws_only_what_the_agents_draw(framework):
    before, after = used_states(framework, [ConstantAgent], seed=None)
    assert_same(after, before)
    before, after = used_states(framework, [partial(NoisyAgent, framework)], seed=None)
    with pytest.raises(AssertionError):
        assert_same(after, before)


@pytest.mark.parametrize(("seed", "framework"), in_turn([None, 5]))
def test_ray_run_leaves_the_generators_alone(ray_cluster, framework, seed):
    agents = [partial(NoisyAgent, framework)] * 2
    before, after = used_states(framework, agents, seed=seed, orchestrator=RayOrchestrator())
    assert_same(after, before)


def test_generators_are_given_back_after_an_error(framework):
    class Failing(NoisyAgent):
        def act(self, observations, states, *, timestep, timesteps):
            self.draw(1)
            raise RuntimeError("no action")

    torch.manual_seed(1)
    np.random.seed(1)
    before = states()
    agents = partial(Failing, framework)
    trainer = step_trainer(framework)(env=noisy_factory(2), agents=agents, cfg=CFG, seed=5)
    with trainer, pytest.raises(RuntimeError, match="no action"):
        trainer.train()
    assert_same(states(), before)
