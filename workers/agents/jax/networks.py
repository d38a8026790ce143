"""What the PPO agent for JAX is made of: perceptrons and policies of Flax, and the statistics of a normaliser."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax import Array
from jax import numpy as jnp
from jax.nn.initializers import zeros

__all__ = [
    "CategoricalPolicy",
    "GaussianPolicy",
    "Perceptron",
    "denormalize",
    "initial_statistics",
    "merge_statistics",
    "normalize",
]

ACTIVATIONS = {"tanh": nn.tanh, "relu": nn.relu, "elu": nn.elu}
VARIANCE_EPSILON = 1e-8


class Linear(nn.Module):
    """A linear layer, with its weight ``(outputs, inputs)`` as an agent's state has it.

    Args:
        outputs: Number of outputs.
    """

    outputs: int

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """``(inputs, samples)`` to ``(outputs, samples)``."""
        weight = self.param("weight", zeros, (self.outputs, len(inputs)), jnp.float32)
        bias = self.param("bias", zeros, (self.outputs,), jnp.float32)
        # the default precision of GPUs and TPUs is lower than float32
        return jnp.matmul(weight, inputs, precision=jax.lax.Precision.HIGHEST) + bias[:, None]


class Perceptron(nn.Module):
    """A multi-layer perceptron with a linear head.

    Args:
        widths: Width of each hidden layer and of the outputs.
        activation: Name of the hidden layers' activation.
    """

    widths: tuple[int, ...]
    activation: str

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """``(rows, inputs)`` to ``(rows, outputs)``."""
        *hidden, outputs = self.widths
        inputs = inputs.T  # samples as columns: XLA's gradients take a third less time on a CPU
        for index, width in enumerate(hidden):  # numbered as in `torch.nn.Sequential`, where activations count
            layer = Linear(width, name=str(2 * index))
            inputs = ACTIVATIONS[self.activation](layer(inputs))
        return Linear(outputs, name=str(2 * len(hidden)))(inputs).T


class CategoricalPolicy(nn.Module):
    """Independent categorical components by their logits; actions are ``(rows, components)`` integers.

    Args:
        network: From observations ``(rows, size)`` to the logits of all components, one component after the other.
        components: Actions of each component, in the order of the logits.
    """

    network: nn.Module
    components: tuple[range, ...]

    def __call__(self, observations: Array, action_mask: Array | None = None) -> Array:
        """Log-probabilities ``(rows, components, categories)``: the `head` of the other methods.

        Components with fewer categories than the largest are padded with categories of probability 0.

        Args:
            observations: ``(rows, size)``.
            action_mask: Legal categories, bools of the shape of the logits, some in each component; None for all.
        """
        logits = self.network(observations)
        if action_mask is not None:
            logits = jnp.where(action_mask, logits, jnp.finfo(logits.dtype).min)
        sizes = np.array([len(actions) for actions in self.components])
        exists = np.arange(sizes.max()) < sizes[:, None]
        if not exists.all():
            # the lowest number instead of -inf, of which the entropy would be NaN
            padded = jnp.full((len(logits), exists.size), jnp.finfo(logits.dtype).min)
            logits = padded.at[:, np.flatnonzero(exists)].set(logits)
        return jax.nn.log_softmax(logits.reshape(-1, *exists.shape))

    def sample(self, head: Array, key: Array) -> tuple[Array, Array]:
        """Sampled and most likely actions; the former by Gumbel noise."""
        noise = jax.random.gumbel(key, head.shape, head.dtype)
        return self._argmax(head + noise), self._argmax(head)

    def log_prob(self, head: Array, actions: Array) -> Array:
        """Log-probability of the actions, ``(rows, 1)``."""
        # not by an index, of which the gradient is a scatter, which takes a loop over all rows on a CPU
        chosen = (actions - self._starts())[:, :, None] == jnp.arange(head.shape[2])
        return jnp.where(chosen, head, 0.0).sum((1, 2))[:, None]

    def entropy(self, head: Array) -> Array:
        """Mean entropy, a scalar."""
        # limited where the probability is 0: the gradient of the lowest number could be infinity times 0
        return -(jnp.exp(head) * jnp.maximum(head, -1e3)).sum((1, 2)).mean()

    def _starts(self) -> Array:
        return jnp.array([actions.start for actions in self.components])

    def _argmax(self, scores: Array) -> Array:
        """The action of the largest score in each component."""
        return scores.argmax(2) + self._starts()


class GaussianPolicy(nn.Module):
    """Independent normal distributions, whose deviation does not depend on the observation.

    Args:
        network: From observations ``(rows, size)`` to means ``(rows, width)``.
        width: Width of the actions.
    """

    network: nn.Module
    width: int

    @nn.compact
    def __call__(self, observations: Array) -> tuple[Array, Array]:
        """Means ``(rows, width)`` and logarithms of the deviation ``(width,)``: the `head` of the other methods."""
        log_std = self.param("log_std", zeros, (self.width,), jnp.float32)
        return self.network(observations), log_std

    def sample(self, head: tuple[Array, Array], key: Array) -> tuple[Array, Array]:
        """Sampled and most likely actions."""
        mean, log_std = head
        return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape, mean.dtype), mean

    def log_prob(self, head: tuple[Array, Array], actions: Array) -> Array:
        """Log-probability density of the actions, ``(rows, 1)``."""
        mean, log_std = head
        scores = (actions - mean) * jnp.exp(-log_std)
        constants = log_std + 0.5 * math.log(2.0 * math.pi)
        return -(0.5 * jnp.square(scores) + constants).sum(1, keepdims=True)

    def entropy(self, head: tuple[Array, Array]) -> Array:
        """Entropy, a scalar."""
        return (head[1] + 0.5 * math.log(2.0 * math.pi * math.e)).sum()


def initial_statistics(width: int) -> dict[str, Any]:
    """Statistics of no batch yet: mean 0 and variance 1 of each column, float64 where JAX has it enabled."""
    dtype = jnp.result_type(float)
    return {"mean": np.zeros(width, dtype), "variance": np.ones(width, dtype), "count": np.zeros((), dtype)}


def merge_statistics(statistics: dict[str, Array], batch: Array, acted: Array) -> dict[str, Array]:
    """Statistics with those rows of a batch ``(rows, width)`` merged in for which `acted`, ``(rows, 1)``, is True.

    By the parallel update of Chan et al. (Technical Report STAN-CS-79-773, 1979). The batch is shifted by the mean so
    far, which keeps float32 exact for columns far from 0.
    """
    centred = batch - statistics["mean"]
    delta = centred.mean(0, where=acted)
    variance = jnp.square(centred - delta).mean(0, where=acted)
    rows = acted.sum()
    count = statistics["count"] + rows
    weight = rows / count
    return {
        "mean": statistics["mean"] + weight * delta,
        "variance": (1.0 - weight) * statistics["variance"] + weight * (variance + (1.0 - weight) * jnp.square(delta)),
        "count": count,
    }


def normalize(statistics: dict[str, Array], values: Array, limit: float = math.inf) -> Array:
    """Normalised values, ``(rows, width)`` float32 within ``[-limit, limit]``."""
    mean, std = _moments(statistics)
    return jnp.clip((values - mean) / std, -limit, limit)


def denormalize(statistics: dict[str, Array], values: Array) -> Array:
    """What has been normalised to `values`, but for the limit."""
    mean, std = _moments(statistics)
    return values * std + mean


def _moments(statistics: dict[str, Array]) -> tuple[Array, Array]:
    std = jnp.sqrt(statistics["variance"] + VARIANCE_EPSILON)
    return statistics["mean"].astype(jnp.float32), std.astype(jnp.float32)
