"""Parity specific to torch: kernels whose bits depend on the memory layout, and skrl's agents."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from orchestrator.ray import RayOrchestrator
from tests.support.agents import NullAgent, copied
from tests.support.envs import NoisyEnv, noisy_factory
from tests.support.parity import assert_same, run, slices_run
from tests.support.schedule import full_or_short
from tests.support.skrl_agents import skrl_cartpole, skrl_ppo_factory, weights
from workers.envs import EnvFactory, make_env, wrap_env
from workers.types import Scope

STEPS = 300


class LinearAgent(NullAgent):
    """Agent that passes its input array, not a copy, to a network whose bits depend on the array's memory layout."""

    def __init__(self, scope: Scope | None = None) -> None:
        super().__init__(scope)
        self.net = torch.nn.Sequential(torch.nn.Linear(17, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2))

    def state_dict(self) -> dict[str, Any]:
        return self.net.state_dict()

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        return self.net(observations), {}

    def record_transition(self, **arguments: Any) -> None:
        with torch.no_grad():
            self.net[0].bias += 1e-2 * self.net[0](arguments["next_observations"]).mean(0)


def linear_run(env: Any, scopes: Any = (2, 3), orchestrator: Any = "local") -> Any:
    agents = [LinearAgent] * len(scopes)
    outputs, trained = run(STEPS, env=env, agents=agents, scopes=scopes, orchestrator=orchestrator, seed=3)
    return outputs, [copied(agent.state_dict()) for agent in trained]


def test_memory_layout_of_rows_makes_no_difference(ray_cluster):
    local = linear_run(noisy_factory(5))
    assert_same(linear_run(noisy_factory(5), orchestrator=RayOrchestrator()), local)
    envs = wrap_env([NoisyEnv(17) for _ in range(5)], framework="torch")
    assert_same(linear_run(envs, orchestrator=RayOrchestrator()), local)


@pytest.mark.parametrize("scopes", [(2, 3), (1, 4), (3, 1, 3)])
def test_memory_layout_of_slices_makes_no_difference(scopes):
    slices = slices_run(STEPS, "torch", noisy_factory(sum(scopes)), [LinearAgent] * len(scopes), scopes)
    assert_same(slices, linear_run(noisy_factory(sum(scopes)), scopes))


@pytest.mark.parametrize("rebuildable", full_or_short([True, False], [True]))
def test_skrl_agents_in_ray_through_factories(ray_cluster, rebuildable):
    def skrl_run(orchestrator):
        env: Any = EnvFactory(lambda num_envs, first_env: skrl_cartpole(num_envs), num_envs=5)
        if not rebuildable:
            env = make_env("CartPole-v1", num_envs=5, framework="torch")
            env.recipe = None
        outputs, trained = run(
            STEPS, env=env, agents=[skrl_ppo_factory] * 2, scopes=[2, 3], orchestrator=orchestrator, seed=3
        )
        return outputs, [weights(agent) for agent in trained]

    local = skrl_run("local")
    assert sum(int((output[2] | output[3]).sum()) for output in local[0]) > 20
    assert_same(skrl_run(RayOrchestrator()), local)
