"""Arrivals: calls that need values from a device, made once these are on the host."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from workers.fetching import Fetch
from workers.frameworks import Framework

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
        self._waiting: deque[tuple[Callable[..., object], Fetch]] = deque()

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function, now or later.

        Args:
            function: The function.
            args: Its arguments: what `Fetch` takes.
        """
        if not self._waiting and not self._framework.has_devices():
            function(*args)
            return
        self._waiting.append((function, Fetch(args, self._framework)))
        while self._waiting and self._waiting[0][1].is_ready():
            self._make_next()

    def flush(self) -> None:
        """Make all calls, and wait for what they need."""
        while self._waiting:
            self._make_next()

    def _make_next(self) -> None:
        function, fetch = self._waiting.popleft()
        function(*fetch.result())
