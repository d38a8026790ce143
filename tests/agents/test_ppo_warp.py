"""Warp-specific behaviour of the PPO agent: graphs, reused memory, layouts and dtypes of arrays."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import warp as wp
from gymnasium.spaces import MultiDiscrete

from tests.support.ppo import (
    BOUNDED,
    CLOCK,
    ENVS,
    STEPS,
    WIDTH,
    act,
    assert_close,
    fix_orders,
    make,
    record,
    rollout,
    run,
    same,
    state_of,
    transition,
)
from tests.support.ppo_reference import Reference
from workers.agents.warp.array_trees import unchanged
from workers.agents.warp.normalizers import Normalizer

LARGE = MultiDiscrete([3, 2, 4])  # a head wider than the hidden layers


@pytest.mark.parametrize("actions", ["gaussian", BOUNDED, LARGE], ids=["gaussian", "bounded", "multi-discrete"])
def test_graphs_do_what_their_launches_do(actions):
    captured, launched = (make("warp", actions, hidden_sizes=(8, 6), mini_batches=5) for _ in range(2))
    launched._run = lambda launches, rows: launches(rows)  # type: ignore[attr-defined]
    assert same(run(captured, range(4 * STEPS)), run(launched, range(4 * STEPS)))
    assert same(state_of(captured), state_of(launched))
    graphs = {key: graph for key, (_, graph) in captured._graphs.items()}  # type: ignore[attr-defined]
    assert {*graphs} == {("_act", ENVS), ("_evaluate_next", ENVS), ("_step", 3), ("_step", 2)}
    assert all(graphs.values())


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_batches_of_as_many_rows_do_not_overwrite_each_other(asymmetric, normalize):
    cfg = {"rollouts": 1, "mini_batches": 1, "normalize_observations": normalize, "normalize_values": normalize}
    agent = make("warp", asymmetric=asymmetric, num_envs=6, **cfg)
    reference = Reference(agent, state_of(agent))
    for step in range(3):
        orders = fix_orders(agent)
        record(agent, transition(agent, step))
        reference.learn(rollout(agent, range(step, step + 1)), orders)
    assert_close(state_of(agent)["models"], reference.state()["models"], 1e-4)


def test_actions_are_not_overwritten():
    agent = make("warp")
    agent.enable_training_mode(False)
    observations = wp.array(transition(agent, 0)["observations"])
    results = [agent.act(observations, None, **CLOCK) for _ in range(3)]
    first = [(actions.numpy().copy(), outputs["mean_actions"].numpy().copy()) for actions, outputs in results]
    agent.act(wp.zeros_like(observations), None, **CLOCK)
    for (actions, outputs), (sampled, mean) in zip(results, first, strict=True):
        assert same(actions.numpy(), sampled)
        assert same(outputs["mean_actions"].numpy(), mean)
        assert not same(actions.numpy(), mean)
        assert not outputs["mean_actions"].requires_grad


def test_rows_are_acted_on_alike_however_many_there_are():
    agent = make("warp", LARGE)
    agent.enable_training_mode(False)
    observations = np.random.default_rng(0).normal(size=(70, WIDTH)).astype(np.float32)  # more rows than a tile
    expected = act(agent, observations)[1]
    for rows in (0, 1, 7, 1, 1):
        assert same(act(agent, observations[:rows])[1], expected[:rows])


def test_views_and_flags_of_integers_are_taken():
    agent, other = make("warp"), make("warp")
    for step in range(STEPS):
        given = transition(agent, step)
        record(agent, given)
        views = {}
        for name, array in given.items():
            flag = array.dtype == np.bool_
            wide = np.zeros((2 * len(array), array.shape[1] + 3), np.int8 if flag else array.dtype)
            wide[::2, 1:-2] = array
            views[name] = wp.array(wide)[::2, 1:-2]
            assert not views[name].is_contiguous
        record(other, views)
    assert same(state_of(agent), state_of(other))


def test_a_state_is_taken_over_by_another_agent():
    agent, other = make("warp", seed=1), make("warp", seed=2)
    run(agent, range(STEPS + 2))
    run(other, range(2 * STEPS + 1))
    other.note = "dropped"  # type: ignore[attr-defined]
    other.__setstate__(pickle.loads(pickle.dumps(agent.__getstate__())))  # type: ignore[attr-defined]
    assert not hasattr(other, "note")
    rest = range(STEPS + 2, 3 * STEPS)
    assert same(run(agent, rest), run(other, rest))
    assert same(state_of(agent), state_of(other))


def test_noise_is_normal_and_independent():
    agent = make("warp")
    drawn = []
    for _ in range(2000):
        actions, mean = act(agent, np.zeros((ENVS, WIDTH), np.float32))
        drawn.append((actions - mean).ravel())
    noise = np.array(drawn)
    covariance = np.cov(np.concatenate([noise[1:], noise[:-1]], 1).T)
    np.testing.assert_allclose(covariance, np.eye(len(covariance)), atol=0.12)  # 5 standard errors
    np.testing.assert_allclose(noise.mean(0), 0.0, atol=0.12)
    np.testing.assert_allclose((noise**4).mean(), 3.0, atol=0.5)


def test_what_is_not_a_number_is_not_hidden():
    agent = make("warp")
    observations = transition(agent, 0)["observations"]
    observations[1, 2] = np.nan
    assert np.isnan(act(agent, observations)[1]).any(1).tolist() == [False, True, False]
    normalizer = Normalizer(1, 10.0)
    values = wp.array(np.array([[np.nan], [np.inf], [-11.0], [3.0]], np.float32))
    np.testing.assert_array_equal(normalizer(values).numpy()[:, 0], [np.nan, 10.0, -10.0, 3.0])


def test_arrays_are_unchanged_after_an_error():
    array = wp.array([1.0, 2.0], dtype=float)

    def fail() -> None:
        with unchanged(array):
            array.fill_(3.0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    np.testing.assert_array_equal(array.numpy(), [1.0, 2.0])
