"""The layout of an array tree on the wire, and the check of one that has arrived.

A layout is made of nested tuples, which begin with a kind of node:

- ``(ARRAY | FRAMEWORK_ARRAY, dtype, shape, offset)``; the dtype is a text, see `describe`
- ``(DICT, keys, nodes)`` if all keys are strings, else ``(DICT_OF_OTHER_KEYS, keys, nodes, owners, type names)``
- ``(TUPLE, class, nodes)``
- ``(SCALAR | PICKLED, index)``
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "ALIGNMENT",
    "ARRAY",
    "DICT",
    "DICT_OF_OTHER_KEYS",
    "FRAMEWORK_ARRAY",
    "MOST_LEVELS",
    "PICKLED",
    "SCALAR",
    "TUPLE",
    "DamagedError",
    "Layout",
    "check_layout",
    "describe",
    "goes_as_bytes",
    "is_small",
]

ARRAY, FRAMEWORK_ARRAY, DICT, DICT_OF_OTHER_KEYS, TUPLE, SCALAR, PICKLED = range(7)

ALIGNMENT = 64
"""Offsets of arrays are multiples of this number of bytes."""

MOST_LEVELS = 100
"""How deep a tree may be."""


_LENGTHS = {ARRAY: 4, FRAMEWORK_ARRAY: 4, DICT: 3, DICT_OF_OTHER_KEYS: 5, TUPLE: 3, SCALAR: 2, PICKLED: 2}
_MOST_BYTES = 2**40
_MOST_ELEMENTS = 2**63 - 1
_MOST_DIMENSIONS = 64
_MOST_PARTS = 1000
_LONGEST_DTYPE = 32
"""Most characters of the text of a dtype."""

_DESCRIPTION = re.compile(r"[<>|][biufcSUVMm][0-9]+(\[([1-9][0-9]*)?[A-Za-z]+\])?|[a-z][a-z0-9_]*")
"""What `describe` returns. NumPy divides by zero in some other texts."""

_BUILT_IN, _OF_OTHER_PACKAGES = 1, 2
"""`isbuiltin` of NumPy's dtypes of one size, and of those that another package has added, such as bfloat16."""


class DamagedError(ConnectionError):
    """A message that no healthy peer sends."""


class Layout(NamedTuple):
    """A layout that was checked.

    Attributes:
        spec: The layout.
        size: Bytes of all arrays.
        others: Number of the other leaves.
    """

    spec: tuple[Any, ...]
    size: int
    others: int


def check_layout(spec: Any) -> Layout:
    """Check a layout that another process sent: whatever its tree is built from is then in range.

    It must be one that `workers.remote.wire.to_wire` makes. No node may occur twice, so the time is bounded by what was
    sent. No code of other classes runs than that of keys and of named tuples.

    Args:
        spec: The layout, as unpickled.

    Raises:
        DamagedError: It is not the layout of any tree.
    """
    checks = _Checks()
    todo = [(spec, 1)]
    while todo:
        node, level = todo.pop()
        _require(level <= MOST_LEVELS, f"it has more than {MOST_LEVELS} levels")
        todo += [(child, level + 1) for child in reversed(checks.children(node))]
    return Layout(spec, checks.size, checks.others)


class _Checks:
    """The checks of all nodes, in the order in which `to_wire` adds their leaves."""

    def __init__(self) -> None:
        self.size = 0
        self.others = 0
        self._seen: set[int] = set()

    def children(self, node: Any) -> tuple[Any, ...]:
        """Check a node and return the nodes in it."""
        _require(type(node) is tuple and len(node) > 1, "a node is not a tuple")
        _require(id(node) not in self._seen, "a node occurs twice")
        self._seen.add(id(node))
        kind = node[0]
        _require(type(kind) is int and _LENGTHS.get(kind) == len(node), "a node is of no known kind")
        if kind <= FRAMEWORK_ARRAY:
            self._add_array(*node[1:])
            return ()
        if kind >= SCALAR:
            _require(type(node[1]) is int and node[1] == self.others, "the leaves are not numbered in order")
            self.others += 1
            return ()
        nodes: tuple[Any, ...] = node[2]
        _require(type(nodes) is tuple, "the nodes in a node are not a tuple")
        if kind == TUPLE:
            _require(_is_tuple_class(node[1], len(nodes)), "the class of a tuple is not one of tuples")
        else:
            _check_keys(kind, len(nodes), node[1], *node[3:])
        return nodes

    def _add_array(self, dtype: Any, shape: Any, offset: Any) -> None:
        is_short = type(dtype) is str and len(dtype) <= _LONGEST_DTYPE
        item_size = _item_size(dtype) if is_short else 0
        _require(item_size > 0, "a dtype is not one that is sent as bytes")
        _require(_is_shape(shape), "a shape is not a tuple of lengths")
        _require(prod(filter(None, shape)) * item_size <= _MOST_ELEMENTS, "a shape is too large")
        _require(type(offset) is int and offset == self.size, "the arrays do not follow each other")
        size = prod(shape) * item_size
        self.size += (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
        _require(self.size <= _MOST_BYTES, "the arrays are too large")


def _require(condition: bool, fault: str) -> None:
    if not condition:
        raise DamagedError(f"the layout of a message is damaged: {fault}")


def _is_shape(shape: Any) -> bool:
    return (
        type(shape) is tuple
        and len(shape) <= _MOST_DIMENSIONS
        and all(type(length) is int and 0 <= length <= _MOST_ELEMENTS for length in shape)
    )


def _is_tuple_class(kind: Any, length: int) -> bool:
    """Return whether a class is `tuple`, or a class of named tuples with `length` fields."""
    if kind is tuple:
        return True
    if not (issubclass(type(kind), type) and issubclass(kind, tuple)):
        return False
    try:
        fields = kind._fields
    except Exception:  # the class is the user's
        return False
    return type(fields) is tuple and len(fields) == length


def is_small(key: Any) -> bool:
    """Return whether a key has few parts: to hash or to print a tuple or a frozenset takes time for each."""
    parts, todo = 1, [key]
    while todo:
        part = todo.pop()
        kind = type(part)
        members: Iterable[Any] = ()
        if issubclass(kind, tuple):
            members = tuple.__iter__(part)
            parts += tuple.__len__(part)
        elif issubclass(kind, frozenset):
            members = frozenset.__iter__(part)
            parts += frozenset.__len__(part)
        if parts > _MOST_PARTS:
            return False
        todo += members
    return True


def _check_keys(kind: int, length: int, keys: Any, owners: Any = None, types: Any = None) -> None:
    _require(type(keys) is tuple and len(keys) == length, "the keys of a dictionary are not as many as its values")
    if kind == DICT:
        _require(all(type(key) is str for key in keys), "a key is not a string")
    else:
        _require(all(map(is_small, keys)), "a key has too many parts")
        _require(type(owners) is tuple and len(owners) == length, "the masks are not as many as the keys")
        _require(all(type(owner) is int and -1 <= owner < length for owner in owners), "a mask belongs to no key")
        _require(type(types) is tuple and len(types) == length, "the types are not as many as the keys")
        _require(all(type(name) is str for name in types), "the type of a key is not a name")
    try:
        are_unique = len(set(keys)) == length
    except Exception as error:  # the classes are the user's
        raise DamagedError(f"the layout of a message has a key without a hash: {type(error).__name__}") from error
    _require(are_unique, "a key occurs twice")


def goes_as_bytes(dtype: np.dtype[Any]) -> bool:
    """Return whether arrays of a dtype are sent as their bytes; others, such as those with fields, are pickled."""
    if dtype.isbuiltin == _BUILT_IN:
        return not dtype.hasobject and dtype.itemsize > 0
    # not those of other packages, which the receiver may not have imported
    return not (dtype.isbuiltin or dtype.names or dtype.metadata) and _item_size(dtype.str) > 0


@lru_cache(maxsize=1024)
def describe(dtype: np.dtype[Any]) -> str:
    """Return the text from which `np.dtype` makes a dtype without fields.

    A pickled dtype is no good for this: NumPy does not check it, and a damaged one makes it read and write anywhere.
    """
    return dtype.name if dtype.isbuiltin == _OF_OTHER_PACKAGES else dtype.str


@lru_cache(maxsize=1024)
def _item_size(text: str) -> int:
    """Return the bytes of an element of the dtype that `describe` describes; 0 if there is none with elements."""
    if not _DESCRIPTION.fullmatch(text):
        return 0
    try:
        dtype = np.dtype(text)
    except (TypeError, ValueError):
        return 0
    return dtype.itemsize if describe(dtype) == text and not dtype.hasobject else 0
