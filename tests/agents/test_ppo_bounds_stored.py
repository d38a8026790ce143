"""PPO in a Box with bounds: spaces that are refused, and what a stored agent says about its bounds."""

from __future__ import annotations

import math
import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box

from tests.support import parity
from tests.support.parity import assert_same
from tests.support.ppo import (
    BOUNDED,
    BOX,
    ENVS,
    HALF_BOUNDED,
    STEPS,
    WIDTH,
    act,
    learn,
    make,
    record,
    run,
    state_of,
    transition,
    with_head,
)
from workers.agents.action_bounds import action_map
from workers.agents.independent import IndependentAgents
from workers.errors import AgentError
from workers.storage.export import copy_state

MODES = ("none", "clip", "rescale")
MAX, INF = float(np.finfo(np.float32).max), math.inf

SINGLE = r"action_space is Box\(.*\), in which element \(1\) has a single bound \(from 0\.0 to inf, .* 'clip' or 'none'"


def test_a_single_bound_is_refused(framework):
    with pytest.raises(AgentError, match=f"^{SINGLE}$"):
        make(framework, HALF_BOUNDED)
    for mode, expected in (("none", [-5.0, -5.0]), ("clip", [-1.0, 0.0])):
        agent = with_head(framework, HALF_BOUNDED, np.array([-5.0, -5.0]), action_bounds=mode)
        assert act(agent, np.zeros((1, WIDTH), np.float32))[1].tolist() == [expected]


@pytest.mark.parametrize(
    ("low", "high", "element"),
    [(-INF, 1.0, r"\(\)"), (-1e300, 1.0, r"\(\)"), (0.0, MAX, r"\(\)"), ([[-1, -1], [-INF, 0]], 1.0, r"\(1, 0\)")],
)
def test_the_element_with_a_single_bound_is_named(low, high, element):
    shape = np.shape(low)
    space = Box(np.array(low, np.float64), np.full(shape, high), dtype=np.float64)
    with pytest.raises(AgentError, match=f"in which element {element} has a single bound"):
        action_map(space, "rescale")


def test_a_state_without_the_key_has_no_bounds(framework):
    agent, stored = make(framework, BOUNDED, seed=1), make(framework, BOUNDED, action_bounds="none", seed=2)
    run(agent, range(3))  # in Warp, its graph was captured with the map
    run(stored, range(STEPS))
    old = {name: value for name, value in stored.state_dict().items() if name != "action_bounds"}
    agent.load_state_dict(old)
    assert agent.cfg.action_bounds == "none"
    assert agent.state_dict()["action_bounds"] == "none"
    results = []
    for each in (agent, stored):
        each.load_state_dict(old)
        means = [act(each, transition(each, step)["observations"])[1] for step in range(3)]
        results.append((means, learn(each, range(2 * STEPS))))  # of actions that it is given
    assert_same(results[1], results[0])


@pytest.mark.parametrize(("source", "mode"), [("torch", "clip"), ("jax", "rescale"), ("warp", "none")])
def test_the_stored_value_wins_in_every_framework(framework, source, mode, tmp_path):
    stored = with_head(source, BOUNDED, np.array([0.5, 3.0]), action_bounds=mode)
    stored.save(tmp_path / "agent.safetensors")
    observations = np.zeros((ENVS, WIDTH), np.float32)
    expected = act(stored, observations)[1]
    for configured in MODES:
        agent = make(framework, BOUNDED, action_bounds=configured, hidden_sizes=())
        agent.enable_training_mode(False)
        for _ in range(2):
            act(agent, observations)
        agent.load(tmp_path / "agent.safetensors")
        assert agent.cfg.action_bounds == mode
        for _ in range(3):
            np.testing.assert_allclose(act(agent, observations)[1], expected, rtol=1e-6)
        assert_same(act(pickle.loads(pickle.dumps(agent)), observations)[1], act(agent, observations)[1])


def test_a_stored_value_that_does_not_fit_changes_nothing(framework):
    agent = make(framework, HALF_BOUNDED, action_bounds="clip")
    run(agent, range(STEPS + 1))
    before = state_of(agent)
    wrong = {"rescale": SINGLE, "bounce": r"PPOCfg\.action_bounds is 'bounce'; expected one of 'none', 'clip'"}
    for value, message in [*wrong.items(), (None, r"action_bounds is None; expected"), (3, "is 3; expected")]:
        with pytest.raises(AgentError, match=f"^the state does not fit this agent: .*{message}"):
            agent.load_state_dict({**before, "learning_rate": 0.5, "action_bounds": value})
    assert (agent._recorded, agent.cfg.action_bounds) == (1, "clip")
    assert_same(state_of(agent), before)


def test_agents_with_other_actions_have_no_such_value(framework):
    agent = make(framework, "discrete", action_bounds="clip")
    state = state_of(agent)
    assert "action_bounds" not in state
    agent.load_state_dict(state)
    assert agent.cfg.action_bounds == "clip"
    with pytest.raises(AgentError, match="the state does not fit this agent: state is"):
        agent.load_state_dict(state | {"action_bounds": "clip"})


def test_every_agent_of_a_team_has_its_stored_value():
    def team(keeper: Box, **cfg: Any) -> IndependentAgents:
        spaces = {"left": BOUNDED, "keeper": keeper}
        return IndependentAgents(
            partial(parity.ppo("torch"), cfg=cfg),
            possible_agents=list(spaces),
            observation_spaces=dict.fromkeys(spaces, BOX),
            action_spaces=spaces,
            num_envs=ENVS,
        )

    def values(agents: IndependentAgents) -> list[str]:
        return [member.cfg.action_bounds for member in agents.members.values()]

    agents, old = team(HALF_BOUNDED, action_bounds="clip"), team(BOUNDED).state_dict()
    with pytest.raises(AgentError, match=r"'keeper': the state does not fit this agent: .* has a single bound"):
        agents.load_state_dict(old)
    assert values(agents) == ["clip", "clip"]
    for state in old.values():
        del state["action_bounds"]
    agents.load_state_dict(old)
    assert values(agents) == ["none", "none"]


def test_a_trained_agent_brings_its_bounds_back(framework):
    trained, agent = make(framework, BOUNDED), make(framework, BOUNDED, action_bounds="none", seed=1)
    run(trained, range(STEPS + 1))
    copy_state(trained, agent)
    observations = transition(agent, 0)["observations"]
    assert agent.cfg.action_bounds == "rescale"
    assert_same(act(agent, observations)[1], act(trained, observations)[1])
    record(agent, transition(agent, 0))
