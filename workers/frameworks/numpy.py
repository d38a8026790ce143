"""Adapter for NumPy, the reference for the other frameworks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.frameworks.base import Framework

__all__ = ["FRAMEWORK"]


class NumpyFramework(Framework):
    """NumPy arrays. `workers.seeding` handles NumPy's global generator."""

    name = "numpy"

    def is_array(self, value: object) -> bool:
        return isinstance(value, np.ndarray)

    def from_numpy(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.array(array, order="C")

    def to_numpy(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return array

    def from_plain(self, values: npt.NDArray[Any], tag: str) -> npt.NDArray[Any]:
        """Return the numbers in the array of another framework."""
        if tag == "bfloat16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values

    def copy(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.array(array, order="C")

    def split(self, array: npt.NDArray[Any], sizes: Sequence[int]) -> list[npt.NDArray[Any]]:
        return [np.array(part, order="C") for part in np.split(array, np.cumsum(sizes)[:-1])]

    def concatenate(self, arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return np.ascontiguousarray(np.concatenate(arrays))

    def select(
        self, mask: npt.NDArray[np.bool_], chosen: npt.NDArray[Any], other: npt.NDArray[Any]
    ) -> npt.NDArray[Any]:
        return np.where(mask.reshape(-1, *[1] * (other.ndim - 1)), chosen, other)

    def zeros_like(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.zeros_like(array)


FRAMEWORK = NumpyFramework()
