"""The compiled functions of the JAX PPO agent: pure, and shared by all agents with the same specification.

Their arguments and results, all on one device:

- weights: ``{"policy": …, "value": …}``, each nested as in Flax; float32.
- optimizer: state of `ADAM`.
- normalizers: statistics (see `networks.initial_statistics`) by name: those of the inputs, and ``"returns"``.
- rollout: arrays ``(rollouts, num_envs, width)`` by name: the raw inputs, ``"actions"``, ``"rewards"``, ``"ended"``,
  ``"acted"`` and, after the first action mask, ``"action_mask"``, as wide as the logits; and ``"next"``, the critic's
  raw input after the last row, ``(num_envs, width)``. The dtype is float32, except for discrete actions and bools.
- key: data of a random key, because NumPy cannot hold the key itself.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import Array, lax
from jax import numpy as jnp

from workers.agents import ppo
from workers.agents.jax.losses import clipped_policy_loss, clipped_value_loss, compute_gae
from workers.agents.jax.networks import (
    CategoricalPolicy,
    GaussianPolicy,
    Perceptron,
    denormalize,
    initial_statistics,
    merge_statistics,
    normalize,
)
from workers.agents.learning_rate import adapt_learning_rate

__all__ = [
    "Critic",
    "Specification",
    "StaticCfg",
    "act",
    "cut",
    "draw_orders",
    "empty_rollout",
    "initialize",
    "legal",
    "record",
    "the_one",
    "update",
]

Critic = tuple[Any, dict[str, Any]]
"""The critic's weights and all normalizers."""

ADAM = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)


@dataclass(kw_only=True, unsafe_hash=True)
class StaticCfg(ppo.PPOCfg):
    """A hashable configuration that never changes; the learning rate and action bounds, which do, are excluded."""

    learning_rate: float = field(default=0.0, compare=False)
    action_bounds: str = field(default="none", compare=False)


class Specification(NamedTuple):
    """The static arguments of the compiled functions."""

    cfg: StaticCfg
    input_widths: tuple[tuple[str, int], ...]
    critic_input: str
    components: tuple[range, ...] | None
    action_width: int
    head_width: int
    is_on_cpu: bool

    def policy(self) -> CategoricalPolicy | GaussianPolicy:
        """Return the policy's module."""
        network = Perceptron((*self.cfg.hidden_sizes, self.head_width), self.cfg.activation)
        if self.components:
            return CategoricalPolicy(network, self.components)
        return GaussianPolicy(network, self.action_width)

    def value(self) -> Perceptron:
        """Return the critic's module."""
        return Perceptron((*self.cfg.hidden_sizes, 1), self.cfg.activation)


@functools.cache
def the_one(specification: Specification) -> Specification:
    """Return the same object for equal specifications, so that compiled functions find it by identity."""
    return specification


def initialize(specification: Specification, policy: Any, value: Any) -> tuple[Any, Any, Any]:
    """Return a new agent's weights, optimizer and normalizers, as NumPy arrays, which need no compilation.

    Args:
        specification: The agent's specification.
        policy: Weights and biases of each layer of the policy's network.
        value: Weights and biases of each layer of the critic.
    """
    cfg, widths = specification.cfg, dict(specification.input_widths)
    weights: dict[str, Any] = {"policy": {"network": _numbered(policy)}, "value": _numbered(value)}
    if not specification.components:
        weights["policy"]["log_std"] = np.full(specification.action_width, cfg.initial_log_std, np.float32)
    optimizer = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(ADAM.init, weights))
    normalizers = {name: initial_statistics(width) for name, width in widths.items() if cfg.normalize_observations}
    if cfg.normalize_values:
        normalizers["returns"] = initial_statistics(1)
    return weights, optimizer, normalizers


def empty_rollout(specification: Specification, num_envs: int) -> dict[str, Any]:
    """Return a rollout of zeros, in which all rows acted, as NumPy arrays."""
    cfg, widths = specification.cfg, dict(specification.input_widths)

    def zeros(width: int, dtype: Any = np.float32) -> Any:
        return np.zeros((cfg.rollouts, num_envs, width), dtype)

    rollout = {name: zeros(width) for name, width in widths.items()}
    integers = jnp.result_type(int)
    rollout["actions"] = zeros(specification.action_width, integers if specification.components else np.float32)
    rollout |= {"rewards": zeros(1), "ended": zeros(1, np.bool_), "acted": ~zeros(1, np.bool_)}
    rollout["next"] = zeros(widths[specification.critic_input])[0]  # the critic's raw input after the last row
    return rollout


def _numbered(layers: Any) -> dict[str, Any]:
    """Return the layers by `Perceptron`'s layer names."""
    return {str(2 * index): {"weight": weight, "bias": bias} for index, (weight, bias) in enumerate(layers)}


# Interaction.


def _network_input(normalizers: dict[str, Any], name: str, raw: Array) -> Array:
    inputs = raw.astype(jnp.float32)
    return normalize(normalizers[name], inputs, ppo.INPUT_LIMIT) if name in normalizers else inputs


def _denormalize(normalizers: dict[str, Any], values: Array) -> Array:
    return denormalize(normalizers["returns"], values) if "returns" in normalizers else values


def _head(specification: Specification, weights: Any, batch: dict[str, Array]) -> Any:
    """Return the policy's head for a batch's observations, and its masks if there are any."""
    inputs = [batch[name] for name in ("observations", "action_mask") if name in batch]
    return specification.policy().apply({"params": weights}, *inputs)


@functools.partial(jax.jit, static_argnums=0)
def act(
    specification: Specification,
    weights: Any,
    normalizers: dict[str, Any],
    action_map: Array | None,
    key: Array,
    observations: Array,
    action_mask: Array | None,
) -> tuple[Array | None, Array, Array, Array]:
    """Return what `PPO._sample_actions` returns, and the next key; `weights` are the policy's."""
    following, now = jax.random.split(jax.random.wrap_key_data(key))
    batch = {"observations": _network_input(normalizers, "observations", observations)}
    head = _head(specification, weights, batch if action_mask is None else batch | {"action_mask": action_mask})
    actions, mean_actions = specification.policy().sample(head, now)
    own = None
    if action_map is not None:
        own = actions
        scale, shift, low, high = action_map
        actions, mean_actions = (jnp.clip(each * scale + shift, low, high) for each in (actions, mean_actions))
    return own, actions, mean_actions, jax.random.key_data(following)


@functools.partial(jax.jit, static_argnums=0)
def legal(specification: Specification, mask: Array) -> Array:
    """Return the legal actions of a mask, ``(rows, categories)`` bools or integers, as `masks.legal_actions` does."""
    ends = np.cumsum([len(actions) for actions in specification.components or ()])
    parts = jnp.split(mask != 0, ends[:-1], axis=1)
    return jnp.concatenate([part | ~part.any(1, keepdims=True) for part in parts], axis=1)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def record(
    specification: Specification,
    critic: Critic,
    rollout: dict[str, Array],
    row: Array,
    arrays: dict[str, Array],
) -> dict[str, Array]:
    """Return the rollout with a transition in `row`, a scalar.

    `arrays` holds the transition by the names in the rollout, with ``"terminated"`` and ``"truncated"`` in place of
    ``"ended"``. Masks that it lacks are set to True.
    """
    terminated, truncated = (arrays[name].astype(bool) for name in ("terminated", "truncated"))
    following = arrays["next"].astype(jnp.float32)
    rewards = arrays["rewards"].astype(jnp.float32)
    rewards += _discounted(specification, critic, following, truncated & ~terminated)
    rows = {"acted": True, "action_mask": True} | arrays | {"rewards": rewards, "ended": terminated | truncated}
    return {name: following if name == "next" else _with_row(array, row, rows[name]) for name, array in rollout.items()}


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def cut(specification: Specification, critic: Critic, rollout: dict[str, Array], row: Array) -> dict[str, Array]:
    """Return the rollout with the episodes that continue after `row`, a scalar, truncated."""
    rewards, ended = (lax.dynamic_index_in_dim(rollout[name], row, keepdims=False) for name in ("rewards", "ended"))
    rewards += _discounted(specification, critic, rollout["next"], ~ended)
    return rollout | {
        "rewards": _with_row(rollout["rewards"], row, rewards),
        "ended": _with_row(rollout["ended"], row, True),
    }


def _with_row(array: Array, row: Array, values: Any) -> Array:
    """Return an array of the rollout with values in a row; ``array.at[row]`` would be a scatter, which is slower."""
    values = jnp.broadcast_to(jnp.asarray(values, array.dtype), array.shape[1:])
    return lax.dynamic_update_index_in_dim(array, values, row, axis=0)


def _discounted(specification: Specification, critic: Critic, following: Array, mask: Array) -> Array:
    """Return the discounted values of the critic's raw inputs where `mask`, ``(num_envs, 1)``; 0 elsewhere."""

    def compute() -> Array:
        return jnp.where(mask, _next_values(specification, critic, following), 0.0)

    if specification.is_on_cpu:
        values = lax.cond(mask.any(), compute, lambda: jnp.zeros(mask.shape, jnp.float32))
    else:  # another device would wait for the host, which takes the branches
        values = compute()
    return specification.cfg.discount_factor * values


def _next_values(specification: Specification, critic: Critic, raw: Array) -> Array:
    """Return the values of the observations or states after the last recorded actions, ``(num_envs, 1)``."""
    weights, normalizers = critic
    inputs = _network_input(normalizers, specification.critic_input, raw)
    return _denormalize(normalizers, specification.value().apply({"params": weights}, inputs))


# Update.


@functools.partial(jax.jit, static_argnums=0)
def draw_orders(specification: Specification, key: Array, acted: Array) -> tuple[Array, Array]:
    """Draw what `PPO._draw_orders` returns, int32, without waiting for a device; also return the next key.

    Args:
        specification: The agent's specification.
        key: Data of the random key.
        acted: The rollout's array of that name.
    """
    following, now = jax.random.split(jax.random.wrap_key_data(key))
    acted = acted.reshape(-1)
    samples = lax.iota(jnp.int32, len(acted))
    again = samples % jnp.maximum(acted.sum(dtype=jnp.int32), 1)

    def draw(key: Array) -> Array:
        # one sort of 31 random bits (`jax.random.permutation` sorts twice); samples whose row did not act come last
        bits = jax.random.bits(key, acted.shape, jnp.uint32) >> 1
        _, order = lax.sort((jnp.where(acted, bits, bits | jnp.uint32(1 << 31)), samples), is_stable=False)
        return order.at[again].get(mode="promise_in_bounds")

    orders = lax.map(draw, jax.random.split(now, specification.cfg.learning_epochs))
    return orders, jax.random.key_data(following)


@functools.partial(jax.jit, static_argnums=0)
def update(
    specification: Specification,
    weights: Any,
    optimizer: Any,
    normalizers: dict[str, Any],
    rollout: dict[str, Array],
    orders: Array,
    learning_rate: Array,
) -> tuple[Any, Any, dict[str, Any], Array, dict[str, Array]]:
    """Return weights, optimizer and normalizers after an update, the learning rate, and the scalars to track by tag.

    `orders` is the result of `PPO._draw_orders`. Nothing is donated: an interrupt before the results are stored must
    not cost the agent what it has learned.
    """
    cfg = specification.cfg
    samples, normalizers = _prepare(specification, weights, normalizers, rollout)

    def run_epoch(carry: tuple[Any, Any, Array], order: Array) -> tuple[tuple[Any, Any, Array], dict[str, Array]]:
        weights, optimizer, learning_rate = carry
        shuffled = {name: array.at[order].get(mode="promise_in_bounds") for name, array in samples.items()}
        outputs = []
        for batches in _mini_batches(shuffled, cfg.mini_batches):
            step = functools.partial(_step, specification, learning_rate)
            (weights, optimizer), output = lax.scan(step, (weights, optimizer), batches)
            outputs.append(output)
        losses = jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)
        kl = losses.pop("kl").sum() / len(order)
        if cfg.kl_threshold:
            learning_rate = adapt_learning_rate(learning_rate, kl, cfg.kl_threshold, jnp.where)
        return (weights, optimizer, learning_rate), losses | {"Policy / KL divergence": kl}

    carry, scalars = lax.scan(run_epoch, (weights, optimizer, learning_rate), orders)
    weights, optimizer, adapted = carry
    scalars = jax.tree.map(jnp.mean, scalars)
    if not specification.components:
        scalars["Policy / Standard deviation"] = jnp.exp(weights["policy"]["log_std"]).mean()
    for name, _ in specification.input_widths:
        if name in normalizers:
            normalizers[name] = merge_statistics(normalizers[name], _flat(rollout, name), _flat(rollout, "acted"))
    return weights, optimizer, normalizers, adapted, scalars


def _flat(rollout: dict[str, Array], name: str) -> Array:
    """Return an array of the rollout as ``(samples, width)``."""
    return rollout[name].reshape(-1, rollout[name].shape[2])


def _prepare(
    specification: Specification, weights: Any, normalizers: dict[str, Any], rollout: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the rollout's samples, with the networks' outputs, and the normalizers, with those of the returns updated.

    The outputs are computed here because weights and statistics have not changed since the start of the rollout.
    """
    cfg, critic_input = specification.cfg, specification.critic_input
    inputs = {name: _flat(rollout, name) for name, _ in specification.input_widths}
    samples = {name: _network_input(normalizers, name, raw) for name, raw in inputs.items()}
    samples |= {name: _flat(rollout, name) for name in ("actions", "action_mask") if name in rollout}
    head = _head(specification, weights["policy"], samples)
    samples["log_prob"] = specification.policy().log_prob(head, samples["actions"])
    samples["values"] = specification.value().apply({"params": weights["value"]}, samples[critic_input])
    values = _denormalize(normalizers, samples["values"])
    advantages = compute_gae(
        rewards=rollout["rewards"],
        values=values.reshape(rollout["rewards"].shape),
        last_values=_next_values(specification, (weights["value"], normalizers), rollout["next"]),
        continues=~rollout["ended"],
        acted=rollout["acted"],
        discount_factor=cfg.discount_factor,
        gae_lambda=cfg.gae_lambda,
    ).reshape(-1, 1)
    samples["targets"], acted = advantages + values, _flat(rollout, "acted")
    if "returns" in normalizers:
        normalizers = normalizers | {"returns": merge_statistics(normalizers["returns"], samples["targets"], acted)}
        samples["targets"] = normalize(normalizers["returns"], samples["targets"])
    mean, std = advantages.mean(where=acted), advantages.std(where=acted)
    samples["advantages"] = (advantages - mean) / (std + 1e-8)
    return samples, normalizers


def _mini_batches(samples: dict[str, Array], count: int) -> Iterator[dict[str, Array]]:
    """Yield stacked mini-batches: those with one sample more, if any, then the others."""
    size, longer = divmod(len(samples["actions"]), count)
    first = longer * (size + 1)
    if longer:
        yield {name: array[:first].reshape(longer, size + 1, -1) for name, array in samples.items()}
    yield {name: array[first:].reshape(count - longer, size, -1) for name, array in samples.items()}


def _step(
    specification: Specification, learning_rate: Array, carry: tuple[Any, Any], batch: dict[str, Array]
) -> tuple[tuple[Any, Any], dict[str, Array]]:
    """Take an Adam step; also return the losses and the sum of ``(exp(r) - 1) - r``, with r the log ratio."""
    weights, optimizer = carry
    grads, outputs = jax.grad(_loss, has_aux=True)(weights, specification, batch)
    if limit := specification.cfg.grad_norm_clip:
        scale = jnp.minimum(1.0, limit / (optax.tree.norm(grads) + 1e-6))
        grads = jax.tree.map(lambda grad: grad * scale, grads)
    directions, optimizer = ADAM.update(grads, optimizer)
    weights = jax.tree.map(lambda weight, direction: weight - learning_rate * direction, weights, directions)
    return (weights, optimizer), outputs


def _loss(weights: Any, specification: Specification, batch: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    """Return the loss of a mini-batch, its parts, and the sum described in `_step`."""
    cfg, policy = specification.cfg, specification.policy()
    head = _head(specification, weights["policy"], batch)
    log_ratio = policy.log_prob(head, batch["actions"]) - batch["log_prob"]
    values = specification.value().apply({"params": weights["value"]}, batch[specification.critic_input])
    value_loss = clipped_value_loss(values, batch["targets"], batch["values"], cfg.value_clip)
    losses = {
        "Loss / Policy loss": clipped_policy_loss(jnp.exp(log_ratio), batch["advantages"], cfg.ratio_clip),
        "Loss / Value loss": cfg.value_loss_scale * value_loss,
    }
    if cfg.entropy_loss_scale:
        losses["Loss / Entropy loss"] = -cfg.entropy_loss_scale * policy.entropy(head)
    return sum(losses.values()), losses | {"kl": (jnp.expm1(log_ratio) - log_ratio).sum()}
