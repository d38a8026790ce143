"""Rows that do not act and illegal actions, in every framework, against NumPy's float64."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gymnasium.spaces import Discrete

from tests.support.agents import copied
from tests.support.ppo import (
    CLOCK,
    ENVS,
    MULTI_DISCRETE,
    STEPS,
    WIDTH,
    assert_close,
    fix_orders,
    make,
    record,
    same,
    seed_everything,
    state_of,
    to_framework,
    transition,
)
from tests.support.ppo_reference import Reference
from workers.agents.masks import legal_actions
from workers.agents.ppo import PPO
from workers.errors import AgentError

NAN = np.float32(np.nan)

# Three environments, four timesteps: the first acts in every timestep but the third, the second in every other one, the
# third only in the last. While they do not act, the second one's first transition is terminated and the first one's
# second transition is truncated.
ACTED = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0], [1, 0, 1]], np.bool_)[..., None]
TERMINATED = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]], np.bool_)[..., None]
TRUNCATED = np.array([[0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]], np.bool_)[..., None]


def infos_of(**masks: Any) -> dict[str, Any]:
    return {name: mask for name, mask in masks.items() if mask is not None}


def act_and_record(agent: PPO, given: dict[str, Any], infos: dict[str, Any]) -> None:
    """Let the agent act, but record the given action instead of its own."""
    observations = to_framework(agent.framework, given["observations"])
    agent.act(observations, None, infos=to_framework(agent.framework, infos), **CLOCK)
    record(agent, given)


def masked_steps(agent: PPO, first: int, masks: bool) -> tuple[list[dict[str, Any]], dict[str, npt.NDArray[Any]]]:
    """Return the transitions of one rollout with their masks, and the same as a rollout."""
    steps: list[dict[str, Any]] = []
    width = agent._head_width
    for step in range(STEPS):
        given = transition(agent, first + step, terminated=TERMINATED[step], truncated=TRUNCATED[step])
        given["acted"] = ACTED[step]
        if masks:
            legal = np.random.default_rng(first + step).random((ENVS, width)) < 0.5
            legal[np.arange(ENVS)[:, None], chosen_columns(given["actions"])] = True
            given["action_mask"] = legal
        steps.append(given)
    return steps, {name: np.stack([step[name] for step in steps]) for name in steps[0]}


def chosen_columns(actions: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the logit columns of actions in MULTI_DISCRETE."""
    return actions - MULTI_DISCRETE.start + np.array([0, 3, 5])


@pytest.mark.parametrize(("actions", "masks"), [("gaussian", False), (MULTI_DISCRETE, True)])
def test_updates_are_those_of_the_reference(framework, actions, masks):
    cfg: dict[str, Any] = {"learning_rate": 0.01, "entropy_loss_scale": 0.05, "kl_threshold": 0.02}
    agent = make(framework, actions, asymmetric=not masks, **cfg)
    reference = Reference(agent, state_of(agent))
    acted = np.flatnonzero(ACTED)
    for update in range(3):
        fix_orders(agent)
        rng = np.random.default_rng(update)
        orders = np.stack([np.resize(rng.permutation(acted), ACTED.size) for _ in range(agent.cfg.learning_epochs)])
        agent._draw_orders = lambda orders=orders: to_framework(framework, orders.astype(np.int32))  # type: ignore[method-assign,misc]
        steps, rollout = masked_steps(agent, 200 + update * STEPS, masks)
        for step in steps:
            infos = infos_of(alive=step.pop("acted"), action_mask=step.pop("action_mask", None))
            act_and_record(agent, step, infos)
        reference.learn(rollout, orders)
        state, expected = state_of(agent), reference.state()
        assert_close(state["models"], expected["models"], 5e-5)
        assert state["learning_rate"] == pytest.approx(expected["learning_rate"])


def test_rows_that_do_not_act_are_not_learnt_from(framework):
    """Their network inputs are NaN, which has no effect."""

    def learnt(fill: Any) -> dict[str, Any]:
        agent = make(framework, "gaussian")
        for first in (0, STEPS):
            for step, given in enumerate(masked_steps(agent, first, False)[0]):
                alive = given.pop("acted")
                dead = np.broadcast_to(~alive, given["observations"].shape)
                given["observations"] = np.where(dead, fill, given["observations"])
                given["actions"] = np.where(~alive, fill, given["actions"])
                if step < STEPS - 1:  # the last ones bootstrap waiting transitions
                    given["next_observations"] = np.where(dead & ~given["truncated"], fill, given["next_observations"])
                act_and_record(agent, given, {"alive": alive})
        return state_of(agent)

    state = learnt(NAN)
    assert np.isfinite(state["models"]["policy.network.0.weight"]).all()
    assert same(state, learnt(np.float32(7.0)))


def test_nothing_is_learnt_where_nobody_acts(framework):
    agent = make(framework, "gaussian")
    before = state_of(agent)
    for step in range(STEPS):
        act_and_record(agent, transition(agent, step), {"alive": np.zeros((ENVS, 1), np.bool_)})
    assert same(state_of(agent), before)


def test_orders_are_of_those_who_act(framework):
    agent = make(framework, "gaussian")
    for step in range(STEPS - 1):
        act_and_record(agent, transition(agent, step), {"alive": ACTED[step]})
    # like the last timestep, but without an update
    agent.cfg.rollouts += 1
    act_and_record(agent, transition(agent, STEPS - 1), {"alive": ACTED[STEPS - 1]})
    agent.cfg.rollouts -= 1
    acted = np.flatnonzero(ACTED).tolist()
    for order in np.asarray(copied(agent._draw_orders())):
        assert sorted(order[: len(acted)].tolist()) == acted
        assert order[len(acted) :].tolist() == order[: ACTED.size - len(acted)].tolist()


@pytest.mark.parametrize("space", [Discrete(5, start=2), MULTI_DISCRETE])
def test_only_legal_actions_are_taken(framework, space):
    agent = make(framework, space, num_envs=64)
    rng = np.random.default_rng(0)
    legal = rng.random((64, agent._head_width)) < 0.4
    observations = to_framework(framework, rng.normal(size=(64, WIDTH)).astype(np.float32))
    sizes = [space.n] if isinstance(space, Discrete) else space.nvec.tolist()
    allowed = legal_actions(legal, 64, sizes)
    firsts = np.cumsum([0, *sizes])[:-1] - space.start
    for mask in (legal, to_framework(framework, legal)):
        actions, outputs = agent.act(observations, None, infos={"action_mask": mask}, **CLOCK)
        for taken in (copied(actions), copied(outputs["mean_actions"])):
            assert allowed[np.arange(64)[:, None], taken + firsts].all()
    free = copied(agent.act(observations, None, **CLOCK)[0])
    assert not legal[np.arange(64)[:, None], free + firsts].all()


def test_masks_that_come_later_and_go_again(framework):
    agent = make(framework, Discrete(3))
    reference, orders = Reference(agent, state_of(agent)), fix_orders(agent)
    mask = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1]], np.bool_)
    steps = [transition(agent, step, actions=np.ones((ENVS, 1), np.int64)) for step in range(STEPS)]
    for step, given in enumerate(steps):
        act_and_record(agent, given, {"action_mask": mask} if step in (1, 2) else {})
    rollout = {name: np.stack([step[name] for step in steps]) for name in steps[0]}
    rollout["action_mask"] = np.stack([mask if step in (1, 2) else np.ones_like(mask) for step in range(STEPS)])
    reference.learn(rollout, orders)
    assert_close(state_of(agent)["models"], reference.state()["models"], 5e-5)


@pytest.mark.parametrize("duplicate", [lambda agent: pickle.loads(pickle.dumps(agent)), copy.deepcopy])
@pytest.mark.parametrize("acted_on", [False, True], ids=["recorded", "acted on"])
@pytest.mark.parametrize("at", [2, STEPS + 1])
def test_copies_in_the_midst_of_a_masked_rollout_go_on_bit_for_bit(framework, at, acted_on, duplicate):
    agent, never_copied = (make(framework, MULTI_DISCRETE) for _ in range(2))
    steps = [step for first in (0, STEPS, 2 * STEPS) for step in masked_steps(agent, first, True)[0]]

    def act_on(each: PPO, given: dict[str, Any]) -> list[Any]:
        infos = {"alive": given["acted"], "action_mask": given["action_mask"]}
        observations = to_framework(framework, given["observations"])
        actions, outputs = each.act(observations, None, infos=to_framework(framework, infos), **CLOCK)
        return [copied(actions), copied(outputs["mean_actions"])]

    def store(each: PPO, given: dict[str, Any], taken: list[Any]) -> None:
        arrays = {name: array for name, array in given.items() if name not in ("acted", "action_mask")}
        record(each, arrays | {"actions": taken[0]})

    def go_on(each: PPO, taken: list[Any]) -> Any:
        seed_everything(framework, 2)
        everything: list[Any] = []
        for given in steps[at:]:
            taken = taken or act_on(each, given)
            store(each, given, taken)
            everything, taken = everything + taken, []
        return everything, state_of(each), each.learning_rate

    taken: list[Any] = []
    for each in (never_copied, agent):
        seed_everything(framework, 1)
        for given in steps[:at]:
            store(each, given, act_on(each, given))
        taken = act_on(each, steps[at]) if acted_on else []
    other = duplicate(agent)
    original = go_on(never_copied, taken)
    assert same(go_on(other, taken), original)
    assert same(go_on(agent, taken), original)
    assert not same(original[1]["models"], state_of(make(framework, MULTI_DISCRETE))["models"])


def test_masks_of_the_wrong_shape_are_refused(framework):
    agent = make(framework, Discrete(3))
    observations = to_framework(framework, np.zeros((ENVS, WIDTH), np.float32))
    with pytest.raises(AgentError, match=r"infos\['action_mask'\] has shape \(3, 4\); expected \(3, 3\)"):
        agent.act(observations, None, infos={"action_mask": np.ones((ENVS, 4))}, **CLOCK)
    with pytest.raises(AgentError, match=r"infos\['alive'\] has shape \(2, 1\); expected .* of shape \(3, 1\)"):
        agent.act(observations, None, infos={"alive": np.ones((2, 1), np.bool_)}, **CLOCK)


@pytest.mark.parametrize("rows", [[np.ones(3), np.ones(2), None], [None, 1, None]])
def test_rows_that_are_no_masks_are_refused(rows: list[Any]):
    mask = np.full(3, None, object)
    for row, value in enumerate(rows):
        mask[row] = value
    with pytest.raises(AgentError, match=r"infos\['action_mask'\] .* expected \(3, 3\), or for each row a mask"):
        legal_actions(mask, 3, [3])


def test_an_entry_of_a_single_agent_environment_is_none_of_ours(framework):
    learnt = []
    for infos in ({}, {"alive": np.zeros(ENVS, np.bool_)}, {"alive": {"agent_0": 1}}):
        agent = make(framework, "gaussian")
        fix_orders(agent)
        for step in range(STEPS):
            agent.act(to_framework(framework, np.zeros((ENVS, WIDTH), np.float32)), None, infos=infos, **CLOCK)
            record(agent, transition(agent, step))
        learnt.append(state_of(agent))
    assert same(learnt[1], learnt[0])
    assert same(learnt[2], learnt[0])


def test_legal_actions():
    ragged = np.empty(4, dtype=object)
    ragged[:] = [(np.array([1, 0]), np.array([0, 0, 1])), None, [0, 1, 1, 0, 0], np.array([0, 0, 0, 1, 1])]
    expected = [[1, 0, 0, 0, 1], [1, 1, 1, 1, 1], [0, 1, 1, 0, 0], [1, 1, 0, 1, 1]]
    np.testing.assert_array_equal(legal_actions(ragged, 4, [2, 3]), np.array(expected, np.bool_))
