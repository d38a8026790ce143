"""Values of attributes as trees of plain data, and back.

A tree consists of None, bools, numbers, strings, bytes, arrays of NumPy and of the framework, lists, tuples and
dictionaries with strings as keys. Everything else is described by a dictionary with the key ``"is"``.
"""

from __future__ import annotations

import functools
import logging
import re
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, GenericAlias, MethodType, ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import Space
from gymnasium.envs.registration import EnvSpec

from workers.envs.base import EnvFactory
from workers.envs.statistics import is_statistic
from workers.errors import type_name
from workers.frameworks import Framework

__all__ = [
    "STATIC",
    "Unsuitable",
    "are_attributes",
    "decode",
    "encode",
    "is_encoded",
    "is_record",
    "same",
    "stack",
]


class Unsuitable(Exception):
    """A form cannot keep, or could not restore, an environment; the message says why in a few words."""


STATIC = object()
"""What `encode` returns for values that do not change: functions, spaces and the like."""

_ATOMS = (type(None), bool, int, float, str, bytes)
_STATIC_TYPES = (
    FunctionType, BuiltinFunctionType, MethodType, ModuleType, GenericAlias, type, Space, EnvSpec, EnvFactory, Enum,
    np.dtype, np.ufunc, PurePath, logging.Logger, re.Pattern, Framework, functools.partial, slice, range,
)  # fmt: skip
_MOST_FIELDS = 20
_GATHERED = {"set": set, "frozenset": frozenset, "dict": dict, "ordered": OrderedDict}


def encode(value: Any, framework: Framework, _above: tuple[int, ...] = ()) -> Any:
    """Return a value as a tree that shares no memory with it; `STATIC` for what does not change.

    A container is static if anything in it is. An object of numbers only is described by its attributes.

    Raises:
        Unsuitable: It is neither.
    """
    kind = type(value)
    if kind in _ATOMS:
        return value
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return {"is": "scalar", "value": np.asarray(value)}
    if kind is np.ndarray and value.dtype.kind in "biuf":
        return value.copy()
    if framework.is_array(value):
        return framework.copy(value)
    if isinstance(value, _STATIC_TYPES) or framework.is_static(value):
        return STATIC
    if id(value) in _above:
        raise Unsuitable(f"a {type_name(kind)} contains itself")
    above = (*_above, id(value))
    if kind in (list, tuple):
        parts = [encode(part, framework, above) for part in value]
        return STATIC if any(part is STATIC for part in parts) else kind(parts)
    return _encode_described(value, kind, framework, above)


def is_record(value: Any) -> bool:
    """Return whether an object consists of numbers, such as running statistics and counters."""
    if isinstance(value, _STATIC_TYPES) or type(value).__module__ == "builtins" or not hasattr(value, "__dict__"):
        return False
    if is_statistic(value):
        return True
    fields = vars(value).values()
    return 0 < len(fields) <= _MOST_FIELDS and all(type(field) in _ATOMS for field in fields)


def _encode_described(value: Any, kind: type, framework: Framework, above: tuple[int, ...]) -> Any:
    described: dict[str, Any]
    if kind in (dict, OrderedDict):
        described = {"is": "dict" if kind is dict else "ordered", "items": [list(item) for item in value.items()]}
    elif kind in (set, frozenset):
        described = {"is": kind.__name__, "items": list(value)}
    elif kind is deque:
        described = {"is": "deque", "maxlen": value.maxlen, "items": list(value)}
    elif is_record(value):
        fields = {name: encode(field, framework, above) for name, field in vars(value).items()}
        return {"is": "object", "attributes": {name: part for name, part in fields.items() if part is not STATIC}}
    else:
        raise Unsuitable(f"a {type_name(kind)}")
    items = encode(described["items"], framework, above)
    return STATIC if items is STATIC else described | {"items": items}


def decode(tree: Any, framework: Framework, current: Any = None, *, in_place: bool = False) -> Any:
    """Return the value of a tree, which shares no memory with the tree.

    Args:
        tree: A tree of `encode`.
        framework: The framework of its arrays.
        current: The value that it will replace. An object of numbers only gets its attributes.
        in_place: Whether arrays of the same shape and dtype as the current ones are written to those.

    Raises:
        Unsuitable: The current value is of another kind.
    """
    if isinstance(tree, np.ndarray) or framework.is_array(tree):
        return _decode_array(tree, framework, current, in_place)
    if isinstance(tree, (list, tuple)):
        others = current if isinstance(current, (list, tuple)) and len(current) == len(tree) else [None] * len(tree)
        parts = (decode(part, framework, other, in_place=in_place) for part, other in zip(tree, others, strict=True))
        return type(tree)(parts)
    if not isinstance(tree, dict):
        return tree
    kind = tree["is"]
    if kind == "scalar":
        return tree["value"].reshape(())[()]
    if kind == "object":
        if not is_record(current):
            raise Unsuitable(
                f"a {type_name(type(current))} where an object with {list(tree['attributes'])} is expected"
            )
        for name, part in tree["attributes"].items():
            setattr(current, name, decode(part, framework, vars(current).get(name), in_place=in_place))
        return current
    if kind == "deque":
        return deque(decode(tree["items"], framework), tree["maxlen"])
    if kind in ("dict", "ordered") and isinstance(current, dict):
        pairs = [
            (key := decode(one, framework), decode(other, framework, current.get(key), in_place=in_place))
            for one, other in tree["items"]
        ]
        return _GATHERED[kind](pairs)
    return _GATHERED[kind](decode(tree["items"], framework))


def _decode_array(tree: Any, framework: Framework, current: Any, in_place: bool) -> Any:
    write = getattr(current, "copy_", None) or getattr(current, "assign", None)  # torch's and Warp's
    if in_place and type(current) is type(tree) and (current.shape, current.dtype) == (tree.shape, tree.dtype):
        if isinstance(current, np.ndarray):
            np.copyto(current, tree)
            return current
        if write is not None:
            write(tree)
            return current
    if isinstance(tree, np.ndarray):
        return tree.copy()
    copy = framework.copy(tree)  # on the default device
    return framework.to_device(copy, framework.device_of(current)) if framework.is_array(current) else copy


def is_encoded(tree: Any, framework: Framework) -> bool:
    """Return whether a tree has the form of `encode`."""
    if type(tree) in _ATOMS or (isinstance(tree, np.ndarray) and tree.dtype.kind in "biuf"):
        return True
    if isinstance(tree, (list, tuple)):
        return all(is_encoded(part, framework) for part in tree)
    if not isinstance(tree, dict):
        return framework.is_array(tree)
    kind, items = tree.get("is"), tree.get("items")
    if kind == "scalar":
        return isinstance(tree.get("value"), np.ndarray) and tree["value"].size == 1
    if kind == "object":
        return are_attributes(tree.get("attributes"), framework)
    if not isinstance(items, list) or not is_encoded(items, framework):
        return False
    if kind in ("dict", "ordered"):
        return all(isinstance(item, list) and len(item) == 2 for item in items)
    if kind == "deque":
        return tree.get("maxlen") is None or (isinstance(tree["maxlen"], int) and tree["maxlen"] >= 0)
    return kind in ("set", "frozenset")


def are_attributes(tree: Any, framework: Framework) -> bool:
    """Return whether a tree is a dictionary of encoded values by name."""
    return isinstance(tree, dict) and all(
        isinstance(name, str) and is_encoded(part, framework) for name, part in tree.items()
    )


def same(one: Any, other: Any, framework: Framework) -> bool:
    """Return whether two trees of arrays and plain values are equal bit for bit, NaN equal to NaN."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key], framework) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(same(a, b, framework) for a, b in zip(one, other, strict=True))
    if framework.is_array(one) or framework.is_array(other):
        one, other = (_numbers(value, framework) for value in (one, other))
    if isinstance(one, (np.ndarray, np.generic)) or isinstance(other, (np.ndarray, np.generic)):
        one, other = np.asarray(one), np.asarray(other)
        return one.shape == other.shape and one.dtype == other.dtype and _bytes(one) == _bytes(other)
    return bool(one == other) or (one != one and other != other)


def _numbers(value: Any, framework: Framework) -> Any:
    if not framework.is_array(value):
        return value
    if framework.kind(value) == "key":
        value = sys.modules["jax"].random.key_data(value)
    return framework.to_numpy(value)


def _bytes(array: npt.NDArray[Any]) -> bytes:
    """Return the bytes of an array, with one NaN for all of them."""
    return bytes((np.where(np.isnan(array), np.nan, array) if array.dtype.kind == "f" else array).tobytes())


def stack(trees: Sequence[Any]) -> Any:
    """Return a tree of arrays with a new first axis for the trees, which are alike."""
    return _combine(np.stack, trees)


def join(trees: Sequence[Any]) -> Any:
    """Return a tree of new arrays that are joined along the first axis."""
    return _combine(np.concatenate, trees)


def _combine(function: Callable[[Sequence[Any]], Any], trees: Sequence[Any]) -> Any:
    first = trees[0]
    if isinstance(first, dict):
        return {key: _combine(function, [tree[key] for tree in trees]) for key in first}
    if isinstance(first, tuple):
        return tuple(_combine(function, [tree[index] for tree in trees]) for index in range(len(first)))
    return function(trees)
