"""What all Warp kernels share: types, launches, memory of results; and the kernels of storage."""

# Warp compiles kernels by its own types and rules: `float(0.0)` is a variable, `0.0` a constant.
# mypy: ignore-errors

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

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
    "count_parts",
    "kernel",
    "launch",
    "on_host",
    "part_of",
    "read",
]

Matrix, Vector, PreciseVector = wp.array2d[float], wp.array1d[float], wp.array1d[wp.float64]
PreciseMatrix = wp.array2d[wp.float64]
Indices, Flags = wp.array1d[int], wp.array2d[wp.bool]


BLOCK = 256
"""Threads of a block in every launch on a GPU: a module is compiled anew for each number."""

PART = 256
"""Rows that one thread or block adds up on a GPU: few enough for many of them, and a multiple of a tile's depth."""


MODULE = wp.get_module("workers.agents.warp")


def kernel(function: Callable[..., None]) -> wp.Kernel:
    """Make a kernel without a backward pass, in one module with all others: each module takes time to compile."""
    return wp.kernel(function, enable_backward=False, grid_stride=False, module=MODULE)


def on_host(device: Any) -> bool:
    """Return whether a device is a CPU, whose arrays can be read without waiting."""
    return wp.get_device(device).is_cpu


def part_of(device: Any, rows: int) -> int:
    """Return the number of rows whose sum is a part of a sum over `rows`, in a fixed order.

    Atomic additions would need no parts, but their order differs from run to run on a GPU. A CPU has one thread.
    """
    return max(rows, 1) if on_host(device) else PART


def count_parts(device: Any, rows: int) -> int:
    """Return the number of parts of a sum over some rows."""
    return math.ceil(rows / part_of(device, rows))


def read(array: wp.array) -> npt.NDArray[Any]:
    """Return the values, waiting for the current stream only; `wp.array.numpy` waits for all streams of the device."""
    host = wp.empty_like(array, device="cpu")
    wp.copy(host, array)
    if array.device.is_cuda:
        wp.synchronize_stream(array.device.stream)
    return host.numpy()


class Scratch:
    """A cache of result arrays on the default device, one for each name and shape."""

    def __init__(self) -> None:
        self._device = wp.get_device().alias
        self._arrays: dict[Any, wp.array] = {}

    def __call__(self, name: str, *shape: int, dtype: Any = wp.float32) -> wp.array:
        """Return the array of this name and shape, with the values last written to it."""
        key = (name, shape)
        if key not in self._arrays:
            self._arrays[key] = wp.zeros(shape, dtype=dtype, device=self._device)
        return self._arrays[key]


def launch(kernel: Any, dim: int | tuple[int, ...], inputs: Sequence[Any], outputs: Sequence[wp.array]) -> None:
    """Launch a kernel on the device of its outputs."""
    wp.launch(kernel, dim=dim, inputs=inputs, outputs=outputs, device=outputs[0].device)


def cast(source: wp.array, target: wp.array) -> None:
    """Copy values to an array of the same shape and any dtype, layout and device."""
    wp.utils.array_cast(source.to(target.device), target)


@kernel
def advance(by: int, counter: Indices) -> None:
    """Add `by` to the last element of `counter`."""
    counter[counter.shape[0] - 1] += by


@kernel
def add_sums(sums: PreciseMatrix, count: wp.float64, totals: PreciseVector) -> None:
    """Add the sums of all parts of a column, divided by `count`, to a total."""
    column = wp.tid()
    total = wp.float64(0.0)
    for index in range(sums.shape[0]):
        total += sums[index, column]
    totals[column] += total / count


@kernel
def end_episodes(terminated: Flags, truncated: Flags, continues: Flags, cut: Flags) -> None:
    """Compute whether each episode continues, and whether it was truncated but not terminated."""
    row = wp.tid()
    continues[row, 0] = not (terminated[row, 0] or truncated[row, 0])
    cut[row, 0] = truncated[row, 0] and not terminated[row, 0]


@kernel
def add_next_values(values: Matrix, mask: Flags, discount_factor: float, rewards: Matrix) -> None:
    """Add discounted values to the rewards of the rows selected by `mask`."""
    row = wp.tid()
    if mask[row, 0]:
        rewards[row, 0] += discount_factor * values[row, 0]


@kernel
def gather(samples: Matrix, rows: Indices, batch: Matrix) -> None:
    """Copy the samples of some rows to a batch."""
    row, column = wp.tid()
    batch[row, column] = samples[rows[row], column]
