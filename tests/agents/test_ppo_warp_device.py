"""What the Warp PPO does on a GPU, done on the CPU: tiles, parts of sums, orders, and few reads by the host."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import warp as wp

from tests.support.ppo import (
    CLOCK,
    ENVS,
    MULTI_DISCRETE,
    STEPS,
    assert_close,
    fix_orders,
    flags,
    make,
    record,
    rollout,
    run,
    same,
    state_of,
    to_framework,
    transition,
)
from tests.support.ppo_reference import Reference
from workers.agents.learning_rate import adapt_learning_rate
from workers.agents.warp import kernels, losses
from workers.agents.warp.orders import draw_orders

SAMPLES = STEPS * ENVS


@pytest.fixture
def leave_host(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that makes agents treat the CPU as a GPU."""
    return lambda: monkeypatch.setattr(kernels, "on_host", lambda device: False)


@pytest.mark.parametrize("actions", ["gaussian", MULTI_DISCRETE], ids=["gaussian", "multi-discrete"])
def test_it_learns_as_the_reference(actions, leave_host, monkeypatch):
    leave_host()
    monkeypatch.setattr(kernels, "PART", 32)  # of the 40 rows of a mini-batch
    cfg: dict[str, Any] = {"hidden_sizes": (70, 6), "entropy_loss_scale": 0.05, "value_clip": 0.2}  # wider than a tile
    agent = make("warp", actions, num_envs=20, asymmetric=True, **cfg)
    reference = Reference(agent, state_of(agent))
    for start in range(0, 3 * STEPS, STEPS):
        steps, orders = range(start, start + STEPS), fix_orders(agent)
        for step in steps:
            record(agent, transition(agent, step))
        reference.learn(rollout(agent, steps), orders)
    expected, given = reference.state(), state_of(agent)
    assert_close(given["models"], expected["models"], 1e-4)
    assert_close(given["optimizer"], expected["optimizer"], 1e-3)
    assert given["learning_rate"] == pytest.approx(expected["learning_rate"], rel=1e-12)


def test_values_after_every_step_change_nothing_where_no_episode_was_cut(leave_host, monkeypatch):
    agent, other = make("warp"), make("warp")
    masks: list[Any] = []
    add = type(other)._add_next_values  # type: ignore[attr-defined]

    def add_and_note(self: Any, row: int, mask: Any) -> None:
        masks.append(mask.numpy().copy())
        add(self, row, mask)

    for each in (agent, other):
        fix_orders(each)
    taken = run(agent, range(3 * STEPS - 1))
    leave_host()
    monkeypatch.setattr(type(other), "_add_next_values", add_and_note)
    assert same(run(other, range(3 * STEPS - 1)), taken)
    assert same(state_of(other), state_of(agent))
    assert same(other.snapshot()["rollout"], agent.snapshot()["rollout"])
    cut = [mask.any() for mask in masks]
    assert len(cut) == 3 * STEPS - 1
    assert any(cut)
    assert not all(cut)


def test_the_device_is_read_once_an_update(leave_host, monkeypatch):
    leave_host()
    agent = make("warp", mini_batches=5)
    reads: list[Any] = []

    own = wp.array.numpy

    def read(self: Any) -> Any:
        reads.append(self)
        return own(self)

    monkeypatch.setattr(wp.array, "numpy", read)
    arrays = [to_framework("warp", transition(agent, step)) for step in range(STEPS)]
    for _ in range(3):
        for given in arrays:
            agent.act(given["observations"], None, **CLOCK)
            agent.record_transition(states=None, next_states=None, infos={}, **given, **CLOCK)
            assert not reads
        agent.post_interaction(**CLOCK)
        assert len(reads) == 1
        reads.clear()


def test_a_copy_draws_the_same_orders(leave_host):
    leave_host()
    agent = make("warp")
    run(agent, range(STEPS + 1))
    other = pickle.loads(pickle.dumps(agent))
    rest = range(STEPS + 1, 3 * STEPS)
    assert same(run(agent, rest), run(other, rest))
    assert same(state_of(agent), state_of(other))


def test_only_rows_that_acted_are_drawn(leave_host):
    leave_host()
    agent = make("warp")
    alive = flags(True, False, True)
    for step in range(STEPS - 1):
        agent.act(*_observations(agent, step), infos={"alive": wp.array(alive)}, **CLOCK)
        record(agent, transition(agent, step))
    agent.act(*_observations(agent, STEPS), **CLOCK)
    given = to_framework("warp", transition(agent, STEPS - 1))
    agent.record_transition(states=None, next_states=None, infos={}, **given, **CLOCK)
    acted = np.flatnonzero([[True, False, True]] * (STEPS - 1) + [[True] * 3])
    for order in agent._draw_orders().numpy():
        assert sorted(order[: acted.size]) == acted.tolist()
        assert same(order[acted.size :], order[: SAMPLES - acted.size])


def _observations(agent: Any, step: int) -> tuple[Any, None]:
    return wp.array(transition(agent, step)["observations"]), None


def test_orders_are_independent_uniform_permutations():
    epochs, count, draws = 3, 5, 2000
    rows, noise = (wp.array(values, dtype=wp.int32) for values in (np.arange(count), [7, 0]))
    scratch = kernels.Scratch()
    drawn = np.concatenate([draw_orders(rows, noise, epochs, count, scratch).numpy().copy() for _ in range(draws)])
    assert noise.numpy().tolist() == [7, draws * epochs * count]
    assert (np.sort(drawn, 1) == np.arange(count)).all()
    places = np.array([np.bincount(column, minlength=count) for column in drawn.T]) / len(drawn)
    np.testing.assert_allclose(places, 1 / count, atol=0.03)  # 5 standard errors
    pairs = drawn.reshape(draws, epochs, count)
    np.testing.assert_allclose((pairs[:, 0] == pairs[:, 1]).mean(0), 1 / count, atol=0.05)
    np.testing.assert_allclose((pairs[1:, 0] == pairs[:-1, 2]).mean(0), 1 / count, atol=0.05)


@pytest.mark.parametrize("rate", [3e-4, 1.2e-6, 9e-3])
@pytest.mark.parametrize("kl", [0.0, 0.0049, 0.005, 0.02, 0.0201, np.nan])
@pytest.mark.parametrize("target", [0.0, 0.01])
def test_the_device_adapts_the_learning_rate_as_the_host(rate, kl, target):
    totals = wp.array([kl * SAMPLES, 1.0, 2.0, 3.0], dtype=wp.float64)
    rates, report = wp.array([rate], dtype=wp.float64), wp.zeros((2, 7), dtype=wp.float64)
    log_std = wp.array([-0.5, 0.25], dtype=wp.float32)
    kernels.launch(losses.end_epoch, 1, [1, SAMPLES, target, log_std], [totals, rates, report])
    mean = kl * SAMPLES / SAMPLES
    expected = adapt_learning_rate(rate, mean, target, np.where) if target else rate
    assert same(report.numpy(), np.array([[0.0] * 7, [mean, 1.0, 2.0, 3.0, expected, -0.5, 0.25]]))
    assert rates.numpy().tolist() == [expected]
    assert totals.numpy().tolist() == [0.0] * 4
