"""skrl's IPPO and MAPPO, and its wrapper of PettingZoo's environments, unchanged."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import numpy as np
import pytest
from mpe2 import simple_spread_v3

from orchestrator.ray import RayOrchestrator
from tests.support.agents import copied
from tests.support.multi_agent_envs import noisy_team_factory
from tests.support.parity import CFG, assert_same, copied_outputs, run, step_trainer
from tests.support.skrl_frameworks import ROLLOUTS
from tests.support.skrl_multi_agents import skrl_team
from workers.envs.making import build_rows
from workers.frameworks import load_framework
from workers.storage.agent_file import dump_agent, load_agent
from workers.storage.export import copy_state, module_states
from workers.types import Scope

STEPS = 40
TEAM: dict[str, Any] = {"agents": 2, "discrete": False, "states": True}


def make(framework: str, kind: str, scope: Scope) -> Any:
    env = build_rows(noisy_team_factory(1, **TEAM), 1, 0, framework=framework, seed=None)
    return skrl_team(framework, kind, env, scope.num_envs)


def models_of(agent: Any) -> Any:
    return {name: {role: model.state_dict() for role, model in models.items()} for name, models in agent.models.items()}


@pytest.mark.parametrize(("framework", "kind"), [("torch", "IPPO"), ("torch", "MAPPO"), ("jax", "IPPO")])
def test_teams_of_skrl_are_trained(framework, kind, caplog):
    def trained(scopes: list[int], steps: int) -> Any:
        agents = [partial(make, framework, kind)] * len(scopes)
        env = noisy_team_factory(sum(scopes), **TEAM)
        return run(steps, framework=framework, env=env, agents=agents, scopes=scopes, seed=3)

    with caplog.at_level(logging.WARNING, "lockstep"):
        # skrl's JAX agents take half a minute to compile
        outputs, agents = trained([2, 3], STEPS) if framework == "torch" else trained([2], ROLLOUTS + 1)
    assert sum(f"{kind}.act() takes no infos" in record.getMessage() for record in caplog.records) == 1
    assert all(np.isfinite(rewards).all() for output in outputs for rewards in output[1].values())
    if framework == "torch":
        learnt = module_states(agents[0])
        assert learnt.keys() == {"agent_0", "agent_1"}
        assert all(np.isfinite(weight).all() for weight in copied(learnt["agent_1"]["policy"]).values())
        assert_same(trained([2, 3], STEPS)[0], outputs)


def test_a_team_of_skrl_in_ray(ray_cluster):
    options: dict[str, Any] = {"env": noisy_team_factory(4, **TEAM), "scopes": [2, 2], "seed": 3}
    results = []
    for orchestrator in ("local", RayOrchestrator()):
        instances = [make("torch", "MAPPO", Scope(index, 0, 2)) for index in range(2)]
        kept = instances[0].policies["agent_0"]
        np.random.seed(0)
        for instance in instances:
            for models in instance.models.values():
                for model in models.values():
                    for parameter in model.parameters():
                        parameter.data.fill_(0.1)
        outputs, trained = run(STEPS, agents=instances, orchestrator=orchestrator, **options)
        assert trained[0] is instances[0]
        assert instances[0].policies["agent_0"] is kept  # the state was copied back into the user's own modules
        results.append((outputs, [copied(models_of(agent)) for agent in trained]))
    assert_same(results[1], results[0])


def test_state_and_file_of_a_team_of_skrl():
    framework = load_framework("torch")
    agents = [make("torch", "MAPPO", Scope(index, 0, 2)) for index in range(3)]
    copy_state(agents[0], agents[1])
    load_agent(agents[2], *dump_agent(agents[0], framework), framework)
    for other in agents[1:]:
        assert_same(copied(models_of(other)), copied(models_of(agents[0])))
        optimizer, policy = other.optimizers["agent_0"], other.policies["agent_0"]
        assert optimizer.param_groups[0]["params"][0] is next(policy.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_wrapper_of_skrl_is_reset_when_its_episode_is_over():
    from skrl.envs.wrappers.torch import wrap_env

    env = wrap_env(
        simple_spread_v3.parallel_env(max_cycles=5, continuous_actions=True), wrapper="pettingzoo", verbose=False
    )
    agent = skrl_team("torch", "IPPO", env, 1)
    with step_trainer("torch")(env=env, agents=agent, cfg={**CFG, "timesteps": 13}) as trainer:
        trainer.collect_metrics()
        outputs = [copied_outputs(trainer.train()) for _ in range(13)]
        ended = [bool(output[3]["agent_0"].all()) for output in outputs]
        assert [step for step, end in enumerate(ended) if end] == [4, 9]
        scalars = trainer.collect_metrics()[0]
    assert scalars["Episode / Length (mean)"] == scalars["Episode / agent_2 / Length (mean)"] == 5.0
    assert scalars["Episode / Return (mean)"] == pytest.approx(
        sum(scalars[f"Episode / agent_{index} / Return (mean)"] for index in range(3))
    )
