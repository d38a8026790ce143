"""Nested dictionaries of Warp arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import warp as wp

__all__ = ["fill", "within"]


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
