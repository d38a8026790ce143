"""What Lockstep asks of a framework: a few operations on arrays of rows, and the framework's global random state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

__all__ = ["Framework", "ThreadControl"]

ThreadControl = tuple[Callable[[], int], Callable[[int], None]]
"""What gives a number of compute threads, and what sets it."""


class Framework(ABC):
    """Array operations of one framework.

    What is called *fresh* below is a contiguous array in memory that the framework itself allocated: kernels may give
    other bits for other alignments, so an agent must get arrays of one kind in every mode.
    """

    name: ClassVar[str]

    @abstractmethod
    def is_array(self, value: object) -> bool:
        """Whether `value` is an array of this framework."""

    @abstractmethod
    def from_numpy(self, array: npt.NDArray[Any]) -> Any:
        """A fresh array with the values and the dtype of `array`, on the framework's default device.

        Where the framework has not that dtype it is the narrower one of its kind: JAX has no 64-bit numbers unless they
        are enabled.
        """

    def from_rows(self, parts: Sequence[npt.NDArray[Any]]) -> Any:
        """A fresh array with the rows of all of NumPy's arrays, which are writable, one after the other."""
        return self.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))

    @abstractmethod
    def to_numpy(self, array: Any) -> npt.NDArray[Any]:
        """The values of `array`; may share its memory."""

    @abstractmethod
    def copy(self, array: Any) -> Any:
        """A fresh copy."""

    @abstractmethod
    def split(self, array: Any, sizes: Sequence[int]) -> Sequence[Any]:
        """Fresh copies of consecutive groups of rows: ``sizes[i]`` rows in the i-th."""

    @abstractmethod
    def concatenate(self, arrays: Sequence[Any]) -> Any:
        """The rows of all arrays, one after the other, as a fresh array."""

    @abstractmethod
    def select(self, mask: Any, chosen: Any, other: Any) -> Any:
        """Row i of `chosen` where ``mask[i]``, else of `other`; the mask is NumPy's or the framework's, ``(rows,)``."""

    def flags_for_skrl(self, flags: Any) -> Any:
        """Flags, ``(rows, 1)`` bool, as skrl's agents of this framework take them."""
        return flags

    def no_grad(self) -> AbstractContextManager[Any]:
        """A context without gradients, entered many times but never within itself."""
        return nullcontext()

    def seeded_rng_state(self, seed: int) -> Any:
        """State of the framework's global random generator right after seeding; the generator itself is not touched."""
        return None

    def rng_state(self) -> Any:
        """State of the framework's global random generator; None for a framework without one."""
        return None

    def set_rng_state(self, state: Any) -> None:  # noqa: B027 - nothing to do without a generator
        """Put the framework's global random generator into `state`."""

    def silence(self) -> None:  # noqa: B027 - nothing to do for a framework that prints nothing
        """Keep the framework from printing to the process's output, where results are; its warnings stay."""

    def devices(self) -> list[str]:
        """What the framework can compute on in this process, such as ``["cpu", "cuda:0 (its name)"]``."""
        return ["cpu"]

    def start(self, num_threads: int) -> None:  # noqa: B027 - nothing to do where threads can be set at any time
        """Start the framework with a number of compute threads, if it fixes them for good when it starts.

        One that has been started is left as it is; where it has another number, it says so once.
        """

    def thread_control(self) -> ThreadControl | None:
        """What gives and sets the number of its compute threads; None where they cannot be set."""
        return None

    def num_threads(self) -> int:
        """Number of compute threads that the framework uses for one operation in this process."""
        return 1
