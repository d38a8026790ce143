"""What the PPO agent refuses, and how it says so."""

from __future__ import annotations

import re
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from workers.agents.torch import PPO, PPOCfg
from workers.errors import AgentError, ConfigError

STEPS, ENVS, WIDTH = 4, 3, 5
BOX = gymnasium.spaces.Box(-np.inf, np.inf, (WIDTH,))
DISCRETE = gymnasium.spaces.Discrete(3)
CLOCK = {"timestep": 0, "timesteps": 100}


def make(**cfg: Any) -> PPO:
    agent = PPO(
        observation_space=BOX,
        action_space=gymnasium.spaces.Box(-1, 1, (2,)),
        state_space=gymnasium.spaces.Box(-1, 1, (2,)),
        num_envs=ENVS,
        cfg={"rollouts": STEPS} | cfg,
    )
    agent.enable_training_mode(True)
    return agent


def transition() -> dict[str, Any]:
    widths = {"observations": WIDTH, "states": 2, "actions": 2, "rewards": 1}
    arrays = {name: torch.zeros(ENVS, width) for name, width in widths.items()}
    arrays |= {f"next_{name}": arrays[name] for name in ("observations", "states")}
    return arrays | {name: torch.zeros(ENVS, 1, dtype=torch.bool) for name in ("terminated", "truncated")}


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
        ("hidden_sizes", (64, 0)),
        ("hidden_sizes", 64),
        ("initial_log_std", None),
        ("normalize_values", 1),
    ],
)
def test_wrong_config_values_are_named(name, value):
    with pytest.raises(ConfigError, match=rf"{name} must be .*, got "):
        PPOCfg(**{name: value}).validate()
    with pytest.raises(ConfigError, match=name):
        make(**{name: value})


def test_config_is_checked_and_copied():
    assert PPOCfg().validate()
    with pytest.raises(ConfigError, match="unknown PPO options rolouts; valid options are rollouts"):
        make(rolouts=3)
    with pytest.raises(ConfigError, match="at most rollouts x num_envs = 4 x 3 = 12, got 13"):
        make(mini_batches=13)
    with pytest.raises(ConfigError, match="PPOCfg or a dict, got list"):
        PPO(observation_space=BOX, action_space=DISCRETE, num_envs=1, cfg=[])  # type: ignore[arg-type]
    cfg = PPOCfg(rollouts=2)
    agent = PPO(observation_space=BOX, action_space=DISCRETE, num_envs=2, cfg=cfg)
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
def test_unsupported_action_spaces_are_refused(space):
    supported = "a Discrete, MultiDiscrete, MultiBinary or a Box of floats"
    with pytest.raises(AgentError, match=f"^action_space must be {supported}, got {re.escape(repr(space))}$"):
        PPO(observation_space=BOX, action_space=space, num_envs=1)


def test_action_spaces_without_elements_are_refused():
    for space in (gymnasium.spaces.MultiDiscrete([]), gymnasium.spaces.Box(0, 1, (0,))):
        with pytest.raises(AgentError, match=r"action_space .* must have at least one element, got 0"):
            PPO(observation_space=BOX, action_space=space, num_envs=1)


def test_unsuitable_observation_spaces_and_numbers_are_refused():
    actions = DISCRETE
    with pytest.raises(AgentError, match=r"observation_space must be a gymnasium\.Space"):
        PPO(observation_space=None, action_space=actions, num_envs=1)  # type: ignore[arg-type]
    with pytest.raises(AgentError, match="cannot be flattened"):
        PPO(observation_space=gymnasium.spaces.Sequence(BOX), action_space=actions, num_envs=1)
    for num_envs in (0, 1.0, True):
        with pytest.raises(AgentError, match="num_envs must be a positive integer"):
            PPO(observation_space=BOX, action_space=actions, num_envs=num_envs)  # type: ignore[arg-type]


def test_wrong_shapes_are_refused():
    agent = make()
    with pytest.raises(AgentError, match=r"observations must be an array of shape \(3, 5\), got shape \(2, 5\)"):
        agent.act(torch.zeros(2, WIDTH), None, **CLOCK)
    good = transition()
    for name in good:
        for wrong in (torch.zeros(ENVS), None):
            with pytest.raises(AgentError, match=rf"^{name} must be an array of shape"):
                agent.record_transition(**(good | {name: wrong}), infos={}, **CLOCK)
    assert agent._recorded == 0


def test_a_full_rollout_asks_for_post_interaction():
    agent = make()
    given = transition()
    for _ in range(STEPS):
        agent.record_transition(**given, infos={}, **CLOCK)
    with pytest.raises(AgentError, match="call post_interaction"):
        agent.record_transition(**given, infos={}, **CLOCK)
