"""Warp kernels of policies, normalisers and storage; the kernels of advantages and losses are in `losses`.

Only the kernels between the networks and the losses have a backward pass, which saves compile time.
"""

# Warp compiles kernels by its own types and rules: `float(0.0)` is a variable, `0.0` a constant.
# mypy: ignore-errors
# ruff: noqa: UP018

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import warp as wp

__all__ = [
    "BLOCK",
    "Flags",
    "Indices",
    "Matrix",
    "PreciseMatrix",
    "PreciseVector",
    "Scratch",
    "Vector",
    "cast",
    "launch",
    "on_host",
    "read",
]

Matrix, Vector, PreciseVector = wp.array2d[float], wp.array1d[float], wp.array1d[wp.float64]
PreciseMatrix = wp.array2d[wp.float64]
Indices, Flags = wp.array1d[int], wp.array2d[wp.bool]

HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
LOWEST = float(np.finfo(np.float32).min)


BLOCK = 256
"""Threads of a block in every launch on a GPU: a module is compiled anew for each number."""

PART = 512
"""Rows that a thread adds up on a GPU."""


def on_host(device: Any) -> bool:
    """Return whether a device is a CPU, whose arrays can be read without waiting."""
    return wp.get_device(device).is_cpu


def read(array: wp.array) -> npt.NDArray[Any]:
    """Return the values, waiting for the current stream only; `wp.array.numpy` waits for all streams of the device."""
    host = wp.empty_like(array, device="cpu", requires_grad=False)
    wp.copy(host, array)
    if array.device.is_cuda:
        wp.synchronize_stream(array.device.stream)
    return host.numpy()


class Scratch:
    """A cache of result arrays on the default device, one for each name and shape."""

    def __init__(self) -> None:
        self._device = wp.get_device().alias
        self._arrays: dict[Any, wp.array] = {}

    def __call__(self, name: str, *shape: int, dtype: Any = wp.float32, requires_grad: bool = False) -> wp.array:
        """Return the array of this name and shape, with the values last written to it."""
        key = (name, shape)
        if key not in self._arrays:
            self._arrays[key] = wp.zeros(shape, dtype=dtype, device=self._device, requires_grad=requires_grad)
        return self._arrays[key]

    def zeros_for_sums(self, *names: str, size: int) -> list[wp.array]:
        """Return differentiable arrays of zeros for kernels that add to them."""
        arrays = [self(name, size, requires_grad=True) for name in names]
        for array in arrays:
            array.zero_()
        return arrays


def launch(kernel: Any, dim: int | tuple[int, ...], inputs: Sequence[Any], outputs: Sequence[wp.array]) -> None:
    """Launch a kernel on the device of its outputs."""
    wp.launch(kernel, dim=dim, inputs=inputs, outputs=outputs, device=outputs[0].device)


def cast(source: wp.array, target: wp.array) -> None:
    """Copy values to an array of the same shape and any dtype, layout and device."""
    wp.utils.array_cast(source.to(target.device), target)


# Policies.


@wp.kernel(enable_backward=False)
def sample_gaussian(mean: Matrix, log_std: Vector, noise: Indices, actions: Matrix) -> None:
    """Sample actions; `noise` holds a seed and the number of draws so far."""
    row, column = wp.tid()
    state = wp.rand_init(noise[0], noise[1] + row * mean.shape[1] + column)
    actions[row, column] = mean[row, column] + wp.exp(log_std[column]) * wp.randn(state)


@wp.func
def map_action(action: float, action_map: Matrix, column: int) -> float:
    """Map an action of the policy to the environment's; the rows of the map are scale, shift, low and high."""
    mapped = action * action_map[0, column] + action_map[1, column]
    # not `wp.clamp`, which replaces NaN by a number
    mapped = wp.where(mapped < action_map[2, column], action_map[2, column], mapped)
    return wp.where(mapped > action_map[3, column], action_map[3, column], mapped)


@wp.kernel(enable_backward=False)
def map_actions(own: Matrix, own_mean: Matrix, action_map: Matrix, actions: Matrix, mean_actions: Matrix) -> None:
    """Map sampled and mean actions of the policy to the environment's."""
    row, column = wp.tid()
    actions[row, column] = map_action(own[row, column], action_map, column)
    mean_actions[row, column] = map_action(own_mean[row, column], action_map, column)


@wp.kernel
def log_prob_gaussian(
    mean: Matrix, log_std: Vector, actions: Matrix, rows: Indices, log_prob: Vector, entropy: Vector
) -> None:
    """Add each column's share to log-probability and entropy; row i of `mean` matches row `rows[i]` of `actions`."""
    row, column = wp.tid()
    score = (actions[rows[row], column] - mean[row, column]) * wp.exp(-log_std[column])
    constant = log_std[column] + wp.static(HALF_LOG_TWO_PI)
    wp.atomic_add(log_prob, row, -0.5 * score * score - constant)
    wp.atomic_add(entropy, row, constant + 0.5)


@wp.kernel(enable_backward=False)
def sample_categorical(
    logits: Matrix,
    legal: Flags,
    firsts: Indices,
    starts: wp.array1d[wp.int64],
    noise: Indices,
    actions: wp.array2d[wp.int64],
    most_likely: wp.array2d[wp.int64],
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


@wp.func_grad(log_sum_exp)
def log_sum_exp_backward(
    logits: Matrix, legal: Flags, row: int, sample: int, first: int, stop: int, adj_ret: float
) -> None:
    """Compute the gradient by hand: Warp's is wrong for variables that change in a loop."""
    normalizer = log_sum_exp(logits, legal, row, sample, first, stop)
    for column in range(first, stop):
        if legal[sample, column]:
            wp.adjoint[logits][row, column] += adj_ret * wp.exp(logits[row, column] - normalizer)


@wp.kernel
def log_prob_categorical(
    logits: Matrix,
    firsts: Indices,
    starts: wp.array1d[wp.int64],
    actions: wp.array2d[wp.int64],
    legal: Flags,
    rows: Indices,
    log_prob: Vector,
    entropy: Vector,
) -> None:
    """Add each component's share to log-probability and entropy.

    Row i of `logits` matches row `rows[i]` of `actions` and `legal`.
    """
    row, component = wp.tid()
    first, stop, sample = firsts[component], firsts[component + 1], rows[row]
    normalizer = log_sum_exp(logits, legal, row, sample, first, stop)
    chosen = first + wp.int32(actions[sample, component] - starts[component])
    logit = wp.where(legal[sample, chosen], logits[row, chosen], wp.static(LOWEST))
    wp.atomic_add(log_prob, row, logit - normalizer)
    for column in range(first, stop):
        # 0 for illegal categories, whose gradient would be infinity times 0
        category = wp.where(legal[sample, column], logits[row, column] - normalizer, 0.0)
        wp.atomic_add(entropy, row, -wp.exp(category) * category)


@wp.kernel(enable_backward=False)
def advance(by: int, counter: Indices) -> None:
    """Add `by` to the last element of `counter`."""
    counter[counter.shape[0] - 1] += by


# Normalisers.


@wp.kernel(enable_backward=False)
def add_means(batch: Matrix, rows: Indices, part: int, sums: PreciseMatrix) -> None:
    """Add up the shares of a part of the values in `rows` in the mean of their column."""
    index, column = wp.tid()
    total = wp.float64(0.0)
    for row in range(index * part, wp.min((index + 1) * part, rows.shape[0])):
        total += wp.float64(batch[rows[row], column]) / wp.float64(rows.shape[0])
    sums[index, column] = total


@wp.kernel(enable_backward=False)
def add_variances(batch: Matrix, rows: Indices, part: int, mean: PreciseVector, sums: PreciseMatrix) -> None:
    """Add up the shares of a part of the values in `rows` in the population variance of their column."""
    index, column = wp.tid()
    total = wp.float64(0.0)
    for row in range(index * part, wp.min((index + 1) * part, rows.shape[0])):
        difference = wp.float64(batch[rows[row], column]) - mean[column]
        total += difference * difference / wp.float64(rows.shape[0])
    sums[index, column] = total


@wp.kernel(enable_backward=False)
def add_sums(sums: PreciseMatrix, totals: PreciseVector) -> None:
    """Add up the sums of all parts of a column."""
    column = wp.tid()
    total = wp.float64(0.0)
    for index in range(sums.shape[0]):
        total += sums[index, column]
    totals[column] = total


@wp.kernel(enable_backward=False)
def merge_statistics(
    rows: int,
    batch_mean: PreciseVector,
    batch_variance: PreciseVector,
    mean: PreciseVector,
    variance: PreciseVector,
    count: PreciseVector,
) -> None:
    """Merge the statistics of a batch of `rows` rows, in one thread because all columns share the count."""
    count[0] += wp.float64(rows)
    weight = wp.float64(rows) / count[0]
    rest = wp.float64(1.0) - weight
    for column in range(mean.shape[0]):
        difference = batch_mean[column] - mean[column]
        mean[column] += weight * difference
        variance[column] = rest * variance[column] + weight * (batch_variance[column] + rest * difference * difference)


@wp.func
def deviation(variance: wp.float64) -> wp.float32:
    """Return the standard deviation used for normalisation."""
    return wp.float32(wp.sqrt(variance + wp.float64(1e-8)))


@wp.kernel(enable_backward=False)
def normalize(values: Matrix, mean: PreciseVector, variance: PreciseVector, limit: float, normal: Matrix) -> None:
    """Normalise values and clip them to ``[-limit, limit]``."""
    row, column = wp.tid()
    value = (values[row, column] - wp.float32(mean[column])) / deviation(variance[column])
    # not `wp.clamp`, which replaces NaN by a number
    normal[row, column] = wp.where(wp.abs(value) > limit, wp.sign(value) * limit, value)


@wp.kernel(enable_backward=False)
def denormalize(normal: Matrix, mean: PreciseVector, variance: PreciseVector, values: Matrix) -> None:
    """Undo the normalisation, except for the clipping."""
    row, column = wp.tid()
    values[row, column] = normal[row, column] * deviation(variance[column]) + wp.float32(mean[column])


# Storage.


@wp.kernel(enable_backward=False)
def end_episodes(terminated: Flags, truncated: Flags, continues: Flags, cut: Flags) -> None:
    """Compute whether each episode continues, and whether it was truncated but not terminated."""
    row = wp.tid()
    continues[row, 0] = not (terminated[row, 0] or truncated[row, 0])
    cut[row, 0] = truncated[row, 0] and not terminated[row, 0]


@wp.kernel(enable_backward=False)
def add_next_values(values: Matrix, mask: Flags, discount_factor: float, rewards: Matrix) -> None:
    """Add discounted values to the rewards of the rows selected by `mask`."""
    row = wp.tid()
    if mask[row, 0]:
        rewards[row, 0] += discount_factor * values[row, 0]


@wp.kernel(enable_backward=False)
def gather(samples: Matrix, rows: Indices, batch: Matrix) -> None:
    """Copy the samples of some rows to a batch."""
    row, column = wp.tid()
    batch[row, column] = samples[rows[row], column]
