"""Policies and normalisers of the Warp PPO agent.

The next call on as many rows overwrites the arrays that a call returned, because a captured graph needs the same memory
each time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import warp as wp

from workers.agents.warp import kernels
from workers.agents.warp.kernels import Scratch, launch
from workers.agents.warp.perceptron import Perceptron

__all__ = ["CategoricalPolicy", "GaussianPolicy", "Moments", "Normalizer"]

# Policies.


class CategoricalPolicy:
    """Independent categorical components; actions are ``(rows, components)`` int64.

    Args:
        network: Maps observations ``(rows, size)`` to the logits of all components, one component after the other.
        components: Actions of each component, in the order of the logits.
    """

    def __init__(self, network: Perceptron, components: Sequence[range]) -> None:
        self.network = network
        firsts = itertools.accumulate(map(len, components), initial=0)
        self._firsts = wp.array(list(firsts), dtype=wp.int32)
        self._starts = wp.array([actions.start for actions in components], dtype=wp.int64)
        self._scratch = Scratch()

    def sample(self, head: wp.array, noise: wp.array, legal: wp.array = None) -> tuple[wp.array, wp.array]:
        """Return sampled and most likely actions; `noise` holds a seed and the number of draws so far.

        `legal` are bools of the shape of `head`, at least one True in each component; None if all are legal.
        """
        shape = (head.shape[0], self._starts.size)
        actions, most_likely = (self._scratch(name, *shape, dtype=wp.int64) for name in ("actions", "most likely"))
        inputs = [head, legal, self._firsts, self._starts, noise]
        launch(kernels.sample_categorical, shape, inputs, [actions, most_likely])
        launch(kernels.advance, 1, [head.size], [noise])
        return actions, most_likely

    def log_prob(self, head: wp.array, rows: wp.array, actions: wp.array, legal: wp.array) -> list[wp.array]:
        """Return log-probability and entropy, both ``(rows,)``, of some rows of `actions` and their masks `legal`."""
        outputs = self._scratch.zeros_for_sums("log_prob", "entropy", size=head.shape[0])
        inputs = [head, self._firsts, self._starts, actions, legal, rows]
        launch(kernels.log_prob_categorical, (head.shape[0], self._starts.size), inputs, outputs)
        return outputs


class GaussianPolicy:
    """Independent normal distributions with standard deviations that do not depend on the observation.

    Args:
        network: Maps observations ``(rows, size)`` to means ``(rows, width)``.
        log_std: Logarithm of the standard deviation, ``(width,)``, a parameter.
    """

    def __init__(self, network: Perceptron, log_std: wp.array) -> None:
        self.network = network
        self.log_std = log_std
        self._scratch = Scratch()

    def sample(self, head: wp.array, noise: wp.array) -> tuple[wp.array, wp.array]:
        """Return sampled and most likely actions; `noise` holds a seed and the number of draws so far."""
        actions = self._scratch("actions", *head.shape)
        launch(kernels.sample_gaussian, head.shape, [head, self.log_std, noise], [actions])
        launch(kernels.advance, 1, [head.size], [noise])
        return actions, head

    def log_prob(self, head: wp.array, rows: wp.array, actions: wp.array) -> list[wp.array]:
        """Return log-probability density and entropy, both ``(rows,)``, of some rows of `actions`."""
        outputs = self._scratch.zeros_for_sums("log_prob", "entropy", size=head.shape[0])
        launch(kernels.log_prob_gaussian, head.shape, [head, self.log_std, actions, rows], outputs)
        return outputs


# Normalisers.


class Moments:
    """Means and population variances of columns, summed in a fixed order."""

    def __init__(self) -> None:
        self._scratch = Scratch()

    def __call__(self, batch: wp.array, rows: wp.array) -> tuple[wp.array, wp.array]:
        """Return mean and variance of each column over some rows of a batch, ``(width,)`` float64."""
        width = batch.shape[1]
        part = rows.size if kernels.on_host(batch.device) else kernels.PART
        sums = self._scratch("sums", math.ceil(rows.size / part), width, dtype=wp.float64)
        mean, variance = (self._scratch(name, width, dtype=wp.float64) for name in ("mean", "variance"))
        launch(kernels.add_means, sums.shape, [batch, rows, part], [sums])
        launch(kernels.add_sums, width, [sums], [mean])
        launch(kernels.add_variances, sums.shape, [batch, rows, part, mean], [sums])
        launch(kernels.add_sums, width, [sums], [variance])
        return mean, variance


class Normalizer:
    """Running mean and variance of columns, computed in float64 and applied in float32.

    Batches are merged with the parallel update of Chan et al. (Technical Report STAN-CS-79-773, 1979). Before the first
    batch, the mean is 0 and the variance 1.

    Args:
        width: Number of columns.
        limit: Normalised values are clipped to ``[-limit, limit]``.
    """

    def __init__(self, width: int, limit: float = math.inf) -> None:
        self.limit = limit
        self.mean = wp.zeros(width, dtype=wp.float64)
        self.variance = wp.ones(width, dtype=wp.float64)
        self.count = wp.zeros(1, dtype=wp.float64)
        self._moments, self._scratch = Moments(), Scratch()

    def update(self, batch: wp.array, rows: wp.array) -> None:
        """Merge the statistics of some rows of a batch ``(samples, width)``."""
        statistics = [self.mean, self.variance, self.count]
        launch(kernels.merge_statistics, 1, [rows.size, *self._moments(batch, rows)], statistics)

    def __call__(self, values: wp.array) -> wp.array:
        """Return the normalised values, ``(rows, width)`` float32."""
        normal = self._scratch("normal", *values.shape)
        launch(kernels.normalize, values.shape, [values, self.mean, self.variance, self.limit], [normal])
        return normal

    def inverse(self, normal: wp.array) -> wp.array:
        """Undo the normalisation of `normal`, except for the clipping."""
        values = self._scratch("values", *normal.shape)
        launch(kernels.denormalize, normal.shape, [normal, self.mean, self.variance], [values])
        return values
