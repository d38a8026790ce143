"""States that environments, or functions registered for their classes, give and take themselves."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

__all__ = ["own_state", "register_state"]

_registered: dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], None]]] = {}


def register_state(kind: type, *, get_state: Callable[[Any], Any], set_state: Callable[[Any, Any], None]) -> None:
    """Register functions that get and set the state of environments of a class and its subclasses.

    The state must hold everything that the environment's next outputs depend on, and nothing that it still changes. Of
    a single environment, Lockstep adds the states of the generators of NumPy and Python that it finds, and the
    attributes of the wrappers around it. A class that can be changed needs no registration: methods ``get_state()`` and
    ``set_state(state)`` do the same.

    Args:
        kind: A class of single, vector or wrapped environments, or of wrappers around them.
        get_state: Returns the state: dictionaries, lists, tuples, deques, sets, numbers, strings, bools, None, bytes,
            and arrays of NumPy or of the framework.
        set_state: Sets such a state in an environment that was built alike. Single environments are reset before.
    """
    _registered[kind] = get_state, set_state


def own_state(layer: Any) -> tuple[Callable[[], Any], Callable[[Any], None]] | None:
    """Return what gets and sets the state of one layer of an environment; None if it has nothing of the kind."""
    for kind in type(layer).__mro__:
        if kind in _registered:
            get, put = _registered[kind]
            return partial(get, layer), partial(put, layer)
    if not all(callable(getattr(type(layer), name, None)) for name in ("get_state", "set_state")):
        return None
    return (layer.get_state, layer.set_state) if _binds(layer.get_state) and _binds(layer.set_state, None) else None


def _binds(method: Callable[..., Any], *arguments: Any) -> bool:
    try:
        inspect.signature(method).bind(*arguments)
    except (TypeError, ValueError):
        return False
    return True
