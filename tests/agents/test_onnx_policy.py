"""ONNX models of stored agents, run by onnxruntime, against `act` in every framework."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import gymnasium
import numpy as np
import onnx
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from onnxruntime import InferenceSession

from tests.support.parity import ppo
from tests.support.ppo import BOUNDED, BOX, MULTI_DISCRETE, WIDTH, act, flat, learned, make, seed_everything
from tests.support.schedule import FRAMEWORKS, full_or_short
from workers.agents.onnx_policy import policy_model
from workers.agents.ppo import PPO
from workers.errors import AgentError, ConfigError
from workers.frameworks import load_framework
from workers.storage.state_file import decode_state, encode_state

NARROW = Box(np.array([-1.0, -np.inf, 0.0], np.float32), np.array([1.0, np.inf, 0.01], np.float32))
CASES: dict[str, tuple[gymnasium.Space[Any], dict[str, Any]]] = {
    "box": (Box(-np.inf, np.inf, (2, 2)), {"activation": "elu"}),
    "clip": (NARROW, {"action_bounds": "clip", "activation": "relu", "normalize_observations": False}),
    "rescale": (NARROW, {"action_bounds": "rescale"}),
    "unbounded": (BOUNDED, {"action_bounds": "none", "hidden_sizes": ()}),
    "discrete": (Discrete(4, start=-2), {}),
    "multi-discrete": (MULTI_DISCRETE, {"activation": "elu", "normalize_observations": False}),
    "multi-binary": (MultiBinary((2, 3)), {"activation": "relu", "hidden_sizes": (8, 5, 3)}),
}
COMBINATIONS = list(itertools.product(CASES, FRAMEWORKS))
# each case, and the three kinds of spaces in every framework
SHORT = [one for one in COMBINATIONS if one[1] == "torch" or one[0] in ("rescale", "discrete", "multi-discrete")]
GAME = Dict({"action_mask": MultiBinary(6), "board": Box(-1, 1, (2,))})


def session(agent: PPO, state: dict[str, Any], **spaces: Any) -> InferenceSession:
    """Return a runtime of the model of what is stored of an agent."""
    stored = decode_state(encode_state(state, load_framework("numpy")), load_framework("numpy"))
    given = {"observation_space": agent.observation_space, "action_space": agent.action_space} | spaces
    return InferenceSession(policy_model(stored, **given, cfg=agent.cfg, metadata={"framework": agent.framework}))


@pytest.mark.parametrize(("kind", "framework"), full_or_short(COMBINATIONS, SHORT))
def test_the_model_acts_as_the_agent(kind: str, framework: str):
    space, cfg = CASES[kind]
    agent = make(framework, space, **cfg)
    state = learned(agent)
    agent.load_state_dict(state)
    agent.enable_training_mode(False)
    runtime = session(agent, state)
    rows = np.random.default_rng(2).normal(0.5, 4.0, (64, WIDTH)).astype(np.float32)
    rows[0] *= 100.0  # beyond the limit of normalised observations
    expected = act(agent, rows)[1]
    assert (np.ptp(expected, axis=0) > 0).mean() > 0.5
    for count in (64, 1):
        actions = runtime.run(["actions"], {"observations": rows[:count]})[0]
        assert actions.shape == expected[:count].shape
        if isinstance(space, Box):
            assert actions.dtype == np.float32
            np.testing.assert_allclose(actions, expected[:count], rtol=1e-5, atol=1e-5)
        else:
            assert actions.dtype == np.int64
            np.testing.assert_array_equal(actions, expected[:count])
    outputs = [output.name for output in runtime.get_outputs()]
    assert outputs == (["actions"] if isinstance(space, Box) else ["actions", "logits"])
    assert [(one.name, one.shape) for one in runtime.get_inputs()] == [("observations", ["batch", WIDTH])]


def test_logits_are_those_of_each_component():
    agent = make("torch", MULTI_DISCRETE)
    state = learned(agent)
    rows = np.random.default_rng(0).normal(size=(9, WIDTH)).astype(np.float32)
    actions, logits = session(agent, state).run(None, {"observations": rows})
    parts = np.split(logits, np.cumsum([3, 2, 4])[:-1], axis=1)
    chosen = np.stack([part.argmax(1) for part in parts], axis=1) + MULTI_DISCRETE.start
    np.testing.assert_array_equal(chosen, actions)


def test_only_legal_actions():
    seed_everything("torch", 1)
    actions = MultiDiscrete([2, 4], start=[5, -1])
    agent = ppo("torch")(observation_space=GAME, action_space=actions, num_envs=1, cfg={"rollouts": 4})
    state = learned(agent)
    agent.load_state_dict(state)
    rng = np.random.default_rng(4)
    samples: list[dict[str, Any]] = [
        {"board": rng.uniform(-1, 1, 2).astype(np.float32), "action_mask": np.array(mask, np.int8)}
        for mask in itertools.product([0, 1], repeat=6)
    ]
    rows = flat(GAME, samples)
    given, logits = session(agent, state).run(None, {"observations": rows})
    np.testing.assert_array_equal(given, np.stack([agent.predict(sample) for sample in samples]))
    for row, sample, (first, second) in zip(logits, samples, given - actions.start, strict=True):
        mask = sample["action_mask"]
        assert mask[first] or not mask[:2].any()
        assert mask[2 + second] or not mask[2:].any()
        assert np.isfinite(row).all()


def test_what_the_model_says_of_itself():
    agent = make("torch")
    state = decode_state(encode_state(learned(agent), load_framework("numpy")), load_framework("numpy"))
    spaces = {"observation_space": agent.observation_space, "action_space": agent.action_space}
    data = policy_model(state, **spaces, cfg=agent.cfg, metadata={"framework": "torch", "timestep": "7"})
    model = onnx.load_from_string(data)
    assert {entry.key: entry.value for entry in model.metadata_props} == {"framework": "torch", "timestep": "7"}
    assert model.producer_name == "lockstep-rl"
    assert data == policy_model(state, **spaces, cfg=agent.cfg, metadata={"framework": "torch", "timestep": "7"})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"policy.network.0.weight": None}, r"policy\.network\.0\.weight is missing"),
        ({"policy.network.2.bias": np.zeros(3)}, r"2\.bias has shape \(3,\) .*expected floats of shape \(2,\)"),
        ({"normalizers.observations.mean": np.zeros(WIDTH, np.int64)}, "has shape .* and dtype int64"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change: dict[str, Any], told: str):
    agent = make("torch")
    state = learned(agent)
    state["models"] |= change
    with pytest.raises(AgentError, match=told):
        policy_model(state, observation_space=BOX, action_space=agent.action_space, cfg=agent.cfg, metadata={})
    with pytest.raises(AgentError, match=r"policy\.network\.0\.weight is missing"):
        policy_model(
            {},
            observation_space=BOX,
            action_space=Discrete(2),
            cfg=make("torch", normalize_observations=False).cfg,
            metadata={},
        )


def test_unknown_action_bounds_are_refused():
    agent = make("torch", BOUNDED)
    state = learned(agent) | {"action_bounds": "squash"}
    with pytest.raises(ConfigError, match="action_bounds is 'squash'"):
        policy_model(state, observation_space=BOX, action_space=BOUNDED, cfg=agent.cfg, metadata={})


def test_without_onnx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    agent = make("torch")
    with pytest.raises(ConfigError, match=r"pip install 'lockstep-rl\[onnx\]'"):
        session(agent, learned(agent))
