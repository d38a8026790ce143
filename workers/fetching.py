"""Fetch: the arrays of a tree on their way from a device to the host, all together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workers.by_agent import map_tree
from workers.frameworks import Framework

__all__ = ["Fetch"]


class Fetch:
    """A tree whose arrays on a device travel to the host, where they become NumPy arrays.

    Dictionaries and tuples (named tuples, too) may nest. Everything else stays as it is.
    """

    def __init__(self, tree: Any, framework: Framework, *, wrap: Callable[[Any], Any] = lambda array: array) -> None:
        """Start to copy, without waiting for the device.

        Args:
            tree: The tree.
            framework: The framework of the arrays.
            wrap: Applied to each array that has arrived.
        """
        self._framework = framework
        self._wrap = wrap
        arrays: list[Any] = []
        self._tree = map_tree(lambda value: self._taken(value, arrays), tree)
        self._reading = framework.read_later(arrays) if arrays else None

    def is_ready(self) -> bool:
        """Return whether `result` does not have to wait."""
        return self._reading is None or self._reading.is_ready()

    def result(self) -> Any:
        """Wait for the arrays, and return the tree."""
        if self._reading is None:
            return self._tree
        values = self._reading.result()
        return map_tree(lambda value: self._wrap(values[value]) if type(value) is _Place else value, self._tree)

    def _taken(self, value: Any, arrays: list[Any]) -> Any:
        if not self._framework.is_array(value) or self._framework.is_on_host(value):
            return value
        arrays.append(value)
        return _Place(len(arrays) - 1)


class _Place(int):
    """The place of an array among those that travel."""
