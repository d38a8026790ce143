"""skrl's JAX and Warp agents and wrappers: the same under our trainer as under skrl's, and in Ray as locally."""

from __future__ import annotations

import importlib
from functools import partial
from itertools import product
from typing import Any

import pytest

from orchestrator.ray import RayOrchestrator
from tests.support.parity import CFG, assert_same, copied_outputs, run, step_trainer
from tests.support.schedule import full_or_short
from tests.support.skrl_frameworks import ROLLOUTS, seed_everything, skrl_agent, skrl_pendulum, skrl_ppo, weights
from workers.envs import EnvFactory, make_env
from workers.errors import AgentError
from workers.frameworks import load_framework
from workers.storage.agent_file import load_agent

STEPS = 70
assert STEPS // ROLLOUTS >= 3

# a single environment is reset explicitly
MODES = pytest.mark.parametrize(("num_envs", "mode"), [(5, "train"), (1, "eval")])
SKRL = pytest.mark.parametrize("framework", ["jax", "warp"])


class Noting:
    """Wrapper of a skrl environment that records the outputs of its steps."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.outputs: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def step(self, actions: Any) -> Any:
        outputs = self.env.step(actions)
        self.outputs.append(copied_outputs(outputs))
        return outputs


def single_run(framework: str, drive: Any, num_envs: int = 5, mode: str = "train") -> Any:
    """Return the outputs of every step of one agent, and its weights."""
    seed_everything(framework, 7)
    env, agent = Noting(skrl_pendulum(framework, num_envs)), skrl_ppo(framework, num_envs)
    before = weights(framework, agent)
    drive(env, agent, mode)
    after = weights(framework, agent)
    assert any((before[name] != after[name]).any() for name in before) == (mode == "train")
    assert sum(int(output[3].sum()) for output in env.outputs) >= num_envs
    return env.outputs, after


def drive_ours(framework: str, first: int, env: Any, agent: Any, mode: str) -> None:
    with step_trainer(framework)(env=env, agents=agent, cfg={**CFG, "timesteps": STEPS}) as trainer:
        for timestep in range(first, first + STEPS):
            getattr(trainer, mode)(timestep=timestep)


def drive_skrl_step(env: Any, agent: Any, mode: str) -> None:
    trainer = importlib.import_module("skrl.trainers.jax.step").StepTrainer
    theirs = trainer(env=env, agents=agent, cfg={**CFG, "timesteps": STEPS})
    for _ in range(STEPS):
        getattr(theirs, mode)()


def drive_skrl_sequential(env: Any, agent: Any, mode: str) -> None:
    trainer = importlib.import_module("skrl.trainers.warp.sequential").SequentialTrainer
    getattr(trainer(env=env, agents=agent, cfg={**CFG, "timesteps": STEPS}), mode)()


@MODES
def test_a_jax_agent_as_under_skrls_step_trainer(num_envs, mode):
    theirs = single_run("jax", drive_skrl_step, num_envs, mode)
    assert_same(single_run("jax", partial(drive_ours, "jax", 1), num_envs, mode), theirs)


@MODES
def test_a_warp_agent_as_under_skrls_sequential_trainer(num_envs, mode):
    theirs = single_run("warp", drive_skrl_sequential, num_envs, mode)
    assert_same(single_run("warp", partial(drive_ours, "warp", 0), num_envs, mode), theirs)


def factory_run(framework: str, orchestrator: Any, rebuildable: bool) -> Any:
    env: Any = EnvFactory(lambda num_envs, first_env: skrl_pendulum(framework, num_envs), num_envs=5)
    if not rebuildable:
        env = make_env("Pendulum-v1", num_envs=5, framework=framework, max_episode_steps=50)
        env.recipe = None
    outputs, trained = run(
        STEPS,
        framework=framework,
        env=env,
        agents=[skrl_agent(framework, time_limit_bootstrap=not rebuildable)] * 2,
        scopes=[2, 3],
        orchestrator=orchestrator,
        seed=3,
    )
    return outputs, [weights(framework, agent) for agent in trained]


@pytest.mark.parametrize(
    ("rebuildable", "framework"),
    full_or_short(list(product([True, False], ["jax", "warp"])), [(True, "warp"), (False, "jax")]),
)
def test_agents_in_ray_through_factories(framework, rebuildable, ray_cluster):
    local = factory_run(framework, "local", rebuildable)
    assert sum(int(output[3].sum()) for output in local[0]) >= 5
    one, other = local[1]
    assert all((one[name] != other[name]).any() for name in one)  # each agent has its own random numbers
    assert_same(factory_run(framework, RayOrchestrator(), rebuildable), local)


@SKRL
def test_an_instance_cannot_travel_and_says_so(framework, ray_cluster):
    env = make_env("Pendulum-v1", num_envs=2, framework=framework)
    with pytest.raises(AgentError, match="factory"):
        step_trainer(framework)(env=env, agents=skrl_ppo(framework, 2), cfg=CFG, orchestrator=RayOrchestrator())


@SKRL
def test_an_agent_can_be_stored_and_collected_from(framework):
    env = make_env("Pendulum-v1", num_envs=3, framework=framework, max_episode_steps=20)
    with step_trainer(framework)(
        env=env, agents=skrl_agent(framework, time_limit_bootstrap=True), cfg=CFG, seed=1
    ) as trainer:
        trainer.collect_metrics()
        for _ in range(2 * ROLLOUTS):
            trainer.train()
        (scalars,) = trainer.collect_metrics()
        assert {"Loss / Policy loss", "Loss / Value loss", "Episode / Return (mean)"} <= set(scalars)
        ((name, data),) = trainer.agent_files()
        assert name == {"jax": "agent.bin", "warp": "state.safetensors"}[framework]
        trained = weights(framework, trainer.agents[0])
    fresh = skrl_ppo(framework, 3)
    load_agent(fresh, name, data, load_framework(framework))
    assert_same(weights(framework, fresh), trained)
