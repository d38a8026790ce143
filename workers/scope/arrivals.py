"""Arrivals: calls that need values from a device, made once these are on the host."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from workers.frameworks import Framework, Reading

__all__ = ["Arrivals"]


class Arrivals:
    """Calls in their order, each as soon as the arrays that it needs have arrived; nothing waits for the device.

    Calls whose arrays are on the host are made at once, unless earlier ones wait.
    """

    def __init__(self, framework: Framework) -> None:
        """Start without calls.

        Args:
            framework: The framework of the arrays.
        """
        self._framework = framework
        self._waiting: deque[tuple[Reading, Callable[..., object], Any]] = deque()

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function, now or later.

        Args:
            function: The function.
            args: Its arguments: arrays, or dictionaries of them, which may nest. Arrays on a device, and those that
                must wait for them, become NumPy arrays.
        """
        arrays: list[Any] = []
        args = tuple(self._taken(arg, arrays) for arg in args)
        if arrays or self._waiting:
            self._waiting.append((self._framework.read_later(arrays), function, args))
            while self._waiting and self._waiting[0][0].is_ready():
                self._make_next()
        else:
            function(*args)

    def flush(self) -> None:
        """Make all calls, and wait for what they need."""
        while self._waiting:
            self._make_next()

    def _make_next(self) -> None:
        reading, function, args = self._waiting.popleft()
        values = reading.result()
        function(*(_given(arg, values) for arg in args))

    def _taken(self, value: Any, arrays: list[Any]) -> Any:
        """Return a value with places instead of its arrays on a device, which are appended to `arrays`."""
        if isinstance(value, dict):
            return {key: self._taken(each, arrays) for key, each in value.items()}
        if not self._framework.is_array(value) or self._framework.is_on_host(value):
            return value
        arrays.append(value)
        return _Place(len(arrays) - 1)


class _Place(int):
    """The place of an array among those that are read."""


def _given(value: Any, values: list[Any]) -> Any:
    if isinstance(value, dict):
        return {key: _given(each, values) for key, each in value.items()}
    return values[value] if type(value) is _Place else value
