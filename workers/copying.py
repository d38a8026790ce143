"""Copies of arrays and of the containers that hold them, which an environment may write again."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

__all__ = ["copy_containers"]

_ATOMS = {bool, int, float, complex, str, bytes, type(None), np.bool_, np.int32, np.int64, np.float32, np.float64}
_CONTAINERS = (np.ndarray, dict, list, deque, set, bytearray, SimpleNamespace)


def copy_containers(value: Any) -> Any:
    """Copy arrays, dictionaries, lists, tuples, deques, sets and dataclasses, also nested in each other.

    Anything else, such as a lock, a socket, a generator or a module, is passed on as it is. So is a container whose
    class cannot be copied.
    """
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is np.ndarray and value.dtype.kind != "O":  # in a fifth of the time
        return value.copy("K")
    return _copy(value, {})


def _copy(value: Any, copies: dict[int, Any]) -> Any:
    """Copy a value. `copies` has the copies so far by id: containers may hold each other, or themselves."""
    if type(value) in _ATOMS:
        return value
    if id(value) not in copies:
        try:
            copies[id(value)] = _copy_one(value, copies)
        except Exception:  # the classes are the user's
            copies[id(value)] = value
    return copies[id(value)]


def _copy_one(value: Any, copies: dict[int, Any]) -> Any:
    if isinstance(value, tuple):
        items = [_copy(item, copies) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    is_record = is_dataclass(value) and not isinstance(value, type)
    if is_record or isinstance(value, _CONTAINERS):
        copies[id(value)] = new = copy.copy(value)
        if isinstance(value, (dict, list, deque, np.ndarray)):
            for place, item in _items(value):
                new[place] = _copy(item, copies)
        elif is_record or isinstance(value, SimpleNamespace):
            for name in [field.name for field in fields(value)] if is_record else vars(value):
                with suppress(AttributeError):  # a field without a value
                    object.__setattr__(new, name, _copy(getattr(value, name), copies))
        return new
    is_array = hasattr(type(value), "__array__") and not isinstance(value, np.generic)
    return copy.deepcopy(value) if is_array else value


def _items(container: Any) -> Iterable[tuple[Any, Any]]:
    """Return the places and values of the items that may be containers themselves."""
    if isinstance(container, dict):
        return container.items()
    if not isinstance(container, np.ndarray):
        return enumerate(container)
    return ((index, container[index]) for index in np.ndindex(container.shape)) if container.dtype == object else ()
