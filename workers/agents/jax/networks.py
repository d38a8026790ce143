"""Components of the JAX PPO agent: Flax perceptrons and policies, and the statistics of normalisers."""

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
    """A linear layer with a weight of shape ``(outputs, inputs)``, as in an agent's state.

    Args:
        outputs: Number of outputs.
    """

    outputs: int

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Map ``(inputs, samples)`` to ``(outputs, samples)``."""
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
        """Map ``(rows, inputs)`` to ``(rows, outputs)``."""
        *hidden, outputs = self.widths
        inputs = inputs.T  # samples as columns: XLA's gradients take a third less time on a CPU
        for index, width in enumerate(hidden):  # numbered as in `torch.nn.Sequential`, which counts activations
            layer = Linear(width, name=str(2 * index))
            inputs = ACTIVATIONS[self.activation](layer(inputs))
        return Linear(outputs, name=str(2 * len(hidden)))(inputs).T


class CategoricalPolicy(nn.Module):
    """Independent categorical components; actions are ``(rows, components)`` integers.

    Args:
        network: Maps observations ``(rows, size)`` to the logits of all components, one component after the other.
        components: Actions of each component, in the order of the logits.
    """

    network: nn.Module
    components: tuple[range, ...]

    def __call__(self, observations: Array, action_mask: Array | None = None) -> Array:
        """Return the log-probabilities ``(rows, components, categories)``: the other methods' `head`.

        Components with fewer categories than the largest one are padded with categories of probability 0.

        Args:
            observations: ``(rows, size)``.
            action_mask: Legal categories, bools of the logits' shape, at least one in each component; None if all are
                legal.
        """
        logits = self.network(observations)
        if action_mask is not None:
            logits = jnp.where(action_mask, logits, jnp.finfo(logits.dtype).min)
        sizes = [len(actions) for actions in self.components]
        # the lowest float: with -inf the entropy would be NaN
        lowest = jnp.finfo(logits.dtype).min
        parts = [
            jnp.pad(part, ((0, 0), (0, max(sizes) - size)), constant_values=lowest)
            for size, part in zip(sizes, jnp.split(logits, np.cumsum(sizes)[:-1], axis=1), strict=True)
        ]
        return jax.nn.log_softmax(jnp.stack(parts, axis=1))

    def sample(self, head: Array, key: Array) -> tuple[Array, Array]:
        """Return sampled (by Gumbel noise) and most likely actions."""
        noise = jax.random.gumbel(key, head.shape, head.dtype)
        return self._argmax(head + noise), self._argmax(head)

    def log_prob(self, head: Array, actions: Array) -> Array:
        """Return the log-probability of the actions, ``(rows, 1)``."""
        # not by indexing: its gradient is a scatter, which loops over all rows on a CPU
        chosen = (actions - self._starts())[:, :, None] == jnp.arange(head.shape[2])
        return jnp.where(chosen, head, 0.0).sum((1, 2))[:, None]

    def entropy(self, head: Array) -> Array:
        """Return the mean entropy, a scalar."""
        # bounded where the probability is 0: at the lowest float the gradient could be infinity times 0
        return -(jnp.exp(head) * jnp.maximum(head, -1e3)).sum((1, 2)).mean()

    def _starts(self) -> Array:
        return jnp.array([actions.start for actions in self.components])

    def _argmax(self, scores: Array) -> Array:
        """Return the action with the largest score in each component."""
        return scores.argmax(2) + self._starts()


class GaussianPolicy(nn.Module):
    """Independent normal distributions with standard deviations that do not depend on the observation.

    Args:
        network: Maps observations ``(rows, size)`` to means ``(rows, width)``.
        width: Width of the actions.
    """

    network: nn.Module
    width: int

    @nn.compact
    def __call__(self, observations: Array) -> tuple[Array, Array]:
        """Return means ``(rows, width)`` and log standard deviations ``(width,)``: the other methods' `head`."""
        log_std = self.param("log_std", zeros, (self.width,), jnp.float32)
        return self.network(observations), log_std

    def sample(self, head: tuple[Array, Array], key: Array) -> tuple[Array, Array]:
        """Return sampled and most likely actions."""
        mean, log_std = head
        return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape, mean.dtype), mean

    def log_prob(self, head: tuple[Array, Array], actions: Array) -> Array:
        """Return the log-probability density of the actions, ``(rows, 1)``."""
        mean, log_std = head
        scores = (actions - mean) * jnp.exp(-log_std)
        constants = log_std + 0.5 * math.log(2.0 * math.pi)
        return -(0.5 * jnp.square(scores) + constants).sum(1, keepdims=True)

    def entropy(self, head: tuple[Array, Array]) -> Array:
        """Return the entropy, a scalar."""
        return (head[1] + 0.5 * math.log(2.0 * math.pi * math.e)).sum()


def initial_statistics(width: int) -> dict[str, Any]:
    """Return statistics before the first batch: mean 0 and variance 1 per column, float64 if JAX has it enabled."""
    dtype = jnp.result_type(float)
    return {"mean": np.zeros(width, dtype), "variance": np.ones(width, dtype), "count": np.zeros((), dtype)}


def merge_statistics(statistics: dict[str, Array], batch: Array, acted: Array) -> dict[str, Array]:
    """Merge the rows of a batch ``(rows, width)`` for which `acted`, ``(rows, 1)`` bool, is True into statistics.

    Uses the parallel update of Chan et al. (Technical Report STAN-CS-79-773, 1979). The batch is shifted by the current
    mean, which keeps float32 accurate for columns far from 0.
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
    """Return the normalised values, ``(rows, width)`` float32, clipped to ``[-limit, limit]``."""
    mean, std = _moments(statistics)
    return jnp.clip((values - mean) / std, -limit, limit)


def denormalize(statistics: dict[str, Array], values: Array) -> Array:
    """Undo the normalisation of `values`, except for the clipping."""
    mean, std = _moments(statistics)
    return values * std + mean


def _moments(statistics: dict[str, Array]) -> tuple[Array, Array]:
    std = jnp.sqrt(statistics["variance"] + VARIANCE_EPSILON)
    return statistics["mean"].astype(jnp.float32), std.astype(jnp.float32)
