"""Nested dictionaries of Warp arrays, and arrays that keep their values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import warp as wp

__all__ = ["fill", "unchanged", "within"]


def fill(arrays: Any, values: Any) -> None:
    """Copy values (NumPy arrays or numbers) to the arrays at the same keys."""
    if isinstance(arrays, dict):
        for key, array in arrays.items():
            fill(array, values[key])
    else:
        arrays.assign(np.broadcast_to(values, arrays.shape))


def within(prefix: str, arrays: Mapping[str, wp.array]) -> dict[str, wp.array]:
    """Return the arrays whose name begins with ``prefix.``, by the rest of their name."""
    return {name[len(prefix) + 1 :]: array for name, array in arrays.items() if name.startswith(f"{prefix}.")}


@contextmanager
def unchanged(*arrays: wp.array | None) -> Iterator[None]:
    """Give arrays the values back at the end that they had at the beginning."""
    kept = [(array, wp.clone(array)) for array in arrays if array is not None]
    try:
        yield
    finally:
        for array, before in kept:
            wp.copy(array, before)
