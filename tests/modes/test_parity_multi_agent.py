"""Teams: local ≡ Ray sharded ≡ Ray shared ≡ slice by slice, to the last bit, with deaths, late agents and resets."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from orchestrator.ray import RayOrchestrator
from tests.support import parity
from tests.support.agents import copied
from tests.support.multi_agent_envs import NoisyTeamEnv, build_game, game_factory, noisy_team_factory
from tests.support.parity import assert_same, run, slices_run
from workers.agents.independent import IndependentAgents
from workers.envs import EnvFactory, wrap_env
from workers.envs.making import build_rows
from workers.types import Scope

STEPS = 100
PPO_CFG = {"rollouts": 32, "learning_epochs": 2, "mini_batches": 2, "hidden_sizes": (16,), "learning_rate": 1e-3}
TEAM: dict[str, Any] = {"agents": 3, "masks": True, "states": True}
TEAMS = {"torch": TEAM, "jax": TEAM | {"agents": 2}, "warp": TEAM | {"agents": 2}}  # each agent is slow to compile


def make_team(framework: str, env: EnvFactory, groups: dict[str, Any] | None, scope: Scope) -> IndependentAgents:
    spaces = build_rows(env, 1, 0, framework=framework, seed=None)
    return IndependentAgents(
        partial(parity.ppo(framework), cfg=PPO_CFG),
        possible_agents=spaces.possible_agents,
        observation_spaces=spaces.observation_spaces,
        action_spaces=spaces.action_spaces,
        state_spaces=None if None in spaces.state_spaces.values() else spaces.state_spaces,
        num_envs=scope.num_envs,
        groups=groups,
    )


def team_run(framework: str, env: Any, agents: Any, scopes: Any, orchestrator: Any = "local") -> Any:
    options = {"env": env, "agents": agents, "scopes": scopes, "orchestrator": orchestrator, "seed": 3}
    outputs, trained = run(STEPS, framework=framework, **options)
    return outputs, [copied(agent.state_dict()) for agent in trained]


def count_ends(outputs: Any) -> tuple[int, int]:
    """Count the ends of agents, and of whole episodes."""
    ends = sum(int((output[2][name] | output[3][name]).sum()) for output in outputs for name in output[2])
    return ends, sum(int(output[4].get("_final_obs", np.zeros(1)).sum()) for output in outputs)


def assert_true_rows(outputs: Any) -> None:
    """Assert that rows of agents that neither act next nor end now are zero, and that all numbers are finite."""
    for observations, rewards, terminated, truncated, infos in outputs:
        for name, alive in infos["alive"].items():
            silent = ~(alive | terminated[name] | truncated[name])[:, 0]
            assert not observations[name][silent].any()
            assert np.isfinite(observations[name]).all()
            assert np.isfinite(rewards[name]).all()


def test_full_batch_is_its_slices(framework):
    env = noisy_team_factory(5, **TEAMS[framework])
    agents = [partial(make_team, framework, env, None)] * 2
    full = team_run(framework, env, agents, [2, 3])
    ends, episodes = count_ends(full[0])
    assert ends > 40
    assert episodes > 10
    assert_true_rows(full[0])
    assert_same(slices_run(STEPS, framework, env, agents, (2, 3)), full)


def test_local_is_ray_sharded_is_ray_shared(ray_cluster, framework):
    env = noisy_team_factory(5, **TEAMS[framework])
    agents = [partial(make_team, framework, env, None)] * 2
    local = team_run(framework, env, agents, [2, 3])
    assert_same(team_run(framework, env, agents, [2, 3], RayOrchestrator()), local)
    if framework == "torch":
        envs = wrap_env([NoisyTeamEnv(**TEAM) for _ in range(5)], framework=framework)
        assert_same(team_run(framework, envs, agents, [2, 3], RayOrchestrator()), local)


def test_turns_and_shared_parameters():
    env = game_factory(5)
    agents = [partial(make_team, "torch", env, {"pair": ["anna", "cleo"]})] * 2
    full = team_run("torch", env, agents, [2, 3])
    assert_same(slices_run(STEPS, "torch", env, agents, (2, 3)), full)
    assert set(full[1][0]) == {"pair", "bert"}
    assert_same(team_run("torch", wrap_env(build_game(5, 0), framework="torch"), agents, [2, 3]), full)


def test_a_neighbour_changes_nothing():
    def one_of(num_envs: int, scopes: list[int]) -> Any:
        env = noisy_team_factory(num_envs, **TEAM)
        return team_run("torch", env, [partial(make_team, "torch", env, None)] * len(scopes), scopes)

    alone, beside = one_of(2, [2]), one_of(5, [2, 3])
    assert_same(beside[1][0], alone[1][0])
    for one, other in zip(alone[0], beside[0], strict=True):
        first_rows = [{name: array[:2] for name, array in arrays.items()} for arrays in other[:4]]
        assert_same(first_rows, list(one[:4]))


@pytest.mark.parametrize("mode", ["local", "ray"])
def test_evaluation_learns_nothing_and_is_the_same(ray_cluster, mode):
    env = noisy_team_factory(4, **TEAM)
    agents = [partial(make_team, "torch", env, None)] * 2
    orchestrator = "local" if mode == "local" else RayOrchestrator()
    options: dict[str, Any] = {"env": env, "agents": agents, "scopes": [2, 2], "seed": 3, "orchestrator": orchestrator}
    outputs, trained = run(40, mode="eval", **options)
    fresh = run(0, **options | {"orchestrator": "local"})[1]
    assert_same([copied(one.state_dict()) for one in trained], [copied(one.state_dict()) for one in fresh])
    assert_same(outputs, run(40, mode="eval", **options | {"orchestrator": "local"})[0])
