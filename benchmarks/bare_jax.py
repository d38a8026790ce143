"""PPO as one compiled function in JAX: a bound for `gpu.py`, in the shape of purejaxrl.

Rollout, advantages and update of one agent are one call, with the environments in it. Nothing is checked, returned or
logged.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jax import numpy as jnp

DISCOUNT, LAMBDA, CLIP = 0.99, 0.95, 0.2


def initial(rng: np.random.Generator, sizes: tuple[int, ...]) -> Any:
    """Return the layers of a perceptron."""
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers.append((np.float32(rng.normal(size=(inputs, outputs)) / np.sqrt(inputs)), np.zeros(outputs, np.float32)))
    return layers


def apply(layers: Any, inputs: Any) -> Any:
    """Return the outputs of a perceptron with tanh."""
    *hidden, (weight, bias) = layers
    for one, other in hidden:
        inputs = jnp.tanh(inputs @ one + other)
    return inputs @ weight + bias


def log_prob(weights: Any, observations: Any, actions: Any) -> Any:
    """Return the log-probability density of actions, up to a constant."""
    scores = (actions - apply(weights["policy"], observations)) * jnp.exp(-weights["log_std"])
    return -0.5 * jnp.square(scores).sum(1) - weights["log_std"].sum()


def make_iteration(env: Any, *, rollouts: int, epochs: int, mini_batches: int) -> tuple[Any, Callable[[Any], Any]]:
    """Return a first carry, and a function that does a rollout and an update, and returns the next carry.

    Args:
        env: A `tests.gpu.linear.JaxLinear`.
        rollouts: Timesteps of a rollout.
        epochs: Passes over it.
        mini_batches: Mini-batches of each pass.
    """
    adam = optax.adam(3e-4)
    rng = np.random.default_rng(0)
    observations, actions = env.observation_space.shape[0], env.action_space.shape[0]
    weights = {
        "policy": initial(rng, (observations, 64, 64, actions)),
        "value": initial(rng, (observations, 64, 64, 1)),
        "log_std": np.zeros(actions, np.float32),
    }
    weights = jax.tree.map(jnp.asarray, weights)
    env.reset(seed=0)
    carry = weights, adam.init(weights), env._key, env._state, env._steps, jax.random.key(1)

    def act(carry: Any, _: Any) -> Any:
        weights, key, state, steps, noise = carry
        noise, now = jax.random.split(noise)
        mean = apply(weights["policy"], state)
        action = mean + jnp.exp(weights["log_std"]) * jax.random.normal(now, mean.shape)
        key, following, steps, (_, reward, terminated, truncated, infos) = env._advance(key, state, steps, action)
        value, after = apply(weights["value"], state), apply(weights["value"], infos["final_obs"])
        reward = reward + DISCOUNT * after * (truncated & ~terminated)
        sample = state, action, log_prob(weights, state, action), value[:, 0], reward[:, 0]
        return (weights, key, following, steps, noise), (*sample, (terminated | truncated)[:, 0])

    def advantage(later: Any, step: Any) -> Any:
        gae, following = later
        value, reward, ended = step
        gae = reward + DISCOUNT * following * ~ended - value + DISCOUNT * LAMBDA * gae * ~ended
        return (gae, value), gae

    def loss(weights: Any, batch: Any) -> Any:
        state, action, old, _, gae, target = batch
        ratio = jnp.exp(log_prob(weights, state, action) - old)
        gae = (gae - gae.mean()) / (gae.std() + 1e-8)
        policy = -jnp.minimum(ratio * gae, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * gae).mean()
        return policy + jnp.square(apply(weights["value"], state)[:, 0] - target).mean()

    def step(carry: Any, batch: Any) -> Any:
        weights, moments = carry
        updates, moments = adam.update(jax.grad(loss)(weights, batch), moments)
        return (optax.apply_updates(weights, updates), moments), None

    @partial(jax.jit, donate_argnums=0)
    def iteration(carry: Any) -> Any:
        weights, moments, key, state, steps, noise = carry
        (_, key, state, steps, noise), samples = jax.lax.scan(act, (weights, key, state, steps, noise), None, rollouts)
        states, taken, old, values, rewards, ended = samples
        last = apply(weights["value"], state)[:, 0]
        _, gae = jax.lax.scan(advantage, (jnp.zeros_like(last), last), (values, rewards, ended), reverse=True)
        flat = jax.tree.map(
            lambda array: array.reshape(-1, *array.shape[2:]), (states, taken, old, values, gae, gae + values)
        )
        for _ in range(epochs):
            noise, now = jax.random.split(noise)
            order = jax.random.permutation(now, len(flat[2])).reshape(mini_batches, -1)
            batches = jax.tree.map(lambda array, order=order: array[order], flat)
            (weights, moments), _ = jax.lax.scan(step, (weights, moments), batches)
        return weights, moments, key, state, steps, noise

    return carry, iteration
