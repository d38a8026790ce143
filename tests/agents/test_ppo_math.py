"""The arithmetic of PPO in every framework, against NumPy's float64."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest

from tests.support.agents import copied
from tests.support.ppo import (
    ENVS,
    MULTI_DISCRETE,
    STEPS,
    WIDTH,
    U,
    act,
    assert_close,
    fix_orders,
    learn,
    make,
    record,
    rollout,
    state_of,
    to_framework,
    transition,
)
from tests.support.ppo_reference import Reference, forward
from workers.agents.base import discrete_components
from workers.agents.learning_rate import adapt_learning_rate
from workers.agents.ppo import PPO

CFG: dict[str, Any] = {
    "learning_epochs": 3,
    "learning_rate": 0.01,
    "entropy_loss_scale": 0.05,
    "value_loss_scale": 0.7,
    "value_clip": 0.2,
    "hidden_sizes": (8, 6),
    "initial_log_std": -0.5,
    "kl_threshold": 0.02,
}

LAYERS = WIDTH + sum(CFG["hidden_sizes"]) + 12
"""Number of roundings in a network: those of the sums in three layers, and of the activations."""

ONCE = {"learning_epochs": 1, "mini_batches": 1, "kl_threshold": None}


def compute_gae(framework: str, arrays: dict[str, Any], discount_factor: float, gae_lambda: float) -> Any:
    """Return the advantages of the framework's function, ``(timesteps, num_envs)``, for arrays of that shape."""
    arrays = {"acted": np.ones(arrays["rewards"].shape, np.bool_)} | arrays
    shaped = to_framework(framework, {name: array[..., None] for name, array in arrays.items()})
    function = importlib.import_module(f"workers.agents.{framework}.losses").compute_gae
    return copied(function(**shaped, discount_factor=discount_factor, gae_lambda=gae_lambda))[..., 0]


def test_gae_by_hand(framework):
    # One environment, four timesteps; the episode ends after the second (its truncation is already in the reward).
    a3 = 4.0 + 0.5 * 10.0 - 2.0
    a2 = 3.0 + 0.5 * 2.0 - 1.5 + 0.4 * a3
    a1 = 2.0 - 1.0  # cut: excludes the next value and the next advantage
    a0 = 1.0 + 0.5 * 1.0 - 0.5 + 0.4 * a1
    assert (a0, a1, a2, a3) == pytest.approx((1.4, 1.0, 5.3, 7.0))
    arrays = {
        "rewards": np.array([[1.0], [2.0], [3.0], [4.0]], np.float32),
        "values": np.array([[0.5], [1.0], [1.5], [2.0]], np.float32),
        "last_values": np.array([10.0], np.float32),
        "continues": np.array([[True], [False], [True], [True]]),
    }
    advantages = compute_gae(framework, arrays, discount_factor=0.5, gae_lambda=0.8)
    np.testing.assert_allclose(advantages[:, 0], [a0, a1, a2, a3], rtol=1e-6)


def test_gae_against_the_definition(framework):
    rng = np.random.default_rng(0)
    steps, envs, gamma, lam = 9, 5, 0.97, 0.9
    rewards, values = rng.normal(size=(2, steps, envs)).astype(np.float32)
    last, ended = rng.normal(size=envs).astype(np.float32), rng.random((steps, envs)) < 0.3
    expected = np.zeros((steps, envs))
    for n in range(envs):
        for t in range(steps):  # sum over the future, up to the end of the episode
            weight = 1.0
            for k in range(t, steps):
                following = last[n] if k == steps - 1 else values[k + 1, n]
                expected[t, n] += weight * (rewards[k, n] + gamma * following * (not ended[k, n]) - values[k, n])
                if ended[k, n]:
                    break
                weight *= gamma * lam
    arrays = {"rewards": rewards, "values": values, "last_values": last, "continues": ~ended}
    assert_close(compute_gae(framework, arrays, gamma, lam), expected, 6 * steps * U)


def assert_tracked(agent: PPO, expected: dict[str, float], condition: float = 1.0) -> None:
    given = agent.tracked.drain()
    assert given.keys() == expected.keys()
    for tag, value in expected.items():  # the policy loss is a difference of numbers near 1
        assert given[tag] == pytest.approx(value, rel=5e-5, abs=1e-6 * condition), tag


def condition_of(reference: Reference, raw: Any) -> float:
    """Return the factor by which absolute rounding errors in the policy's head increase the error of the gradients.

    An output of the head, a sum of ``w x``, has an error of up to ``sum(|w| |x|)`` roundings. So has the logarithm of
    every probability, which scales the gradients (for a Gaussian, in units of its standard deviation).
    """
    observations = reference.normal("observations", raw.reshape(-1, WIDTH))
    *_, inputs, _ = forward(reference.weights, "policy.network", reference.cfg.activation, observations)
    head = max(name for name in reference.weights if name.startswith("policy.network") and name.endswith("weight"))
    std = 1.0 if reference.components else math.exp(reference.cfg.initial_log_std)
    return 1.0 + float((np.abs(inputs) @ np.abs(reference.weights[head]).T).max()) / std


on_all_activations = pytest.mark.parametrize(
    ("actions", "cfg"),
    [
        ("gaussian", {"activation": "tanh"}),
        ("discrete", {"activation": "relu", "grad_norm_clip": 0.0}),
        (MULTI_DISCRETE, {"activation": "elu", "entropy_loss_scale": 0.0}),
        (MULTI_DISCRETE, {"hidden_sizes": (), "value_clip": 0.0, "kl_threshold": 0.0}),
    ],
    ids=["tanh", "relu", "elu", "linear"],
)


@on_all_activations
@pytest.mark.parametrize("scale", [1.0, 1000.0], ids=["uncertain", "certain"])
def test_losses_and_gradients_of_one_mini_batch(framework, actions, cfg, scale):
    agent = make(framework, actions, **CFG | ONCE | cfg)
    state = state_of(agent)
    head = max(name for name in state["models"] if name.startswith("policy.network") and name.endswith("weight"))
    state["models"][head] *= np.float32(scale)
    agent.load_state_dict(to_framework(framework, state))
    reference, orders = Reference(agent, state), fix_orders(agent)
    for step in range(STEPS):
        record(agent, transition(agent, step))
    given = rollout(agent, range(STEPS))
    condition = condition_of(reference, given["observations"])
    assert 1.0 < condition < 1.2 if scale == 1.0 else 10.0 < condition < 100.0
    assert_tracked(agent, reference.learn(given, orders), condition)
    optimizer, expected = state_of(agent)["optimizer"], reference.state()["optimizer"]
    # the sums of three layers, forward and backward, then the mean over all samples, whose terms are up to about 4
    # times as large because they partly cancel
    roundings = 4 * (6 * max(WIDTH, *CFG["hidden_sizes"]) + STEPS * ENVS) * condition
    assert_close(optimizer["exp_avg"], expected["exp_avg"], roundings * U)  # a tenth of the clipped gradient
    assert_close(optimizer["exp_avg_sq"], expected["exp_avg_sq"], 2 * roundings * U)  # a thousandth of its square


@on_all_activations
def test_first_ratio_is_one(framework, actions, cfg):
    agent = make(framework, actions, **CFG | ONCE | cfg)
    for start in range(0, 3 * STEPS, STEPS):  # non-trivial statistics from the second rollout on
        learn(agent, range(start, start + STEPS))
        assert abs(agent.tracked.drain()["Policy / KL divergence"]) < 1e-10


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalised"])
@pytest.mark.parametrize("asymmetric", [False, True], ids=["observations", "states"])
@pytest.mark.parametrize(
    ("actions", "mini_batches"),
    [("gaussian", 5), ("discrete", 7), (MULTI_DISCRETE, 7)],
    ids=["gaussian", "discrete", "multi-discrete"],
)
def test_whole_updates_against_the_reference(framework, actions, asymmetric, normalize, mini_batches):
    if framework == "jax" and asymmetric != normalize:
        pytest.skip("each case takes seconds to compile; the other cases cover both options")
    cfg = {"normalize_observations": normalize, "normalize_values": normalize, "grad_norm_clip": 0.5 * normalize}
    agent = make(framework, actions, asymmetric=asymmetric, **CFG | cfg | {"mini_batches": mini_batches})
    reference = Reference(agent, state_of(agent))
    for update in range(3):
        orders, steps = fix_orders(agent, seed=update), range(STEPS * update, STEPS * update + STEPS)
        for step in steps:
            record(agent, transition(agent, step))
        assert_tracked(agent, reference.learn(rollout(agent, steps), orders))
        state, expected = state_of(agent), reference.state()
        assert_close(state["models"], expected["models"], 5e-5)  # JAX computes Adam's bias correction in float32
        assert state["optimizer"]["step"] == reference.steps
        assert_close(state["optimizer"]["exp_avg_sq"], reference.exp_avg_sq, 1e-4)
        assert state["learning_rate"] == pytest.approx(expected["learning_rate"])


@on_all_activations
def test_mean_actions_are_mean_and_argmax(framework, actions, cfg):
    agent = make(framework, actions, **CFG | ONCE | cfg)
    observations = np.random.default_rng(0).normal(0.0, 3.0, (ENVS, WIDTH)).astype(np.float32)
    head = forward(state_of(agent)["models"], "policy.network", agent.cfg.activation, observations)[-1]
    components = discrete_components(agent.action_space)
    if components is None:
        assert_close(act(agent, observations)[1], head, LAYERS * U)
        return
    parts = np.split(head, np.cumsum([len(values) for values in components])[:-1], 1)
    expected = [part.argmax(1) + values.start for part, values in zip(parts, components, strict=True)]
    assert act(agent, observations)[1].tolist() == np.stack(expected, 1).tolist()


def test_initialization_is_orthogonal(framework):
    agent = make(framework, **CFG | ONCE)
    values, root = state_of(agent)["models"], math.sqrt(2.0)
    gains = {"policy.network.0": root, "policy.network.2": root, "policy.network.4": 0.01}
    gains |= {"value.0": root, "value.2": root, "value.4": 1.0}
    for name, gain in gains.items():
        weight = values[f"{name}.weight"] / gain
        rows = min(weight.shape)
        product = weight @ weight.T if rows == len(weight) else weight.T @ weight
        np.testing.assert_allclose(product, np.eye(rows), atol=1e-5)
        assert (values[f"{name}.bias"] == 0.0).all()
    assert (values["policy.log_std"] == -0.5).all()


def test_statistics_of_data_far_from_zero(framework):
    agent = make(framework)
    seen = []
    for step in range(3 * STEPS):
        rng = np.random.default_rng(step)
        observations = rng.normal(1000.0 * (step // STEPS), 1.0 + step, (ENVS, WIDTH)).astype(np.float32)
        record(agent, transition(agent, step, observations=observations))
        seen.append(observations.astype(np.float64))
    values, everything = state_of(agent)["models"], np.concatenate(seen)
    assert values["normalizers.observations.count"] == len(everything)
    assert_close(values["normalizers.observations.mean"], everything.mean(0), 3 * STEPS * U)
    assert_close(values["normalizers.observations.variance"], everything.var(0), 6 * STEPS * U)


def test_inputs_are_normalised_and_limited(framework):
    agent = make(framework)
    learn(agent, range(STEPS))
    observations = transition(agent, 99)["observations"] * np.array([[1.0], [1.0], [1e6]], np.float32)
    values = state_of(agent)["models"]
    mean, variance = (values[f"normalizers.observations.{name}"] for name in ("mean", "variance"))
    inputs = np.clip((observations - mean) / np.sqrt(variance + 1e-8), -10.0, 10.0)
    assert (np.abs(inputs[2]) == 10.0).all()
    expected = forward(values, "policy.network", "tanh", inputs)[-1]
    assert_close(act(agent, observations)[1], expected, 2 * LAYERS * U)


@pytest.mark.parametrize(
    ("kl", "expected"), [(0.021, 1e-3 / 1.5), (0.02, 1e-3), (0.01, 1e-3), (0.005, 1e-3), (0.0049, 1e-3 * 1.5)]
)
def test_kl_rule(kl, expected):
    assert adapt_learning_rate(1e-3, kl, 0.01, np.where) == pytest.approx(expected)


def test_kl_rule_is_bounded():
    assert adapt_learning_rate(1.1e-6, 1.0, 0.01, np.where) == 1e-6
    assert adapt_learning_rate(9e-3, 0.0, 0.01, np.where) == 1e-2
