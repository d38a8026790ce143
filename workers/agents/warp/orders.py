"""Random orders of samples, drawn on the device."""

# Warp compiles kernels by its own types and rules.
# mypy: ignore-errors

from __future__ import annotations

import warp as wp

from workers.agents.warp import kernels
from workers.agents.warp.kernels import Indices, Scratch, kernel, launch

__all__ = ["draw_orders", "select"]


@kernel
def draw_keys(rows: Indices, noise: Indices, keys: wp.array1d[wp.int64], values: Indices) -> None:
    """Give each row a random key for each epoch, which sorts after those of earlier epochs."""
    epoch, index = wp.tid()
    place = epoch * rows.shape[0] + index
    state = wp.rand_init(noise[0], noise[1] + place)
    keys[place] = wp.int64(epoch) * wp.static(wp.int64(2**32)) + wp.int64(wp.randu(state))
    values[place] = rows[index]


@kernel
def repeat(values: Indices, count: int, orders: wp.array2d[int]) -> None:
    """Fill each epoch's order with its `count` values, repeated to full length."""
    epoch, index = wp.tid()
    orders[epoch, index] = values[epoch * count + index % count]


@kernel
def select(orders: wp.array2d[int], position: Indices, rows: Indices) -> None:
    """Take the next rows of the concatenated `orders`; `position` is the number of rows taken so far."""
    index = wp.tid()
    taken = position[0] + index
    rows[index] = orders[taken / orders.shape[1], taken % orders.shape[1]]


def draw_orders(rows: wp.array, noise: wp.array, epochs: int, samples: int, scratch: Scratch) -> wp.array:
    """Draw a random permutation of `rows` for each epoch, and repeat it to full length, without waiting for the device.

    Args:
        rows: ``(count,)`` int32.
        noise: A seed and the number of draws so far, ``(2,)`` int32.
        epochs: Number of permutations.
        samples: Their full length.
        scratch: Holds the result and the arrays for sorting, which are as large for any `count`.

    Returns:
        ``(epochs, samples)`` int32; the next call overwrites it.
    """
    # sorting needs twice the space
    keys = scratch("keys of rows", 2 * epochs * samples, dtype=wp.int64)
    values = scratch("sorted rows", 2 * epochs * samples, dtype=wp.int32)
    orders = scratch("orders", epochs, samples, dtype=wp.int32)
    launch(draw_keys, (epochs, rows.size), [rows, noise], [keys, values])
    launch(kernels.advance, 1, [epochs * rows.size], [noise])
    with wp.ScopedDevice(keys.device):  # sorts on its current stream
        wp.utils.radix_sort_pairs(keys, values, epochs * rows.size, end_bit=32 + epochs.bit_length())
    launch(repeat, orders.shape, [values, rows.size], [orders])
    return orders
