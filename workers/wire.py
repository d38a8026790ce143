"""What crosses a wire: trees of NumPy arrays. The framework's arrays are made on arrival."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.frameworks import Framework

__all__ = ["from_wire", "to_wire"]


@dataclass(frozen=True)
class _FrameworkArray:
    """The values of an array of the framework."""

    values: npt.NDArray[Any]


def to_wire(tree: Any, framework: Framework) -> Any:
    """A copy of `tree` in which the framework's arrays are NumPy's. Tuples (named ones too) and dictionaries nest."""
    if framework.is_array(tree):
        return _FrameworkArray(np.array(framework.to_numpy(tree)))
    if isinstance(tree, np.ndarray):
        return tree.copy()
    return _map(tree, to_wire, framework)


def from_wire(tree: Any, framework: Framework) -> Any:
    """The tree that `to_wire` was given, with fresh arrays."""
    if isinstance(tree, _FrameworkArray):
        return framework.from_numpy(tree.values)
    if isinstance(tree, np.ndarray):
        return tree.copy()
    return _map(tree, from_wire, framework)


def _map(tree: Any, convert: Any, framework: Framework) -> Any:
    if isinstance(tree, dict):
        return {key: convert(value, framework) for key, value in tree.items()}
    if isinstance(tree, tuple):
        values = [convert(value, framework) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else tuple(values)
    return tree
