"""A run leaves the user's random generators unchanged, and its agents draw the same numbers in every mode."""

from __future__ import annotations

import logging
import random
from functools import partial
from itertools import product
from random import gauss
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete

from orchestrator.ray import RayOrchestrator
from tests.support.agents import NoisyAgent, NullAgent, framework_of
from tests.support.envs import NoisyEnv, noisy_factory
from tests.support.parity import CFG, assert_same, run, step_trainer
from tests.support.schedule import FRAMEWORKS, full_or_short
from tests.support.skrl_agents import seed_everything, skrl_sac, weights
from workers.envs import EnvFactory, make_env
from workers.frameworks import load_framework
from workers.types import Scope


class ConstantAgent(NullAgent):
    def act(self, observations, states, *, timestep, timesteps):
        return framework_of(observations).from_numpy(np.zeros((len(observations), 2), np.float32)), {}


def states():
    """Return the states of all global generators: JAX and Warp have none."""
    return {
        "torch": torch.get_rng_state().numpy(),
        "numpy": list(np.random.get_state()),
        "python": list(random.getstate()),
    }


def used_states(framework, agents, *, seed, orchestrator="local"):
    """Return the states of the generators before a run, seeded and with one Gaussian cached, and after it."""
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    torch.randn(3)
    np.random.standard_normal(3)
    gauss()
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


@pytest.mark.parametrize(("seed", "framework"), full_or_short(list(product([None, 5], FRAMEWORKS)), [(5, "jax")]))
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


class SamplingAgent(NullAgent):
    """Agent that draws its actions from Python's ``random``, from a space of the user and from spaces of its own."""

    def __init__(self, framework: str, space: Any, scope: Any = None) -> None:
        super().__init__(scope)
        self.framework = framework
        self.spaces = {"user's": space, "own": Dict(a=Box(-1, 1), b=Discrete(1000))}
        self.weights = self.draw(4)

    def draw(self, *shape: int) -> Any:
        """Draw from every generator; those of the spaces are used in other orders."""
        numbers = np.array([gauss() for _ in range(int(np.prod(shape)))], np.float32).reshape(shape)
        own = self.spaces["own"].sample()
        return numbers + np.float32(self.spaces["user's"].sample().sum()) + own["a"][0] + np.float32(own["b"])

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        noise = self.draw(len(observations), 2)
        if timestep == 10:
            self.spaces["own"].seed(4)
        fresh = Box(-1, 1, (len(observations), 2)).sample()
        return load_framework(self.framework).from_numpy(noise + fresh), {}

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        self.weights += self.draw(4)


def sampling_run(framework: str, *, as_factories: bool, orchestrator: Any = "local", users_seed: int = 1) -> Any:
    """Return the outputs and weights of two agents that share a space; the user has used it, and goes on using it."""
    space = Box(-1, 1, (3,), seed=users_seed)
    space.sample()
    random.seed(users_seed)
    oracle = Box(-1, 1, (3,), seed=users_seed)
    oracle.sample()
    agents: list[Any] = [partial(SamplingAgent, framework, space)] * 2
    if not as_factories:
        random.seed(3)
        agents = [SamplingAgent(framework, Box(-1, 1, (3,), seed=seed)) for seed in (5, 6)]
        for agent in agents:
            agent.spaces["user's"] = space
            agent.weights = np.zeros(4, np.float32)
    outputs, agents = run(
        30, framework=framework, env=noisy_factory(5), agents=agents, seed=3, orchestrator=orchestrator
    )
    assert space.sample().tolist() == oracle.sample().tolist()
    one, other = (agent.weights for agent in agents)
    assert (one != other).all()
    return outputs, [one, other]


@pytest.mark.parametrize("as_factories", [True, False])
def test_agents_repeat_what_they_draw_from_python_and_from_spaces(framework, as_factories):
    first = sampling_run(framework, as_factories=as_factories)
    assert_same(sampling_run(framework, as_factories=as_factories, users_seed=2), first)


@pytest.mark.parametrize(
    ("as_factories", "framework"), full_or_short(list(product([True, False], FRAMEWORKS)), [(True, "torch")])
)
def test_agents_draw_the_same_from_python_and_from_spaces_in_ray(ray_cluster, framework, as_factories):
    local = sampling_run(framework, as_factories=as_factories)
    assert_same(sampling_run(framework, as_factories=as_factories, orchestrator=RayOrchestrator()), local)


def test_an_agent_without_a_seed_samples_the_users_generator():
    space = Box(-1, 1, (3,), seed=1)
    oracle = Box(-1, 1, (3,), seed=1)
    run(3, env=noisy_factory(2), agents=partial(SamplingAgent, "torch", space))
    for _ in range(1 + 2 * 3):
        oracle.sample()
    assert space.sample().tolist() == oracle.sample().tolist()


def sac_run(kind: str, *, orchestrator: Any = "local", random_timesteps: Any = (12, 12), noise: int = 0) -> Any:
    """Return the outputs and weights of skrl's SAC in two scopes, which share the spaces of the environment."""
    env = make_env("Pendulum-v1", num_envs=5, framework="torch")
    if kind == "shared":
        env.recipe = None
    spaces = env.observation_space, env.action_space
    env.action_space.seed(noise)

    def factory(scope: Scope) -> Any:
        agent = skrl_sac(scope.num_envs, *spaces, random_timesteps=random_timesteps[scope.index])
        agent.models["policy"].log_std.data.fill_(float(spaces[1].sample()[0]) / 4)
        return agent

    agents: list[Any] = [factory, factory]
    if kind == "instances":
        seed_everything(7)
        agents = [skrl_sac(size, *spaces, random_timesteps=random_timesteps[size - 2]) for size in (2, 3)]
    outputs, trained = run(24, env=env, agents=agents, scopes=[2, 3], seed=3, orchestrator=orchestrator)
    users = Box(-2, 2, (1,), np.float32, seed=noise)
    assert env.action_space.sample() == users.sample()
    return outputs, [weights(agent) for agent in trained]


@pytest.mark.parametrize("kind", ["instances", "factories"])
def test_skrls_sac_is_repeatable(kind):
    first = sac_run(kind)
    assert_same(sac_run(kind, noise=1), first)
    one, other = first[1]
    assert all((one[name] != other[name]).any() for name in one if name.startswith("policy"))
    # the random actions of a neighbour change nothing
    outputs, (alone, _) = sac_run(kind, random_timesteps=(12, 0))
    assert_same(alone, one)
    assert_same([output[0][:2] for output in outputs], [output[0][:2] for output in first[0]])
    assert any((output[0][2:] != expected[0][2:]).any() for output, expected in zip(outputs, first[0], strict=True))


@pytest.mark.parametrize("kind", full_or_short(["instances", "factories", "shared"], ["shared"]))
def test_skrls_sac_is_the_same_in_ray(ray_cluster, kind):
    assert_same(sac_run(kind, orchestrator=RayOrchestrator(), noise=1), sac_run(kind))


class SamplingTeam(NullAgent):
    """Multi-agent whose actions are samples of the spaces of its members."""

    def __init__(self, env: Any, scope: Scope) -> None:
        super().__init__(scope)
        self.members = {
            name: SimpleNamespace(action_space=env.action_spaces[name], num_envs=scope.num_envs)
            for name in env.possible_agents
        }

    def act(self, observations: Any, states: Any, *, infos: Any = None, timestep: int, timesteps: int) -> Any:
        actions = {
            name: np.array([[member.action_space.sample()] for _ in range(member.num_envs)])
            for name, member in self.members.items()
        }
        return {name: torch.from_numpy(action) for name, action in actions.items()}, {}


def test_teams_that_share_the_spaces_of_the_environment_are_repeatable():
    def outputs(users_seed: int) -> Any:
        env = make_env("mpe2.simple_spread_v3", num_envs=4, framework="torch")
        for space in env.action_spaces.values():
            space.seed(users_seed)
        result = run(30, env=env, agents=[partial(SamplingTeam, env)] * 2, seed=3)[0]
        oracle = Discrete(5, seed=users_seed)
        assert {space.sample() for space in env.action_spaces.values()} == {oracle.sample()}
        return result

    first = outputs(1)
    assert_same(outputs(2), first)
    last = first[-1][0]["agent_0"]
    assert (last[:2] != last[2:]).any()


class GloballyNoisyEnv(NoisyEnv):
    """`NoisyEnv` that draws from a global generator in one of its steps, or in its first reset."""

    def __init__(self, draw: Any, at: int) -> None:
        super().__init__()
        self.draw, self.at, self.calls = draw, at, 0

    def count(self) -> None:
        if self.calls == self.at:
            self.draw()
        self.calls += 1

    def reset(self, **options: Any) -> Any:
        if not self.calls:
            self.count()
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        self.count()
        return super().step(action)


def said(caplog: pytest.LogCaptureFixture, framework: str, *, draw: Any, at: int, seed: int | None = 3) -> list[str]:
    """Return what a run says about draws of its second environment."""
    env = EnvFactory(lambda n, first: [NoisyEnv(), GloballyNoisyEnv(draw, at)], num_envs=2)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="lockstep"):
        run(40, framework=framework, env=env, agents=[partial(SamplingAgent, framework, Box(-1, 1))] * 2, seed=seed)
    return [record.message for record in caplog.records if "draw" in record.message]


@pytest.mark.parametrize("at", [0, 1, 32])
def test_a_run_says_once_that_its_environments_draw_from_a_global_generator(framework, at, caplog):
    for draw, name in ((random.random, "Python's random"), (np.random.standard_normal, "NumPy's np.random")):
        (message,) = said(caplog, framework, draw=draw, at=at)
        assert name in message
        assert "cannot be repeated" in message
        assert "self.np_random" in message
    messages = said(caplog, framework, draw=lambda: torch.rand(1), at=at)
    assert ["torch's global generator" in message for message in messages] == [True] * (framework == "torch")


def test_a_run_says_nothing_without_a_seed_after_its_first_steps_or_about_its_agents(framework, caplog):
    assert said(caplog, framework, draw=random.random, at=1, seed=None) == []
    assert said(caplog, framework, draw=random.random, at=33) == []
    assert said(caplog, framework, draw=gymnasium.spaces.Discrete(3).sample, at=1) == []
