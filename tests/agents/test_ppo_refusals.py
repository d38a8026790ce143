"""Invalid arguments of the PPO agent and their error messages."""

from __future__ import annotations

import re

import gymnasium
import numpy as np
import pytest

from tests.support.parity import ppo
from tests.support.ppo import BOX, CLOCK, ENVS, STEPS, WIDTH, make, record, to_framework, transition
from workers.agents.ppo import PPOCfg
from workers.errors import AgentError, ConfigError

DISCRETE = gymnasium.spaces.Discrete(3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rollouts", 0),
        ("mini_batches", 2.0),
        ("learning_epochs", True),
        ("discount_factor", 1.1),
        ("gae_lambda", -0.1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("ratio_clip", 0),
        ("value_clip", -1),
        ("grad_norm_clip", "1"),
        ("kl_threshold", -1.0),
        ("activation", "gelu"),
        ("action_bounds", "bounce"),
        ("action_bounds", None),
        ("hidden_sizes", (64, 0)),
        ("hidden_sizes", 64),
        ("initial_log_std", None),
        ("normalize_values", 1),
    ],
)
def test_wrong_config_values_are_named(framework, name, value):
    with pytest.raises(ConfigError, match=rf"{name} is .*; expected "):
        PPOCfg(**{name: value}).validate()
    with pytest.raises(ConfigError, match=name):
        make(framework, **{name: value})


def test_config_is_checked_and_copied(framework):
    assert PPOCfg().validate()
    with pytest.raises(
        ConfigError, match=r"PPOCfg: unknown key 'rolouts'; did you mean 'rollouts'\? Allowed keys: rollouts"
    ):
        make(framework, rolouts=3)
    with pytest.raises(ConfigError, match="is 13; expected at most rollouts x num_envs = 4 x 3 = 12"):
        make(framework, mini_batches=13)
    with pytest.raises(ConfigError, match="cfg is a list; expected a PPOCfg or a dictionary"):
        ppo(framework)(observation_space=BOX, action_space=DISCRETE, num_envs=1, cfg=[])
    cfg = PPOCfg(rollouts=2)
    agent = ppo(framework)(observation_space=BOX, action_space=DISCRETE, num_envs=2, cfg=cfg)
    cfg.rollouts = 100
    assert agent.cfg.rollouts == 2


@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.Box(0, 9, (2,), np.int32),
        gymnasium.spaces.Dict({"a": DISCRETE}),
        gymnasium.spaces.Tuple([DISCRETE, DISCRETE]),
        "Discrete(2)",
    ],
)
def test_unsupported_action_spaces_are_refused(framework, space):
    supported = "a Discrete, MultiDiscrete, MultiBinary or a Box of floats"
    with pytest.raises(AgentError, match=f"^action_space is {re.escape(repr(space))}; expected {supported}$"):
        ppo(framework)(observation_space=BOX, action_space=space, num_envs=1)


def test_action_spaces_without_elements_are_refused(framework):
    for space in (gymnasium.spaces.MultiDiscrete([]), gymnasium.spaces.Box(0, 1, (0,))):
        with pytest.raises(AgentError, match=r"action_space .* has 0 elements; expected at least 1"):
            ppo(framework)(observation_space=BOX, action_space=space, num_envs=1)


def test_unsuitable_observation_spaces_and_numbers_are_refused(framework):
    actions = DISCRETE
    with pytest.raises(AgentError, match=r"observation_space is None; expected a gymnasium\.Space"):
        ppo(framework)(observation_space=None, action_space=actions, num_envs=1)
    with pytest.raises(AgentError, match="cannot be flattened"):
        ppo(framework)(observation_space=gymnasium.spaces.Sequence(BOX), action_space=actions, num_envs=1)
    for num_envs in (0, 1.0, True):
        with pytest.raises(AgentError, match=r"num_envs is .*; expected an integer of at least 1"):
            ppo(framework)(observation_space=BOX, action_space=actions, num_envs=num_envs)


def test_wrong_shapes_are_refused(framework):
    agent = make(framework, asymmetric=True)
    wrong = to_framework(framework, np.zeros((2, WIDTH), np.float32))
    with pytest.raises(AgentError, match=r"observations has shape \(2, 5\); expected .* of shape \(3, 5\)"):
        agent.act(wrong, None, **CLOCK)
    good = transition(agent, 0)
    for name in good:
        for changed in (np.zeros(ENVS, np.float32), None):
            with pytest.raises(AgentError, match=rf"^{name} .*; expected a {framework} array of shape"):
                record(agent, good | {name: changed})
    assert agent._recorded == 0


def test_a_full_rollout_asks_for_post_interaction(framework):
    agent = make(framework)
    given = {"states": None, "next_states": None, "infos": {}} | to_framework(framework, transition(agent, 0))
    for _ in range(STEPS):
        agent.record_transition(**given, **CLOCK)
    with pytest.raises(AgentError, match="call post_interaction"):
        agent.record_transition(**given, **CLOCK)
