"""`predict` of our agents: the mean actions of `act`, in the environment's form, and nothing changes."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.spaces.utils import flatdim
from gymnasium.vector.utils import concatenate, create_empty_array

from tests.support import parity
from tests.support.agents import copied
from tests.support.ppo import (
    BOUNDED,
    ENVS,
    MULTI_DISCRETE,
    STEPS,
    WIDTH,
    act,
    flat,
    learned,
    make,
    run,
    same,
    seed_everything,
    to_framework,
)
from tests.support.schedule import FRAMEWORKS, full_or_short, in_turn
from workers.agents.independent import IndependentAgents
from workers.errors import AgentError

SPACES: dict[str, gymnasium.Space[Any]] = {
    "box": BOUNDED,
    "discrete": Discrete(3, start=2),
    "multi-discrete": MULTI_DISCRETE,
    "multi-binary": MultiBinary((2, 3)),
}
GAME = Dict({"observation": Box(-1, 1, (2, 2)), "action_mask": MultiBinary(5)})
OBSERVATIONS: dict[str, gymnasium.Space[Any]] = {
    "image": Box(0, 2, (3, 2, 1), np.uint8),
    "discrete": Discrete(4, start=-1),
    "nested": Dict({"one": Tuple((Discrete(3), MultiBinary(2))), "two": MultiDiscrete([2, 3])}),
    "numbers": Tuple((Box(-1, 1, ()), Box(-1, 1, (2,), np.float64))),
}


def batched(space: gymnasium.Space[Any], samples: list[Any]) -> Any:
    empty: Any = create_empty_array(space, len(samples))
    return concatenate(space, samples, empty)


def agent_for(framework: str, observations: gymnasium.Space[Any], actions: gymnasium.Space[Any]) -> Any:
    seed_everything(framework, 3)
    cfg = {"rollouts": 4, "hidden_sizes": (8,)}
    agent = parity.ppo(framework)(observation_space=observations, action_space=actions, num_envs=2, cfg=cfg)
    agent.load_state_dict(learned(agent))
    return agent


@pytest.mark.parametrize(("kind", "framework"), in_turn(list(SPACES)))
def test_the_mean_actions_as_the_environment_takes_them(kind: str, framework: str):
    space = SPACES[kind]
    agent = make(framework, space)
    agent.load_state_dict(learned(agent))
    agent.enable_training_mode(False)
    rows = np.random.default_rng(0).normal(1.0, 3.0, (5, WIDTH)).astype(np.float32)
    means = act(agent, rows)[1]
    np.testing.assert_array_equal(copied(agent.predict(to_framework(framework, rows))), means)
    batch = agent.predict(rows)
    assert (batch.shape, batch.dtype) == ((5, *space.shape), space.dtype)  # type: ignore[misc]
    np.testing.assert_array_equal(batch.reshape(5, -1), means)
    batch[:] = 0  # the caller's own
    for row, mean in zip(rows, means, strict=True):
        one = agent.predict(row)
        assert space.contains(one)
        np.testing.assert_allclose(np.reshape(one, -1), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "framework"),
    full_or_short(
        list(product(SPACES, FRAMEWORKS)), [*product(("box", "discrete"), ("torch", "warp")), ("box", "jax")]
    ),
)
def test_nothing_changes_in_the_middle_of_a_rollout(kind: str, framework: str):
    """Between `act` and its transition, own actions, masks, noise and random streams wait."""

    width = {"box": 2, "discrete": 3, "multi-discrete": 9, "multi-binary": 12}[kind]

    def masks(step: int) -> dict[str, Any]:
        return {"action_mask": np.arange(width * ENVS).reshape(ENVS, width) % 2 == step % 2}

    def results(*, predicts: bool) -> Any:
        agent = make(framework, SPACES[kind])
        record = agent.record_transition

        def between(**given: Any) -> None:
            if predicts:
                for rows in (1, ENVS):
                    agent.predict(np.full((rows, WIDTH), 7.0, np.float32))
            record(**given)

        agent.record_transition = between  # type: ignore[method-assign]
        taken = run(agent, range(STEPS - 1), masks)
        return {"taken": taken, "snapshot": agent.snapshot(), "torch": torch.get_rng_state().numpy()}

    assert same(results(predicts=True), results(predicts=False))


@pytest.mark.parametrize(
    ("kind", "framework"),
    full_or_short(list(product(OBSERVATIONS, FRAMEWORKS)), list(product(OBSERVATIONS, ["torch"]))),
)
def test_observations_as_environments_give_them(kind: str, framework: str):
    space = OBSERVATIONS[kind]
    agent = agent_for(framework, space, Box(-np.inf, np.inf, (2,)))
    space.seed(5)
    samples = [space.sample() for _ in range(3)]
    expected = copied(agent.predict(to_framework(framework, flat(space, samples))))
    assert np.ptp(expected, axis=0).min() > 0.1
    np.testing.assert_array_equal(agent.predict(batched(space, samples)), expected)
    for sample, mean in zip(samples, expected, strict=True):
        np.testing.assert_allclose(agent.predict(sample), mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("framework", full_or_short(FRAMEWORKS, ["torch", "warp"]))
def test_only_legal_actions(framework: str):
    agent = agent_for(framework, GAME, MultiDiscrete([2, 3], start=[0, 10]))
    board = np.full((2, 2), 0.5, np.float32)
    for legal in ([1, 0, 0, 0, 1], [0, 1, 1, 0, 0], [0, 1, 0, 1, 0]):
        mask = np.array(legal, np.int8)
        seen = {"observation": board, "action_mask": mask}
        chosen = [legal.index(1), 10 + legal.index(1, 2) - 2]
        assert agent.predict(seen).tolist() == chosen
        assert agent.predict(batched(GAME, [seen, seen])).tolist() == [chosen] * 2
        given = {"observation": board, "action_mask": 1 - mask}
        assert agent.predict(given, action_mask=mask).tolist() == chosen
        rows = to_framework(framework, flat(GAME, [seen, seen]))
        assert copied(agent.predict(rows)).tolist() == [chosen] * 2


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (np.zeros(3, np.float32), r"observations have shape \(1, 3\); expected \(num_envs, \*\(5,\)\)"),
        (np.zeros((2, 2, 5), np.float32), r"have shape \(2, 2, 5\)"),
        ({"a": 1}, "are of type"),
        ([[1.0, 2.0], [3.0]], "inhomogeneous"),
        (None, r"have shape \(1,\)"),
        (torch.zeros(5), r"observations has shape \(5,\); expected a torch array of shape \(rows, 5\)"),
    ],
)
def test_what_is_no_observation_is_refused(given: Any, told: str):
    with pytest.raises(AgentError, match=told):
        make("torch").predict(given)


def test_a_number_that_the_framework_cannot_hold_is_refused():
    agent = agent_for("jax", Box(-(2**40), 2**40, (2,), np.int64), Discrete(2))
    with pytest.raises(AgentError, match="1099511627776 of dtype int64 does not fit JAX's int32"):
        agent.predict(np.array([2**40, 1]))


def test_a_mask_that_does_not_fit_is_refused():
    with pytest.raises(AgentError, match=r"infos\['action_mask'\] has shape \(1, 2\); expected \(1, 3\)"):
        make("torch", "discrete").predict(np.zeros(WIDTH, np.float32), action_mask=np.ones(2))


@pytest.mark.parametrize("framework", full_or_short(FRAMEWORKS, ["torch", "warp"]))
def test_teams(framework: str):
    names = ["left", "right", "keeper"]
    spaces = {"left": GAME, "right": GAME, "keeper": Box(-1, 1, (2,))}
    seed_everything(framework, 0)
    team = IndependentAgents(
        partial(parity.ppo(framework), cfg={"rollouts": 4}),
        possible_agents=names,
        observation_spaces=spaces,
        action_spaces={"left": Discrete(5), "right": Discrete(5), "keeper": BOUNDED},
        num_envs=2,
        groups={"wings": ["left", "right"]},
    )
    game = {"observation": np.zeros((2, 2), np.float32), "action_mask": np.array([0, 0, 0, 1, 0], np.int8)}
    keeper = np.ones((3, 2), np.float32)
    actions = team.predict({"keeper": keeper, "right": game})
    assert list(actions) == ["keeper", "right"]
    assert actions["right"] == 3
    np.testing.assert_array_equal(actions["keeper"], team.members["keeper"].predict(keeper))
    assert flatdim(GAME) == 9
    assert team.predict({"left": game}, action_mask={"left": [0, 1, 0, 0, 0]}) == {"left": 1}
    with pytest.raises(AgentError, match=r"predict got 'goalie'; expected only agents from \['left', 'right'"):
        team.predict({"goalie": keeper})
    with pytest.raises(AgentError, match=r"'left': predict takes one .* has the keys"):
        team.predict({"left": {"observation": game["observation"]}})
