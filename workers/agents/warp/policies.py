"""Policies: networks, the distributions of their outputs, and kernels for both."""

# Warp compiles kernels by its own types and rules: `float(0.0)` is a variable, `0.0` a constant.
# mypy: ignore-errors
# ruff: noqa: UP018

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import warp as wp

from workers.agents.warp.kernels import (
    Flags,
    Indices,
    Matrix,
    Scratch,
    Vector,
    advance,
    count_parts,
    kernel,
    launch,
    part_of,
)
from workers.agents.warp.perceptron import Perceptron

__all__ = ["CategoricalPolicy", "GaussianPolicy", "map_actions"]

HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
LOWEST = float(np.finfo(np.float32).min)

Categories = wp.array2d[wp.int64]


# Gaussian.


@kernel
def sample_gaussian(mean: Matrix, log_std: Vector, noise: Indices, actions: Matrix) -> None:
    """Sample actions; `noise` holds a seed and the number of draws so far."""
    row, column = wp.tid()
    state = wp.rand_init(noise[0], noise[1] + row * mean.shape[1] + column)
    actions[row, column] = mean[row, column] + wp.exp(log_std[column]) * wp.randn(state)


@wp.func
def score(mean: Matrix, log_std: Vector, actions: Matrix, rows: Indices, row: int, column: int) -> float:
    """Return how many standard deviations an action is above the mean."""
    return (actions[rows[row], column] - mean[row, column]) * wp.exp(-log_std[column])


@kernel
def log_prob_gaussian(
    mean: Matrix, log_std: Vector, actions: Matrix, rows: Indices, log_prob: Vector, entropy: Vector
) -> None:
    """Compute log-probability and entropy; row i of `mean` matches row `rows[i]` of `actions`."""
    row = wp.tid()
    log_prob_sum = float(0.0)
    entropy_sum = float(0.0)
    for column in range(mean.shape[1]):
        constant = log_std[column] + wp.static(HALF_LOG_TWO_PI)
        own = score(mean, log_std, actions, rows, row, column)
        log_prob_sum += -0.5 * own * own - constant
        entropy_sum += constant + 0.5
    log_prob[row] = log_prob_sum
    entropy[row] = entropy_sum


@kernel
def mean_gradient(
    mean: Matrix, log_std: Vector, actions: Matrix, rows: Indices, by_log_prob: Vector, gradient: Matrix
) -> None:
    """Compute the gradient of the means from that of the log-probabilities."""
    row, column = wp.tid()
    own = score(mean, log_std, actions, rows, row, column)
    gradient[row, column] = by_log_prob[row] * own * wp.exp(-log_std[column])


@kernel
def log_std_gradient(
    mean: Matrix,
    log_std: Vector,
    actions: Matrix,
    rows: Indices,
    by_log_prob: Vector,
    by_entropy: float,
    part: int,
    gradient: Matrix,
) -> None:
    """Compute the gradient of the log standard deviation, for each part of `part` rows."""
    index, column = wp.tid()
    total = float(0.0)
    for row in range(index * part, wp.min((index + 1) * part, mean.shape[0])):
        own = score(mean, log_std, actions, rows, row, column)
        total += by_log_prob[row] * (own * own - 1.0) + by_entropy
    gradient[index, column] = total


@wp.func
def map_action(action: float, action_map: Matrix, column: int) -> float:
    """Map an action of the policy to the environment's; the rows of the map are scale, shift, low and high."""
    mapped = action * action_map[0, column] + action_map[1, column]
    # not `wp.clamp`, which replaces NaN by a number
    mapped = wp.where(mapped < action_map[2, column], action_map[2, column], mapped)
    return wp.where(mapped > action_map[3, column], action_map[3, column], mapped)


@kernel
def map_actions(own: Matrix, own_mean: Matrix, action_map: Matrix, actions: Matrix, mean_actions: Matrix) -> None:
    """Map sampled and mean actions of the policy to the environment's."""
    row, column = wp.tid()
    actions[row, column] = map_action(own[row, column], action_map, column)
    mean_actions[row, column] = map_action(own_mean[row, column], action_map, column)


# Categorical.


@kernel
def sample_categorical(
    logits: Matrix,
    legal: Flags,
    firsts: Indices,
    starts: wp.array1d[wp.int64],
    noise: Indices,
    actions: Categories,
    most_likely: Categories,
) -> None:
    """Compute sampled (by Gumbel noise) and most likely actions of each component.

    If `legal` is None, all actions are legal.
    """
    row, component = wp.tid()
    first = firsts[component]
    noisiest = int(first - 1)
    largest = int(first - 1)
    best = float(-wp.inf)
    for column in range(first, firsts[component + 1]):
        if not legal or legal[row, column]:
            state = wp.rand_init(noise[0], noise[1] + row * logits.shape[1] + column)
            score = logits[row, column] - wp.log(-wp.log(wp.randf(state)))
            if noisiest < first or score > best:  # always take the first: a score may be -inf or NaN
                best = score
                noisiest = column
            if largest < first or logits[row, column] > logits[row, largest]:
                largest = column
    actions[row, component] = starts[component] + wp.int64(noisiest - first)
    most_likely[row, component] = starts[component] + wp.int64(largest - first)


@wp.func
def log_sum_exp(logits: Matrix, legal: Flags, row: int, sample: int, first: int, stop: int) -> float:
    """Return the log-sum-exp of the legal columns from `first` to `stop` (exclusive)."""
    largest = float(wp.static(LOWEST))
    for column in range(first, stop):
        if legal[sample, column]:
            largest = wp.max(largest, logits[row, column])
    total = float(0.0)
    for column in range(first, stop):
        if legal[sample, column]:
            total += wp.exp(logits[row, column] - largest)
    return largest + wp.log(total)


@wp.func
def component_entropy(
    logits: Matrix, legal: Flags, row: int, sample: int, first: int, stop: int, normalizer: float
) -> float:
    """Return the entropy of the columns from `first` to `stop` (exclusive), whose log-sum-exp is `normalizer`."""
    total = float(0.0)
    for column in range(first, stop):
        if legal[sample, column]:
            category = logits[row, column] - normalizer
            total -= wp.exp(category) * category
    return total


@kernel
def log_prob_categorical(
    logits: Matrix,
    firsts: Indices,
    starts: wp.array1d[wp.int64],
    actions: Categories,
    legal: Flags,
    rows: Indices,
    log_prob: Vector,
    entropy: Vector,
) -> None:
    """Compute log-probability and entropy of all components.

    Row i of `logits` matches row `rows[i]` of `actions` and `legal`.
    """
    row = wp.tid()
    sample = rows[row]
    log_prob_sum = float(0.0)
    entropy_sum = float(0.0)
    for component in range(starts.shape[0]):
        first, stop = firsts[component], firsts[component + 1]
        normalizer = log_sum_exp(logits, legal, row, sample, first, stop)
        chosen = first + wp.int32(actions[sample, component] - starts[component])
        logit = wp.where(legal[sample, chosen], logits[row, chosen], wp.static(LOWEST))
        log_prob_sum += logit - normalizer
        entropy_sum += component_entropy(logits, legal, row, sample, first, stop, normalizer)
    log_prob[row] = log_prob_sum
    entropy[row] = entropy_sum


@kernel
def logits_gradient(
    logits: Matrix,
    firsts: Indices,
    starts: wp.array1d[wp.int64],
    actions: Categories,
    legal: Flags,
    rows: Indices,
    by_log_prob: Vector,
    by_entropy: float,
    gradient: Matrix,
) -> None:
    """Compute the gradient of a component's logits from those of log-probabilities and entropies."""
    row, component = wp.tid()
    first, stop, sample = firsts[component], firsts[component + 1], rows[row]
    normalizer = log_sum_exp(logits, legal, row, sample, first, stop)
    entropy = component_entropy(logits, legal, row, sample, first, stop, normalizer)
    chosen = first + wp.int32(actions[sample, component] - starts[component])
    for column in range(first, stop):
        gradient[row, column] = 0.0
        if legal[sample, column]:
            category = logits[row, column] - normalizer
            probability = wp.exp(category)
            hit = wp.where(column == chosen, 1.0, 0.0)
            gradient[row, column] = by_log_prob[row] * (hit - probability) - by_entropy * probability * (
                category + entropy
            )


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
        launch(sample_categorical, shape, inputs, [actions, most_likely])
        launch(advance, 1, [head.size], [noise])
        return actions, most_likely

    def log_prob(self, head: wp.array, rows: wp.array, actions: wp.array, legal: wp.array) -> list[wp.array]:
        """Return log-probability and entropy, both ``(rows,)``, of some rows of `actions` and their masks `legal`."""
        outputs = [self._scratch(name, head.shape[0]) for name in ("log_prob", "entropy")]
        inputs = [head, self._firsts, self._starts, actions, legal, rows]
        launch(log_prob_categorical, head.shape[0], inputs, outputs)
        return outputs

    def backward(
        self,
        head: wp.array,
        by_log_prob: wp.array,
        by_entropy: float,
        rows: wp.array,
        actions: wp.array,
        legal: wp.array,
    ) -> wp.array:
        """Return the gradient of `head` from those of the results of `log_prob`.

        The gradient is ``by_log_prob``, ``(rows,)``, for log-probabilities, and the same number for each entropy.
        """
        gradient = self._scratch("gradient", *head.shape)
        inputs = [head, self._firsts, self._starts, actions, legal, rows, by_log_prob, by_entropy]
        launch(logits_gradient, (head.shape[0], self._starts.size), inputs, [gradient])
        return gradient


class GaussianPolicy:
    """Independent normal distributions with standard deviations that do not depend on the observation.

    Args:
        network: Maps observations ``(rows, size)`` to means ``(rows, width)``.
        log_std: Logarithm of the standard deviation, ``(width,)``, a parameter.
        log_std_gradient: Its gradient, ``(parts, width)``.
    """

    def __init__(self, network: Perceptron, log_std: wp.array, log_std_gradient: wp.array) -> None:
        self.network = network
        self.log_std = log_std
        self._log_std_gradient = log_std_gradient
        self._scratch = Scratch()

    def sample(self, head: wp.array, noise: wp.array) -> tuple[wp.array, wp.array]:
        """Return sampled and most likely actions; `noise` holds a seed and the number of draws so far."""
        actions = self._scratch("actions", *head.shape)
        launch(sample_gaussian, head.shape, [head, self.log_std, noise], [actions])
        launch(advance, 1, [head.size], [noise])
        return actions, head

    def log_prob(self, head: wp.array, rows: wp.array, actions: wp.array) -> list[wp.array]:
        """Return log-probability density and entropy, both ``(rows,)``, of some rows of `actions`."""
        outputs = [self._scratch(name, head.shape[0]) for name in ("log_prob", "entropy")]
        launch(log_prob_gaussian, head.shape[0], [head, self.log_std, actions, rows], outputs)
        return outputs

    def backward(
        self, head: wp.array, by_log_prob: wp.array, by_entropy: float, rows: wp.array, actions: wp.array
    ) -> wp.array:
        """Return the gradient of `head` from those of the results of `log_prob`, and write that of `log_std`.

        The gradient is ``by_log_prob``, ``(rows,)``, for log-probabilities, and the same number for each entropy.
        """
        gradient = self._scratch("gradient", *head.shape)
        inputs = [head, self.log_std, actions, rows, by_log_prob]
        launch(mean_gradient, head.shape, inputs, [gradient])
        count = head.shape[0]
        shape = (count_parts(head.device, count), head.shape[1])
        inputs += [by_entropy, part_of(head.device, count)]
        launch(log_std_gradient, shape, inputs, [self._log_std_gradient])
        return gradient
