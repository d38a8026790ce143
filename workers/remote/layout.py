"""The layout of an array tree on the wire, and the check of one that has arrived.

A layout is made of nested tuples, which begin with a kind of node:

- ``(ARRAY | FRAMEWORK_ARRAY, dtype, shape, offset)``
- ``(DICT, keys, nodes)`` if all keys are strings, else ``(DICT_OF_OTHER_KEYS, keys, nodes, owners, type names)``
- ``(TUPLE, class, nodes)``
- ``(SCALAR | PICKLED, index)``
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
_MOST_FIELDS = 10_000
_ALIGNED_STRUCT = 0x80
"""Flag of a dtype."""

_BYTES, _STR, _VOID, _DATETIME, _TIMEDELTA, _FIRST_OF_USERS = 18, 19, 20, 21, 22, 256
"""Numbers of NumPy's types."""


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
        self._dtypes: set[int] = set()

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
            _require(_is_tuple_class(node[1], len(nodes)), "a tuple is of a class that is none")
        else:
            _check_keys(kind, len(nodes), node[1], *node[3:])
        return nodes

    def _add_array(self, dtype: Any, shape: Any, offset: Any) -> None:
        if id(dtype) not in self._dtypes:  # equal ones have been pickled once
            _require(_is_sound(dtype) and dtype.subdtype is None, "a dtype is not one that is sent as bytes")
            self._dtypes.add(id(dtype))
        _require(_is_shape(shape), "a shape is none")
        _require(prod(filter(None, shape)) * dtype.itemsize <= _MOST_ELEMENTS, "a shape is too large")
        _require(type(offset) is int and offset == self.size, "the arrays do not follow each other")
        size = prod(shape) * dtype.itemsize
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
        _require(all(type(owner) is int and -1 <= owner < length for owner in owners), "a mask is of no key")
        _require(type(types) is tuple and len(types) == length, "the types are not as many as the keys")
        _require(all(type(name) is str for name in types), "the type of a key is not a name")
    try:
        are_unique = len(set(keys)) == length
    except Exception as error:  # the classes are the user's
        raise DamagedError(f"the layout of a message has a key without a hash: {type(error).__name__}") from error
    _require(are_unique, "a key occurs twice")


@lru_cache(maxsize=1024)
def goes_as_bytes(dtype: np.dtype[Any]) -> bool:
    """Return whether arrays of a dtype are sent as their bytes; others are pickled."""
    return _is_sound(dtype)


def _is_sound(dtype: Any) -> bool:
    """Return whether a dtype has bytes, which are no objects, and is what NumPy itself makes of its description.

    A pickle can make others: NumPy then reads objects from arbitrary addresses, or writes beyond the array. Nothing is
    done with such a dtype but to read its attributes: to compare or to hash it may crash as well.
    """
    try:
        return issubclass(type(dtype), np.dtype) and dtype.itemsize > 0 and _Rebuilding().of(dtype, 1) is not None
    except Exception:  # NumPy's; which one depends on the fault
        return False


class _Rebuilding:
    """Makes dtypes anew from their descriptions."""

    def __init__(self) -> None:
        self._fields = 0

    def of(self, dtype: np.dtype[Any], level: int) -> np.dtype[Any] | None:
        """Return the dtype that NumPy makes of the same description; None if it differs, or holds objects."""
        self._fields += 1
        if level > MOST_LEVELS or self._fields > _MOST_FIELDS:
            return None
        if dtype.fields is not None:
            made = self._structured(dtype, level)
        elif dtype.subdtype is not None:
            made = self._subarray(dtype, level)
        else:
            made = _plain(dtype)
        if made is None or made.hasobject or _attributes(made) != _attributes(dtype):
            return None
        is_sound = isinstance(dtype.metadata, (Mapping, type(None))) and 0 < dtype.alignment <= ALIGNMENT
        return made if is_sound else None

    def _structured(self, dtype: np.dtype[Any], level: int) -> np.dtype[Any] | None:
        names, fields = dtype.names, dtype.fields
        if type(names) is not tuple or fields is None or not issubclass(dtype.type, np.void):
            return None
        formats, offsets, titles = [], [], []
        for name in names:
            field, offset, *title = fields[name]
            made = self.of(field, level + 1) if issubclass(type(field), np.dtype) else None
            if made is None or type(offset) is not int or not 0 <= offset <= dtype.itemsize - made.itemsize:
                return None
            formats.append(made)
            offsets.append(offset)
            titles.append(title[0] if title else None)
        if any(type(name) is not str for name in (*names, *filter(None, titles))):
            return None
        if len(fields) != len({*names, *filter(None, titles)}):
            return None
        parts = {"names": names, "formats": formats, "offsets": offsets, "titles": titles, "itemsize": dtype.itemsize}
        made = np.dtype(parts, align=bool(dtype.flags & _ALIGNED_STRUCT))  # type: ignore[call-overload]
        return made if dtype.type is np.void else np.dtype((dtype.type, made))

    def _subarray(self, dtype: np.dtype[Any], level: int) -> np.dtype[Any] | None:
        assert dtype.subdtype is not None
        base, shape = dtype.subdtype
        made = self.of(base, level + 1) if _is_shape(shape) else None
        return None if made is None else np.dtype((made, shape))


def _plain(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype that has neither fields nor a shape."""
    if dtype.num == _BYTES:
        made = np.dtype(f"S{dtype.itemsize}")
    elif dtype.num == _STR:
        made = np.dtype(f"U{dtype.itemsize // 4}")
    elif dtype.num == _VOID:
        made = np.dtype(f"V{dtype.itemsize}")
    elif dtype.num in (_DATETIME, _TIMEDELTA):
        unit, count = np.datetime_data(dtype)
        made = np.dtype(f"{dtype.char}8" if unit == "generic" else f"{dtype.char}8[{count}{unit}]")
    else:
        made = np.dtype(dtype.char if dtype.num < _FIRST_OF_USERS else dtype.type)
    return made if made.byteorder == dtype.byteorder else made.newbyteorder(dtype.byteorder)


def _attributes(dtype: np.dtype[Any]) -> tuple[Any, ...]:
    return type(dtype), dtype.type, dtype.num, dtype.itemsize, dtype.byteorder, dtype.names, dtype.flags
