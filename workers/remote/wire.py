"""The wire format of array trees: a description of the tree and one block of bytes.

The description is the same in every iteration, so it need not be sent again. Framework arrays travel as NumPy arrays
and are rebuilt on arrival.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from workers.frameworks import Framework
from workers.types import Outcome

__all__ = ["FrameworkArray", "Packed", "from_wire", "read_outcome", "to_wire"]

_ALIGNMENT = 64
_ARRAY, _FRAMEWORK_ARRAY, _DICT, _TUPLE, _OTHER = range(5)


@dataclass(frozen=True, slots=True)
class FrameworkArray:
    """The values of an array that becomes a framework array on arrival."""

    values: npt.NDArray[Any]


class Packed(NamedTuple):
    """A tree in wire format.

    Attributes:
        spec: Structure of the tree, with dtype, shape and offset of each array: nested tuples that can be compared.
        others: The leaves that are not arrays, and arrays of objects.
        data: The bytes of all arrays; None if they are in memory that sender and receiver share.
        size: Number of these bytes.
    """

    spec: tuple[Any, ...]
    others: tuple[Any, ...]
    data: Any
    size: int


def to_wire(tree: Any, framework: Framework, into: Any = None) -> Packed:
    """Copy all arrays of `tree` into one block. Tuples (including named tuples) and dictionaries may nest.

    Args:
        tree: Arrays of the framework (or `FrameworkArray` in their place), NumPy arrays, and anything picklable.
        framework: The framework whose arrays `tree` may contain.
        into: Writable memory for the arrays if they fit, instead of a new block.
    """
    arrays: list[npt.NDArray[Any]] = []
    stops = [0]
    others: list[Any] = []
    spec = _flatten(tree, framework, arrays, stops, others)
    size = stops[-1]
    data = None if into is not None and size <= len(into) else bytearray(size)
    block = into if data is None else data
    for array, start in zip(arrays, stops, strict=False):
        np.ndarray(array.shape, array.dtype, block, start)[...] = array
    return Packed(spec, tuple(others), data, size)


def _flatten(
    tree: Any, framework: Framework, arrays: list[npt.NDArray[Any]], stops: list[int], others: list[Any]
) -> tuple[Any, ...]:
    """Return the description of a tree and append its leaves to the lists."""
    if framework.is_array(tree):
        kind, array = _FRAMEWORK_ARRAY, framework.to_numpy(tree)
    elif isinstance(tree, dict):
        values = [_flatten(value, framework, arrays, stops, others) for value in tree.values()]
        return _DICT, tuple(tree), tuple(values)
    elif isinstance(tree, tuple):
        values = [_flatten(value, framework, arrays, stops, others) for value in tree]
        return _TUPLE, type(tree) if hasattr(tree, "_fields") else tuple, tuple(values)
    elif isinstance(tree, np.ndarray) and not tree.dtype.hasobject:
        kind, array = _ARRAY, tree
    elif isinstance(tree, FrameworkArray):
        kind, array = _FRAMEWORK_ARRAY, tree.values
    else:
        others.append(tree)
        return _OTHER, len(others) - 1
    start = stops[-1]
    arrays.append(array)
    stops.append(start + (array.nbytes + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT)
    return kind, array.dtype, array.shape, start


def from_wire(packed: Packed, framework: Framework) -> Any:
    """Return the tree that was passed to `to_wire`, with new arrays."""

    def make(kind: int, array: npt.NDArray[Any]) -> Any:
        return framework.from_numpy(array) if kind == _FRAMEWORK_ARRAY else array.copy()

    return _build(packed.spec, packed, make)


def read_outcome(packed: Packed, framework: Framework) -> Outcome:
    """Return the outcome that was passed to `to_wire`; its infos contain new arrays.

    The other arrays are NumPy views of the block: copy them before the block is reused.
    """
    *arrays, infos = packed.spec[2]
    values = [_build(spec, packed, _as_it_is) for spec in arrays]
    values.append(from_wire(packed._replace(spec=infos), framework) if infos[1] else {})
    return Outcome._make(values)


def _as_it_is(_: int, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array


def _build(spec: tuple[Any, ...], packed: Packed, make: Callable[[int, npt.NDArray[Any]], Any]) -> Any:
    kind = spec[0]
    if kind <= _FRAMEWORK_ARRAY:
        _, dtype, shape, offset = spec
        return make(kind, np.ndarray(shape, dtype, packed.data, offset))
    if kind == _DICT:
        return {key: _build(value, packed, make) for key, value in zip(spec[1], spec[2], strict=True)}
    if kind == _TUPLE:
        values = [_build(value, packed, make) for value in spec[2]]
        return tuple(values) if spec[1] is tuple else spec[1](*values)
    return packed.others[spec[1]]
