"""The PPO agent of every framework as a trainer uses it; test_ppo_math.py compares its numbers with NumPy's."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

from tests.support.agents import copied
from tests.support.parity import assert_same
from tests.support.ppo import (
    ACTIONS,
    CLOCK,
    ENVS,
    STEPS,
    WIDTH,
    U,
    act,
    assert_close,
    fix_orders,
    flags,
    integer_dtype,
    learn,
    learn_bandit,
    make,
    record,
    rollout,
    run,
    same,
    seed_everything,
    state_of,
    to_framework,
    transition,
)
from tests.support.ppo_reference import Reference
from workers.frameworks import load_framework

NONE = {"terminated": flags(False, False, False), "truncated": flags(False, False, False)}


@pytest.mark.parametrize(("actions", "width"), [("discrete", 1), ("gaussian", 2)])
def test_actions(framework, actions, width):
    agent = make(framework, actions)
    observations = to_framework(framework, transition(agent, 0)["observations"])
    first, outputs = agent.act(observations, None, **CLOCK)
    kept = copied(first), copied(outputs["mean_actions"])
    second, others = agent.act(observations, None, **CLOCK)
    for array in (first, second, outputs["mean_actions"], others["mean_actions"]):
        assert load_framework(framework).is_array(array)
        values = copied(array)
        assert values.shape == (ENVS, width)
        assert values.dtype == (np.float32 if actions == "gaussian" else integer_dtype(framework))
    assert_same(copied(first), kept[0])  # new arrays: returned ones are not overwritten
    assert_same(copied(outputs["mean_actions"]), kept[1])
    assert_same(copied(others["mean_actions"]), kept[1])
    assert actions == "discrete" or not same(copied(second), kept[0])


def test_a_seed_decides_weights_and_actions(framework):
    runs = []
    for seed in (0, 0, 1):
        agent = make(framework, seed=seed)
        runs.append((state_of(agent), run(agent, range(STEPS + 1)), state_of(agent)))
    assert_same(runs[1], runs[0])
    assert not any(same(*pair) for pair in zip(runs[2], runs[0], strict=True))
    assert not same(*[state_of(make(framework, seed=None)) for _ in range(2)])


def test_after_construction_the_generator_of_numpy_is_left_alone(framework):
    agent = make(framework)
    np.random.seed(3)
    run(agent, range(2 * STEPS))
    pickle.loads(pickle.dumps(agent))
    drawn = np.random.random()
    np.random.seed(3)
    assert drawn == np.random.random()


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float64"])
def test_the_dtype_of_inputs_does_not_matter(framework, dtype):
    given = {"observations": np.eye(WIDTH)[[0, 3, 3]], "next_observations": np.eye(WIDTH)[[1, 2, 0]]}
    results = []
    for kind in (dtype, "float32"):
        agent = make(framework)
        arrays = {name: array.astype(kind) for name, array in given.items()}
        results.append((act(agent, arrays["observations"]), learn(agent, range(STEPS + 1), **arrays)))
    assert_same(results[1], results[0])


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("actions", list(ACTIONS))
def test_no_given_array_is_changed_or_kept(framework, actions, asymmetric):
    states = []
    for overwritten in (False, True):
        agent = make(framework, actions, asymmetric=asymmetric)
        fix_orders(agent)
        for step in range(2 * STEPS + 1):
            given = transition(agent, step)
            arrays = to_framework(framework, given)
            agent.act(arrays["observations"], None, **CLOCK)
            agent.record_transition(**{"states": None, "next_states": None} | arrays, infos={}, **CLOCK)
            assert_same(copied(arrays), copied(to_framework(framework, given)))
            for array in arrays.values():
                if overwritten and hasattr(array, "zero_"):  # JAX arrays are immutable
                    array.zero_()
            if step == 2 * STEPS:
                agent.init()  # cuts the rollout, using the next observations
            agent.post_interaction(**CLOCK)
        states.append(learn(agent, range(2 * STEPS + 1, 3 * STEPS)))
    assert_same(states[1], states[0])


def test_truncation_bootstraps_from_the_final_observation(framework):
    ends = {
        "terminated": np.stack([flags(False, False, True)] + 3 * [flags(False, False, False)]),
        "truncated": np.stack([flags(True, False, True)] + 3 * [flags(False, False, False)]),
    }
    states = []
    for how in ("truncated", "terminated with the value as a reward", "terminated"):
        agent = make(framework)
        reference, orders = Reference(agent, state_of(agent)), fix_orders(agent)
        learn(agent, range(STEPS))  # for non-trivial statistics
        reference.learn(rollout(agent, range(STEPS)), orders)
        for row, step in enumerate(range(STEPS, 2 * STEPS)):
            given = transition(agent, step, **{name: values[row] for name, values in ends.items()})
            if how != "truncated":
                if how != "terminated":
                    values = 0.99 * reference.values(given["next_observations"][None])[0][:, None]
                    given["rewards"] = given["rewards"] + (values * (given["truncated"] & ~given["terminated"]))
                    given["rewards"] = given["rewards"].astype(np.float32)
                given |= {"terminated": given["terminated"] | given["truncated"], "truncated": flags(*3 * [False])}
            record(agent, given)
        states.append(state_of(agent)["models"])
    assert_close(states[0], states[1], 1e-5)
    with pytest.raises(AssertionError):
        assert_close(states[0], states[2], 1e-2)


def test_evaluation_within_a_rollout_cuts_it_like_a_truncation(framework):
    ended = {"terminated": flags(True, False, False), "truncated": flags(False, False, False)}
    cut = ended | {"truncated": flags(False, True, True)}
    states = []
    for evaluations, first in ((1, ended), (2, ended), (0, cut), (0, ended)):
        agent = make(framework, asymmetric=True)
        record(agent, transition(agent, 0, **first))
        for _ in range(evaluations):  # the second one finds the rollout already cut
            agent.enable_training_mode(False)
            run(agent, range(50, 52), **NONE)
            agent.enable_training_mode(True)
            agent.init()
        states.append(learn(agent, range(1, STEPS), **NONE))
    assert_same(states[1], states[0])
    assert_close(states[2], states[0], 1e-5)
    with pytest.raises(AssertionError):
        assert_close(states[3]["models"], states[0]["models"], 1e-3)


def test_a_copy_knows_what_followed_its_last_transition(framework):
    agent = make(framework)
    record(agent, transition(agent, 0, **NONE))
    copies = [pickle.loads(pickle.dumps(agent)) for _ in range(2)]
    for each in (agent, copies[0]):
        each.init()
    cut, copied, uncut = (learn(each, range(1, STEPS), **NONE) for each in (agent, *copies))
    assert_same(copied, cut)
    assert not same(uncut, cut)


def test_evaluation_learns_nothing(framework):
    agent = make(framework)
    run(agent, range(STEPS))
    state = state_of(agent)
    agent.enable_training_mode(False)
    agent.tracked.drain()
    run(agent, range(100, 100 + 3 * STEPS))
    assert_same(state_of(agent), state)
    assert agent._recorded == 0
    assert agent.tracked.drain() == {}
    agent.enable_training_mode(True)
    run(agent, range(STEPS))
    assert not same(state_of(agent), state)


def test_evaluation_takes_any_number_of_rows(framework):
    agent = make(framework)
    agent.enable_training_mode(False)
    observations = transition(agent, 0)["observations"]
    _, mean_actions = act(agent, observations)
    for rows in (1, 2):
        assert_close(act(agent, observations[:rows])[1], mean_actions[:rows], 100 * U)


def test_learns_after_every_rollout_and_not_before(framework):
    agent = make(framework)
    for start in range(0, 3 * STEPS, STEPS):
        state = state_of(agent)
        run(agent, range(start, start + STEPS - 1))
        assert_same(state_of(agent), state)
        agent.init()  # as by another trainer: nothing is lost
        run(agent, range(start + STEPS - 1, start + STEPS))
        assert not same(state_of(agent), state)
        tracked = agent.tracked.drain()
        assert tracked["Learning / Learning rate"] == agent.learning_rate
        assert {"Loss / Policy loss", "Loss / Value loss", "Policy / KL divergence"} <= set(tracked)
        assert all(np.isfinite(value) for value in tracked.values())


def test_statistics_are_frozen_in_a_rollout(framework):
    agent = make(framework)
    for step in range(2 * STEPS):
        assert state_of(agent)["models"]["normalizers.observations.count"] == step // STEPS * STEPS * ENVS
        record(agent, transition(agent, step))


@pytest.mark.parametrize(("learning_rate", "factor"), [(1e-6, 1.5), (0.5, 1 / 1.5)], ids=["little", "much"])
def test_learning_rate_follows_the_kl_divergence(framework, learning_rate, factor):
    agent = make(framework, learning_rate=learning_rate)
    run(agent, range(STEPS))
    assert agent.learning_rate == pytest.approx(learning_rate * factor**agent.cfg.learning_epochs, rel=1e-6)


def test_orders_are_random_permutations_of_the_rollout(framework):
    agent = make(framework)
    orders = np.concatenate([copied(agent._draw_orders()) for _ in range(5)])
    assert orders.shape == (10, STEPS * ENVS)
    assert (np.sort(orders) == np.arange(STEPS * ENVS)).all()
    assert len({*map(tuple, orders.tolist()), tuple(range(STEPS * ENVS))}) == 11


@pytest.mark.parametrize("duplicate", [lambda agent: pickle.loads(pickle.dumps(agent)), copy.deepcopy])
@pytest.mark.parametrize("at", [0, 1, STEPS, 2 * STEPS - 1])
@pytest.mark.parametrize(("actions", "asymmetric"), [("discrete", True), ("gaussian", False)])
def test_copies_go_on_bit_for_bit(framework, duplicate, at, actions, asymmetric):
    agent, never_copied = (make(framework, actions, asymmetric=asymmetric) for _ in range(2))
    results: list[Any] = []
    for each in (never_copied, agent):
        seed_everything(framework, 1)
        run(each, range(at))
    agent.note = "kept"  # type: ignore[attr-defined]
    other: Any = duplicate(agent)
    assert (other.note, other.training, other.tracked.drain()) == ("kept", True, agent.tracked.drain())
    for each in (never_copied, agent, other):
        seed_everything(framework, 2)
        results.append((run(each, range(at, at + 2 * STEPS + 1)), state_of(each), each.learning_rate))
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])
    assert agent.learning_rate != agent.cfg.learning_rate


def test_tracked_data_is_bounded(framework):
    agent = make(framework)
    for value in range(1000):
        agent.track_data("a", value)
    assert agent.tracked.drain() == {"a": 499.5}


def test_smallest_rollout_stays_finite(framework):
    agent = make(framework, num_envs=1, rollouts=1, mini_batches=1, hidden_sizes=())
    run(agent, range(5))
    assert all(np.isfinite(value).all() for value in state_of(agent)["models"].values())


@pytest.mark.parametrize("actions", list(ACTIONS))
def test_learns_a_bandit_that_depends_on_the_observation(framework, actions):
    before, after = learn_bandit(framework, actions)
    assert before < 0.6
    assert after > (0.85 if actions == "gaussian" else 0.98)
