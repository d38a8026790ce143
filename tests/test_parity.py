"""Local ≡ Ray sharded ≡ Ray shared ≡ slice by slice, to the last bit: outputs of every step, and final weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from ray import cloudpickle

from orchestrator.merge import merge_outcomes
from orchestrator.ray import RayOrchestrator
from orchestrator.scopes import resolve_scopes
from tests.support.agents import LinearAgent, NoisyAgent, NullAgent, RecordingAgent, copied
from tests.support.envs import NoisyEnv, SilentEnv, counting_factory, noisy_factory
from tests.support.parity import CFG, assert_same, copied_outputs, run
from tests.support.skrl_agents import skrl_cartpole, skrl_ppo_factory, weights
from trainer.config import resolve_cfg
from trainer.torch import StepTrainer
from workers.agents.torch import PPO
from workers.envs import EnvFactory, make_env, wrap_env
from workers.frameworks import load_framework
from workers.service import Service, WorkerSpec
from workers.types import Mode, Scope, Tick
from workers.wire import from_wire

STEPS = 300
PPO_CFG = {"rollouts": 32, "learning_epochs": 2, "mini_batches": 2, "learning_rate": 1e-3}
assert STEPS // PPO_CFG["rollouts"] >= 3


def ppo(discrete: bool, scope: Scope, width: int = 17) -> PPO:
    env = NoisyEnv(width, discrete)
    return PPO(
        observation_space=env.observation_space, action_space=env.action_space, num_envs=scope.num_envs, cfg=PPO_CFG
    )


def cartpole_ppo(env: Any, scope: Scope) -> PPO:
    return PPO(
        observation_space=env.observation_space, action_space=env.action_space, num_envs=scope.num_envs, cfg=PPO_CFG
    )


def ppo_run(env: Any, agents: Any, scopes: Any, orchestrator: Any = "local") -> Any:
    outputs, trained = run(STEPS, env=env, agents=agents, scopes=list(scopes), orchestrator=orchestrator, seed=3)
    return outputs, [copied(agent.state_dict()) for agent in trained]


class NullStateAgent(NullAgent):
    def state_dict(self) -> dict[str, Any]:
        return {}


def count_ends(outputs: Any) -> int:
    return sum(int((output[2] | output[3]).sum()) for output in outputs)


@pytest.mark.parametrize(
    ("scopes", "discrete"),
    [((5,), False), ((2, 3), False), ((2, 3), True), ((1, 2, 4), False)],
    ids=["one", "two", "two-discrete", "three-unequal"],
)
def test_local_is_ray_sharded_is_ray_shared(ray_cluster, scopes, discrete):
    agents = [partial(ppo, discrete)] * len(scopes)
    local = ppo_run(noisy_factory(sum(scopes), discrete=discrete), agents, scopes)
    assert count_ends(local[0]) > 20
    sharded = ppo_run(noisy_factory(sum(scopes), discrete=discrete), agents, scopes, RayOrchestrator())
    assert_same(sharded, local)
    envs = wrap_env([NoisyEnv(17, discrete) for _ in range(sum(scopes))], framework="torch")
    shared = ppo_run(envs, agents, scopes, RayOrchestrator())
    assert_same(shared, local)


def test_registered_environments_and_instances(ray_cluster):
    def env():
        return make_env("CartPole-v1", num_envs=5, framework="torch")

    def instances():
        return [cartpole_ppo(env(), scope) for scope in resolve_scopes([2, 3], num_envs=5, num_simultaneous_agents=2)]

    import torch

    results = []
    for orchestrator in ("local", RayOrchestrator()):
        torch.manual_seed(11)
        agents = instances()
        outputs, trained = run(STEPS, env=env(), agents=agents, scopes=[2, 3], orchestrator=orchestrator, seed=3)
        assert all(one is other for one, other in zip(trained, agents, strict=True))
        results.append((outputs, [copied(agent.state_dict()) for agent in agents]))
    assert_same(results[1], results[0])


@pytest.mark.parametrize("rebuildable", [True, False], ids=["sharded", "shared"])
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
    assert count_ends(local[0]) > 20
    assert_same(skrl_run(RayOrchestrator()), local)


def test_evaluation_and_mean_actions_in_ray(ray_cluster):
    options: dict[str, Any] = {"agents": [RecordingAgent] * 2, "scopes": [2, 3], "seed": 3, "mode": "eval"}
    local, local_agents = run(12, env=counting_factory(5), **options)
    remote, remote_agents = run(12, env=counting_factory(5), orchestrator=RayOrchestrator(), **options)
    assert_same(remote, local)
    assert_same([agent.calls for agent in remote_agents], [agent.calls for agent in local_agents])


def test_reset_and_explicit_timesteps_in_ray(ray_cluster):
    def reset_run(orchestrator):
        trainer = StepTrainer(
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


def test_memory_layout_of_rows_makes_no_difference(ray_cluster):
    agents = [LinearAgent] * 2
    local = ppo_run(noisy_factory(5), agents, (2, 3))
    assert_same(ppo_run(noisy_factory(5), agents, (2, 3), RayOrchestrator()), local)
    envs = wrap_env([NoisyEnv(17) for _ in range(5)], framework="torch")
    assert_same(ppo_run(envs, agents, (2, 3), RayOrchestrator()), local)


@pytest.mark.parametrize("agent", [partial(ppo, False), LinearAgent], ids=["ppo", "linear"])
@pytest.mark.parametrize("scopes", [(2, 3), (1, 4), (3, 1, 3)])
def test_full_batch_is_its_slices(scopes, agent):
    agents = [agent] * len(scopes)
    full = ppo_run(noisy_factory(sum(scopes)), agents, scopes)
    assert_same(slices_run(noisy_factory(sum(scopes)), agents, scopes), full)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_slices_that_are_reset_by_a_mask(mode):
    def build(num_envs: int, first_env: int) -> Any:
        return SyncVectorEnv([partial(NoisyEnv, 17)] * num_envs, autoreset_mode=mode)

    agents = [partial(ppo, False)] * 2
    full = ppo_run(EnvFactory(build, num_envs=5), agents, (2, 3))
    assert_same(slices_run(EnvFactory(build, num_envs=5), agents, (2, 3)), full)
    assert_same(ppo_run(noisy_factory(5), agents, (2, 3)), full)


def test_infos_of_a_vector_wrapper_are_those_of_its_slices():
    """RecordEpisodeStatistics keeps one mask for a whole dictionary, which only slices with an end have."""

    def build(num_envs: int, first_env: int) -> Any:
        rows = [partial(SilentEnv, first_env + i) for i in range(num_envs)]
        return RecordEpisodeStatistics(SyncVectorEnv(rows, autoreset_mode=AutoresetMode.SAME_STEP))

    env = EnvFactory(build, num_envs=5)
    local, _ = run(STEPS, env=env, agents=[NullStateAgent] * 2, scopes=[2, 3], seed=3)
    slices, _ = slices_run(env, [NullStateAgent] * 2, (2, 3))
    assert any("episode" in output[4] for output in local)
    for output in (*local, *slices):
        output[4].get("episode", {}).pop("t", None)  # the time on the clock
    assert_same(slices, local)


def slices_run(env: EnvFactory, agents: Any, sizes: Any) -> Any:
    """Every scope in a service of its own, as in an actor, but without Ray and one after the other."""
    framework = load_framework("torch")
    scopes = resolve_scopes(sizes, num_envs=sum(sizes), num_simultaneous_agents=len(sizes), seed=3)
    services = [Service(cloudpickle.dumps) for _ in scopes]
    for service, scope, agent in zip(services, scopes, agents, strict=True):
        spec = WorkerSpec(
            scope=scope,
            framework="torch",
            agent=cloudpickle.dumps(agent),
            env=cloudpickle.dumps(env),
            observation_space=None,
            cfg=cloudpickle.dumps(resolve_cfg({**CFG, "timesteps": STEPS})),
            seed=3,
        )
        assert service.handle(1, "build", (spec,)).status == "ok"
    outputs = []
    for step in range(1, STEPS + 1):
        replies = [service.handle(step + 1, "tick", (Tick(Mode.TRAIN, step, STEPS),)) for service in services]
        parts = [from_wire(reply.payload, framework) for reply in replies]
        outputs.append(copied_outputs(merge_outcomes(parts, scopes, framework)))
    exported = [service.handle(STEPS + 2, "export", ()).payload for service in services]
    return outputs, [copied(cloudpickle.loads(part.data).state_dict()) for part in exported]


def test_a_neighbour_changes_nothing():
    alone, _ = run(60, env=noisy_factory(2), agents=[NoisyAgent], scopes=[2], seed=5)
    beside, _ = run(60, env=noisy_factory(7), agents=[NoisyAgent, NoisyAgent, NoisyAgent], scopes=[2, 1, 4], seed=5)
    for one, other in zip(alone, beside, strict=True):
        assert_same(tuple(array[:2] for array in other[:4]), one[:4])


def test_one_seed_is_equal_and_two_seeds_differ():
    def seeded(seed):
        outputs, agents = run(40, env=noisy_factory(3), agents=[NoisyAgent, NoisyAgent], scopes=[1, 2], seed=seed)
        return outputs, [agent.drawn for agent in agents]

    assert_same(seeded(5), seeded(5))
    one, other = seeded(5), seeded(6)
    assert (one[0][0][0] != other[0][0][0]).all()
    assert one[1][0] != other[1][0]
    assert one[1][0] != one[1][1]
