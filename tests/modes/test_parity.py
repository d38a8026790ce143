"""Local ≡ Ray sharded ≡ Ray shared ≡ slice by slice, to the last bit: outputs of every step, and final weights."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from orchestrator.ray import RayOrchestrator
from orchestrator.scopes import resolve_scopes
from tests.support import parity
from tests.support.agents import NoisyAgent, NullAgent, RecordingAgent, copied
from tests.support.envs import NoisyEnv, SilentEnv, counting_factory, noisy_factory
from tests.support.parity import CFG, assert_same, copied_outputs, run, slices_run, step_trainer, without_hidden
from tests.support.schedule import FRAMEWORKS, IS_LONG, full_or_short, in_turn
from workers.envs import EnvFactory, make_env, wrap_env
from workers.types import Scope

STEPS = 328 if IS_LONG else 164
assert not STEPS % 41, "expected whole rounds of all ways"
PPO_CFG = {"rollouts": 32, "learning_epochs": 2, "mini_batches": 2, "learning_rate": 1e-3}
assert STEPS // PPO_CFG["rollouts"] >= 3


def ppo(framework: str, discrete: bool, scope: Scope) -> Any:
    return ppo_for(framework, NoisyEnv(17, discrete), scope)


def ppo_for(framework: str, env: Any, scope: Scope) -> Any:
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    return parity.ppo(framework)(**spaces, num_envs=scope.num_envs, cfg=PPO_CFG)


def ppo_run(
    framework: str, env: Any, agents: Any, scopes: Any, orchestrator: Any = "local", mode: str = "train"
) -> Any:
    outputs, trained = run(
        STEPS,
        mode=mode,
        framework=framework,
        env=env,
        agents=agents,
        scopes=list(scopes),
        orchestrator=orchestrator,
        seed=3,
    )
    return outputs, [copied(agent.state_dict()) for agent in trained]


class NullStateAgent(NullAgent):
    def state_dict(self) -> dict[str, Any]:
        return {}


def count_ends(outputs: Any) -> int:
    return sum(int((output[2] | output[3]).sum()) for output in outputs)


SCOPES = {"one": ((5,), False), "two": ((2, 3), False), "two-discrete": ((2, 3), True), "unequal": ((1, 2, 4), False)}
ARRANGEMENTS = ("sharded", "shared", "sharded by ray", "shared by ray", "sharded by shared memory", "local")
# actors are slow to import and compile: each kind of arrays and each transport is tested once
SHORT = [
    ("torch", "unequal", ("sharded", "shared")),
    ("torch", "two-discrete", ("sharded by shared memory", "shared by ray", "local")),
    ("jax", "two-discrete", ("sharded by ray", "shared")),
    ("warp", "unequal", ("sharded", "shared")),
]
CASES = list(product(FRAMEWORKS, SCOPES, [ARRANGEMENTS])) if IS_LONG else SHORT


@pytest.mark.parametrize(("framework", "scopes", "arrangements"), CASES)
def test_local_is_ray_sharded_is_ray_shared(ray_cluster, framework, scopes, arrangements, monkeypatch):
    """Over connections, actor calls and shared memory; with `train`, `run` and `iterate` in turn."""
    sizes, discrete = SCOPES[scopes]
    agents = [partial(ppo, framework, discrete)] * len(sizes)
    factory = noisy_factory(sum(sizes), discrete=discrete)
    local_outputs, local_states = ppo_run(framework, factory, agents, sizes)
    assert count_ends(local_outputs) > 20
    for arrangement in arrangements:
        env: Any = factory
        orchestrator: Any = "local"
        if arrangement.startswith("shared"):
            env = wrap_env([NoisyEnv(17, discrete) for _ in range(sum(sizes))], framework=framework)
        if arrangement != "local":
            orchestrator = RayOrchestrator(transport="ray" if arrangement.endswith("by ray") else "connection")
        with monkeypatch.context() as patches:
            if arrangement.endswith("shared memory"):
                patches.setattr("orchestrator.ray.shm.THRESHOLD", 1)
            mode = "train" if arrangement == "shared by ray" else "all ways"
            outputs, states = ppo_run(framework, env, agents, sizes, orchestrator, mode)
        assert_same(outputs, without_hidden(local_outputs, outputs))
        assert_same(states, local_states)


def test_registered_environments_and_instances(ray_cluster, framework):
    def instances():
        scopes = resolve_scopes([2, 3], num_envs=5, num_simultaneous_agents=2)
        return [ppo_for(framework, make_env("CartPole-v1", num_envs=5, framework=framework), scope) for scope in scopes]

    results = []
    for orchestrator in ("local", RayOrchestrator()):
        seed_generators(11)
        env, agents = make_env("CartPole-v1", num_envs=5, framework=framework), instances()
        outputs, trained = run(
            STEPS,
            framework=framework,
            env=env,
            agents=agents,
            scopes=[2, 3],
            orchestrator=orchestrator,
            seed=3,
        )
        assert all(one is other for one, other in zip(trained, agents, strict=True))
        results.append((outputs, [copied(agent.state_dict()) for agent in agents]))
    assert_same(results[1], results[0])


def seed_generators(seed: int) -> None:
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.mark.parametrize("framework", full_or_short(FRAMEWORKS, ["jax"]))
def test_evaluation_and_mean_actions_in_ray(ray_cluster, framework):
    options: dict[str, Any] = {
        "framework": framework,
        "agents": [RecordingAgent] * 2,
        "scopes": [2, 3],
        "seed": 3,
        "mode": "eval",
    }
    local, local_agents = run(12, env=counting_factory(5), **options)
    remote, remote_agents = run(12, env=counting_factory(5), orchestrator=RayOrchestrator(), **options)
    assert_same(remote, local)
    assert_same([agent.calls for agent in remote_agents], [agent.calls for agent in local_agents])


@pytest.mark.parametrize("framework", full_or_short(FRAMEWORKS, ["warp"]))
def test_reset_and_explicit_timesteps_in_ray(ray_cluster, framework):
    def reset_run(orchestrator):
        trainer = step_trainer(framework)(
            env=counting_factory(5),
            agents=[RecordingAgent] * 2,
            scopes=[2, 3],
            cfg={**CFG, "timesteps": 9},
            orchestrator=orchestrator,
        )
        with trainer:
            outputs = [copied_outputs(trainer.train()) for _ in range(5)]
            trainer.reset()
            outputs += [copied_outputs(trainer.train(timestep=40, timesteps=50)) for _ in range(3)]
            outputs.append(copied_outputs(trainer.train()))
            return outputs, [agent.calls for agent in trainer.agents]

    local = reset_run("local")
    assert_same(reset_run(RayOrchestrator()), local)
    assert [call["timestep"] for name, call in local[1][0] if name == "act"] == [1, 2, 3, 4, 5, 40, 40, 40, 1]


@pytest.mark.parametrize(("scopes", "framework"), in_turn([(2, 3), (1, 4), (3, 1, 3)]))
def test_full_batch_is_its_slices(framework, scopes):
    agents = [partial(ppo, framework, False)] * len(scopes)
    full = ppo_run(framework, noisy_factory(sum(scopes)), agents, scopes)
    assert_same(slices_run(STEPS, framework, noisy_factory(sum(scopes)), agents, scopes), full)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_slices_that_are_reset_by_a_mask(framework, mode):
    def build(num_envs: int, first_env: int) -> Any:
        return SyncVectorEnv([partial(NoisyEnv, 17)] * num_envs, autoreset_mode=mode)

    agents = [partial(ppo, framework, False)] * 2
    full = ppo_run(framework, EnvFactory(build, num_envs=5), agents, (2, 3))
    assert_same(slices_run(STEPS, framework, EnvFactory(build, num_envs=5), agents, (2, 3)), full)
    assert_same(ppo_run(framework, noisy_factory(5), agents, (2, 3)), full)


def test_infos_of_a_vector_wrapper_are_those_of_its_slices(framework):
    """RecordEpisodeStatistics has one mask for a whole dictionary; only slices in which an episode ends have both."""

    def build(num_envs: int, first_env: int) -> Any:
        rows = [partial(SilentEnv, first_env + i) for i in range(num_envs)]
        return RecordEpisodeStatistics(SyncVectorEnv(rows, autoreset_mode=AutoresetMode.SAME_STEP))

    env = EnvFactory(build, num_envs=5)
    local, _ = run(STEPS, framework=framework, env=env, agents=[NullStateAgent] * 2, scopes=[2, 3], seed=3)
    slices, _ = slices_run(STEPS, framework, env, [NullStateAgent] * 2, (2, 3))
    assert any("episode" in output[4] for output in local)
    for output in (*local, *slices):
        output[4].get("episode", {}).pop("t", None)  # wall-clock time
    assert_same(slices, local)


def test_a_neighbour_changes_nothing(framework):
    def noisy_run(num_envs: int, scopes: list[int]) -> Any:
        agents = [partial(NoisyAgent, framework)] * len(scopes)
        return run(60, framework=framework, env=noisy_factory(num_envs), agents=agents, scopes=scopes, seed=5)[0]

    for one, other in zip(noisy_run(2, [2]), noisy_run(7, [2, 1, 4]), strict=True):
        assert_same(tuple(array[:2] for array in other[:4]), one[:4])


def test_one_seed_is_equal_and_two_seeds_differ(framework):
    def seeded(seed):
        agents = [partial(NoisyAgent, framework)] * 2
        outputs, trained = run(40, framework=framework, env=noisy_factory(3), agents=agents, scopes=[1, 2], seed=seed)
        return outputs, [agent.drawn for agent in trained]

    assert_same(seeded(5), seeded(5))
    one, other = seeded(5), seeded(6)
    assert (one[0][0][0] != other[0][0][0]).all()
    assert one[1][0] != other[1][0]
    assert one[1][0] != one[1][1]
