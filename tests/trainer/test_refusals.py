"""Arguments that StepTrainer refuses: each with its own error that has the numbers, and nothing is lost."""

from __future__ import annotations

import re
import threading
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from orchestrator import LocalOrchestrator
from orchestrator.ray import RayOrchestrator
from tests.support.agents import NullAgent, RecordingAgent
from tests.support.envs import CountingEnv, build_counting
from tests.support.foreign import ForeignEnv, trainer_of
from workers.agents.ppo import resolve_cfg
from workers.envs import EnvFactory, Wrapper, wrap_env
from workers.errors import AgentError, ConfigError, EnvError, ScopeError, WorkerError


class Incomplete:
    act = init = enable_training_mode = None


class Halved(ForeignEnv):
    step: Any = property()


class Keywords(NullAgent):
    def __init__(self, *, num_envs: int) -> None: ...


class Nameless(Wrapper):
    num_envs, observation_space, action_space = 2, Box(-1, 1, (1,)), Box(-1, 1, (1,))
    reset = step = render = close = None  # type: ignore[assignment]


one = NullAgent()

BAD_INPUT: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "one environment several times": (
        {"env": EnvFactory(lambda n, first: build_counting(1, 0) * n, num_envs=2)},
        EnvError,
        "contains the same environment more than once",
    ),
    "scopes of another type": ({"scopes": 2}, ScopeError, "expected a list of environment counts"),
    "zero scope": ({"scopes": [2, 0]}, ScopeError, r"\[2, 0\] contain 0"),
    "negative scope": ({"scopes": [4, -2]}, ScopeError, r"\[4, -2\] contain -2"),
    "wrong sum": ({"scopes": [2, 3]}, ScopeError, r"add up to 5, but there are 2 environments"),
    "wrong count": ({"scopes": [1]}, ScopeError, r"have length 1, but there are 2 simultaneous agents"),
    "too many agents": (
        {"agents": [NullAgent] * 3},
        ScopeError,
        r"more simultaneous agents \(3\) than environments \(2\)",
    ),
    "no agents": ({"agents": []}, AgentError, "empty list"),
    "unknown key": (
        {"cfg": {"timestep": 3}},
        ConfigError,
        r"unknown key 'timestep'; did you mean 'timesteps'\? Allowed",
    ),
    "negative timesteps": ({"cfg": {"timesteps": -1}}, ConfigError, "timesteps is -1; expected"),
    "negative seed": ({"seed": -1}, ConfigError, "seed is -1"),
    "seed of another type": ({"seed": "one"}, ConfigError, "seed is 'one'"),
    "orchestrator": ({"orchestrator": "slurm"}, ConfigError, "orchestrator is 'slurm'; expected 'local', 'ray'"),
    "class of an orchestrator": ({"orchestrator": LocalOrchestrator}, ConfigError, "expected 'local', 'ray'"),
    "agent lacks members": (
        {"agents": [Incomplete(), NullAgent]},
        AgentError,
        "scope 0, Incomplete, lacks pre_interaction, record_transition, post_interaction, track_data",
    ),
    "factory's agent lacks members": (
        {"agents": [lambda scope: Incomplete(), NullAgent]},
        AgentError,
        "lacks pre_interaction",
    ),
    "factory without a parameter": (
        {"agents": [NullAgent, lambda: NullAgent()]},
        AgentError,
        r"the factory of scope 1, <lambda>, cannot be called with the Scope as its only argument \(too many positional",
    ),
    "class with other parameters": (
        {"agents": [Keywords, NullAgent]},
        AgentError,
        r"the factory of scope 0, Keywords, cannot be called .* pass a function such as lambda scope: PPO\(",
    ),
    "factory without a result": (
        {"agents": [lambda scope: None, NullAgent]},
        AgentError,
        "the factory of scope 0, <lambda>, returned None; expected an agent",
    ),
    "vector environment that is not wrapped": (
        {"env": gymnasium.make_vec("CartPole-v1", num_envs=2)},
        EnvError,
        r"CartPoleVectorEnv is not wrapped; wrap it with wrap_env\(env, framework='torch'\)",
    ),
    "wrapper without a framework": ({"env": Nameless()}, EnvError, "set the class attribute framework = 'torch'"),
    "environment lacks a member": ({"env": Halved()}, EnvError, "Halved lacks step"),
    "a name": (
        {"env": "CartPole-v1"},
        EnvError,
        r"a name; .* make it with make_env\('CartPole-v1', num_envs=…, framework=",
    ),
    "no environment": ({"env": object()}, EnvError, "object lacks num_envs, observation_space"),
    "one instance in two scopes": ({"agents": [one, one]}, AgentError, "in several scopes"),
    "rows built": (
        {"env": EnvFactory(lambda n, first: build_counting(n + 1, first), num_envs=2)},
        EnvError,
        r"built 3 environments, starting at row 0; expected 2",
    ),
    "not built": ({"env": EnvFactory(lambda n, first: 3, num_envs=2)}, EnvError, "cannot be wrapped"),
    "no rows": ({"env": EnvFactory(build_counting, num_envs=0)}, EnvError, "num_envs 0; expected"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_refused_by_name(name):
    options, error, message = BAD_INPUT[name]
    with pytest.raises(error, match=message):
        trainer_of(**{"env": ForeignEnv(2), "agents": [NullAgent, NullAgent], **options})


def test_environment_of_another_framework_is_refused(framework):
    for env in (
        EnvFactory(build_counting, num_envs=2, framework="numpy"),
        wrap_env([CountingEnv(0), CountingEnv(1)], framework="numpy"),
    ):
        with pytest.raises(EnvError, match=f"is for 'numpy'.*'{framework}'"):
            trainer_of(env, framework=framework)


class Acts(NullAgent):
    acted: Any

    def act(self, *args: Any, **kwargs: Any) -> Any:
        return self.acted


@pytest.mark.parametrize(
    ("acted", "message"),
    [
        (np.zeros((2, 1)), "an object of type ndarray; expected (actions, outputs)"),
        ((np.zeros((2, 1)),) * 3, "a tuple of 3; expected (actions, outputs)"),
        ((np.zeros((2, 1)), None), "outputs of type NoneType; expected (actions, outputs)"),
        ((np.zeros((2, 1)), {}), "actions of type ndarray; expected a torch array with 2 rows"),
        ((torch.zeros(()), {}), "actions of shape (); expected a torch array with 2 rows"),
        ((torch.zeros(2, 1), {"mean_actions": torch.zeros(3, 1)}), "actions of shape (3, 1); expected a torch array"),
    ],
)
def test_what_act_may_not_return(acted, message):
    agent = Acts()
    agent.acted = acted
    with trainer_of(agents=agent) as trainer, pytest.raises(WorkerError, match=re.escape(f"act() returned {message}")):
        trainer.eval()


def test_a_factory_of_environments_says_where_to_take_spaces():
    with pytest.raises(AttributeError, match=r"has no 'observation_space': .* take spaces from a single environment"):
        _ = EnvFactory(build_counting, num_envs=2).observation_space


def test_observation_width_that_disagrees_with_the_agents():
    agent = NullAgent()
    agent.observation_space = Box(-1, 1, (5,))  # type: ignore[attr-defined]
    with pytest.raises(AgentError, match=r"width 5 .*but those of the environments have width 4"):
        trainer_of(agents=agent)


def test_negative_timestep_is_refused_and_loses_nothing():
    with trainer_of(agents=RecordingAgent) as trainer:
        for bad in ({"timestep": -3}, {"timesteps": -3}):
            with pytest.raises(ConfigError, match="-3"):
                trainer.train(**bad)
        trainer.train()
        assert trainer.agents[0].records()[0]["timestep"] == 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (RayOrchestrator, "RayOrchestrator: unknown key 'num_cpu'; did you mean 'num_cpus'? Allowed keys: "),
        (LocalOrchestrator, "LocalOrchestrator: unknown key 'num_cpu'; allowed keys: num_threads, replay_limit"),
        (lambda **cfg: resolve_cfg(cfg), "PPOCfg: unknown key 'num_cpu'; allowed keys: rollouts, "),
    ],
)
def test_an_unknown_keyword_is_named_with_those_there_are(build: Any, message: str):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build(num_cpu=2)


def test_every_unknown_keyword_gets_its_hint():
    message = "unknown keys 'step_timout', 'x', 'spare'; did you mean 'step_timeout', 'spares'? Allowed keys: "
    with pytest.raises(ConfigError, match=re.escape(message)):
        RayOrchestrator(step_timout=1, x=2, spare=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "build", [lambda n: [], lambda: [], lambda n, first, more: [], lambda *, num_envs, first_env: []]
)
def test_a_factory_of_environments_says_how_it_is_called(build: Any):
    with pytest.raises(
        EnvError, match=r"cannot be called as build\(num_envs, first_env\), .* lambda num_envs, first_env"
    ):
        EnvFactory(build, num_envs=2)


@pytest.mark.parametrize("build", [lambda n, first: [], lambda *rows: [], lambda n, first, more=3: []])
def test_a_factory_of_environments_may_have_other_parameters(build: Any):
    assert EnvFactory(build, num_envs=2).build(1, 0) == []


class Locked(NullAgent):
    """It cannot be pickled."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


def test_what_a_factory_cannot_take_along_to_ray_is_named():
    agent, width = Locked(), 3
    lock = "(TypeError: cannot pickle '_thread.lock' object); "
    taken = "or take from it beforehand what is needed, such as its spaces"
    for name, env, agents, told in (
        (
            "the factory of scope 0 cannot be pickled for its worker",
            build_counting,
            lambda scope: (agent, width),
            "the factory",
        ),
        (
            "the environment factory cannot be pickled for its workers",
            lambda n, first: (agent, width),
            NullAgent,
            "build",
        ),
    ):
        message = f"{name} {lock}it uses agent: create it inside {told}, {taken}"
        with pytest.raises((AgentError, EnvError), match=re.escape(message)):
            trainer_of(EnvFactory(env, num_envs=2), [agents], orchestrator="ray")
    env = partial(lambda agent, n, first: [], agent)
    with pytest.raises(EnvError, match=re.escape(f"{lock}create what it needs inside build")):
        trainer_of(EnvFactory(env, num_envs=2), [NullAgent], orchestrator="ray")
