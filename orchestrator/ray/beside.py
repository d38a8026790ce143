"""What is computed beside the training, in a process of Ray's own."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Generic, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from workers.errors import ClusterError

__all__ = ["RayResult"]

T = TypeVar("T")

_ATTEMPTS = 3
"""How often a function whose process or node died is called again."""

_LONGEST = 3600.0
"""Seconds within which a function returns."""

_LOOK_INTERVAL = 1.0
"""Seconds between two looks at whether Ray is still there."""


class RayResult(Generic[T]):
    """The result of a function that a task of Ray computes; see `orchestrator.base.Result`."""

    def __init__(self, function: Callable[[], T], *, check: Callable[[], None]) -> None:
        """Call the function. It reserves no CPU, so that it need not wait for one.

        Args:
            function: The function. It may be called again if a process dies.
            check: Raises an error if Ray is gone.
        """
        self._check = check
        self._end = monotonic() + _LONGEST
        self._call = ray.remote(num_cpus=0, max_retries=_ATTEMPTS)(_called).remote(function)

    def is_known(self) -> bool:
        """Return whether the function has returned or raised."""
        return bool(ray.wait([self._call], timeout=0)[0])

    def wait(self) -> T:
        """Wait for the function, and return what it returned."""
        while not ray.wait([self._call], timeout=_LOOK_INTERVAL)[0]:
            self._check()
            if monotonic() > self._end:
                self.cancel()
                raise ClusterError(f"what Ray computes beside the training is not done after {_LONGEST:.0f} s")
        try:
            result: T = ray.get(self._call)
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            raise ClusterError(f"what Ray computes beside the training was lost: {error}") from error
        return result

    def cancel(self) -> None:
        """End the function, if it has not returned."""
        ray.cancel(self._call, force=True)


def _called(function: Callable[[], T]) -> T:
    return function()
