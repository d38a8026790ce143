"""Moments of columns, and normalisers that keep them."""

# Warp compiles kernels by its own types and rules: `float(0.0)` is a variable, `0.0` a constant.
# mypy: ignore-errors

from __future__ import annotations

import math
from collections.abc import Mapping

import warp as wp

from workers.agents.warp.kernels import (
    Indices,
    Matrix,
    PreciseMatrix,
    PreciseVector,
    Scratch,
    add_sums,
    count_parts,
    kernel,
    launch,
    part_of,
)

__all__ = ["Moments", "Normalizer", "statistics_of"]


@kernel
def add_values(batch: Matrix, rows: Indices, part: int, sums: PreciseMatrix) -> None:
    """Add up a part of the values in `rows` of each column."""
    index, column = wp.tid()
    total = wp.float64(0.0)
    for row in range(index * part, wp.min((index + 1) * part, rows.shape[0])):
        total += wp.float64(batch[rows[row], column])
    sums[index, column] = total


@kernel
def add_squares(batch: Matrix, rows: Indices, part: int, mean: PreciseVector, sums: PreciseMatrix) -> None:
    """Add up the squared distances from the mean, for a part of the values in `rows` of each column."""
    index, column = wp.tid()
    total = wp.float64(0.0)
    for row in range(index * part, wp.min((index + 1) * part, rows.shape[0])):
        difference = wp.float64(batch[rows[row], column]) - mean[column]
        total += difference * difference
    sums[index, column] = total


@kernel
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


@kernel
def normalize(values: Matrix, mean: PreciseVector, variance: PreciseVector, limit: float, normal: Matrix) -> None:
    """Normalise values and clip them to ``[-limit, limit]``."""
    row, column = wp.tid()
    value = (values[row, column] - wp.float32(mean[column])) / deviation(variance[column])
    # not `wp.clamp`, which replaces NaN by a number
    normal[row, column] = wp.where(wp.abs(value) > limit, wp.sign(value) * limit, value)


@kernel
def denormalize(normal: Matrix, mean: PreciseVector, variance: PreciseVector, values: Matrix) -> None:
    """Undo the normalisation, except for the clipping."""
    row, column = wp.tid()
    values[row, column] = normal[row, column] * deviation(variance[column]) + wp.float32(mean[column])


class Moments:
    """Means and population variances of columns, summed in a fixed order."""

    def __init__(self) -> None:
        self._scratch = Scratch()

    def __call__(self, batch: wp.array, rows: wp.array) -> tuple[wp.array, wp.array]:
        """Return mean and variance of each column over some rows of a batch, ``(width,)`` float64."""
        device, width = batch.device, batch.shape[1]
        part = part_of(device, rows.size)
        sums = self._scratch("sums", count_parts(device, rows.size), width, dtype=wp.float64)
        mean, variance = (self._scratch(name, width, dtype=wp.float64) for name in ("mean", "variance"))
        mean.zero_()
        variance.zero_()
        launch(add_values, sums.shape, [batch, rows, part], [sums])
        launch(add_sums, width, [sums, rows.size], [mean])
        launch(add_squares, sums.shape, [batch, rows, part, mean], [sums])
        launch(add_sums, width, [sums, rows.size], [variance])
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
        launch(merge_statistics, 1, [rows.size, *self._moments(batch, rows)], statistics)

    def __call__(self, values: wp.array) -> wp.array:
        """Return the normalised values, ``(rows, width)`` float32."""
        normal = self._scratch("normal", *values.shape)
        launch(normalize, values.shape, [values, self.mean, self.variance, self.limit], [normal])
        return normal

    def inverse(self, normal: wp.array) -> wp.array:
        """Undo the normalisation of `normal`, except for the clipping."""
        values = self._scratch("values", *normal.shape)
        launch(denormalize, normal.shape, [normal, self.mean, self.variance], [values])
        return values


def statistics_of(normalizers: Mapping[str, Normalizer]) -> dict[str, wp.array]:
    """Return the arrays of normalisers, by their names in an agent's state."""
    return {
        f"normalizers.{name}.{statistic}": getattr(normalizer, statistic)
        for name, normalizer in normalizers.items()
        for statistic in ("mean", "variance", "count")
    }
