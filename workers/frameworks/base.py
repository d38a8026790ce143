"""Interface of a framework: a few operations on arrays of rows, and its global random state."""

from __future__ import annotations

import io
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from workers.errors import AgentError, message_of
from workers.pickling import loads

__all__ = ["Framework", "Lane", "RandomNumbers", "Reading", "ThreadControl", "all_finite"]

ThreadControl = tuple[Callable[[], int], Callable[[int], None]]
"""Getter and setter of a number of compute threads."""


def all_finite(values: npt.NDArray[Any]) -> bool:
    """Return whether no element is NaN or infinite; ``np.isfinite(values).all()`` takes half as long again."""
    return bool(np.count_nonzero(np.isfinite(values)) == values.size)


class RandomNumbers:
    """Random numbers of one agent for the global generators of a framework; these are of one that has none."""

    def __init__(self, name: str) -> None:
        self._name = name

    def swap(self) -> None:
        """Exchange the states of the global generators with those kept here."""

    def state(self) -> list[npt.NDArray[Any]]:
        """Return the states kept here: of the host's generator, then of each GPU's that has one."""
        return []

    def load(self, states: Sequence[npt.NDArray[Any]]) -> None:
        """Set a result of `state`. What it has of GPUs is used as far as there are as many here.

        Raises:
            ValueError: It is from another framework.
        """
        if len(states):
            raise ValueError(f"{self._name} has no global random generator")


class Lane(nullcontext[None]):
    """Context in which an agent computes: here, like everything else in its thread."""

    def join(self) -> None:
        """Make what follows outside wait for everything that was started inside."""


class Reading:
    """Arrays on their way to the host; these have arrived."""

    def __init__(self, values: list[npt.NDArray[Any]]) -> None:
        self._values = values

    def is_ready(self) -> bool:
        """Return whether `result` does not have to wait."""
        return True

    def result(self) -> list[npt.NDArray[Any]]:
        """Wait for the arrays, and return their values."""
        return self._values


class Framework(ABC):
    """Array operations of one framework.

    Attributes:
        name: Its name.
        can_pickle_arrays: Whether pickles can hold its arrays.

    A *fresh* array is contiguous, in memory that the framework itself allocated. Kernels may give different bits for
    different alignments, so an agent must get arrays of the same kind in every mode.
    """

    name: ClassVar[str]
    can_pickle_arrays: ClassVar[bool] = True

    @abstractmethod
    def is_array(self, value: object) -> bool:
        """Return whether `value` is an array of this framework."""

    def kind(self, array: Any) -> str:
        """Return the kind of the dtype of `array`.

        Returns:
            ``"b"`` for bool, ``"i"`` for integers, signed or not, ``"f"`` for floats, ``"c"`` for complex numbers, and
            another string for anything else.
        """
        kind: str = array.dtype.kind
        return "i" if kind == "u" else kind

    @abstractmethod
    def from_numpy(self, array: npt.NDArray[Any]) -> Any:
        """Return a fresh array with the values and dtype of `array`, on the framework's default device.

        If the framework lacks the dtype, it uses the narrower one of the same kind: JAX has no 64-bit numbers unless
        they are enabled.
        """

    def from_rows(self, parts: Sequence[npt.NDArray[Any]]) -> Any:
        """Concatenate the rows of NumPy arrays, which are writable, into a fresh array."""
        return self.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))

    @abstractmethod
    def to_numpy(self, array: Any) -> npt.NDArray[Any]:
        """Return the values of `array`; they may share its memory."""

    def dump(self, value: Any, pickler: type[pickle.Pickler]) -> bytes:
        """Pickle a value for `load`, such that arrays which share memory do so again.

        Arrays of NumPy, and of frameworks whose arrays never change, do not need it or are copied.

        Args:
            value: Anything that the pickler takes.
            pickler: The class of the pickler, which may pickle classes and functions by value.
        """
        with io.BytesIO() as file:
            pickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
            return file.getvalue()

    def load(self, data: bytes) -> Any:
        """Return a value that was pickled by `dump`; this can run code."""
        return loads(data)

    def to_plain(self, array: Any) -> tuple[npt.NDArray[Any], str]:
        """Return the values of `array`, and a tag that tells `from_plain` what their dtype does not; mostly empty.

        Raises:
            RuntimeError: NumPy cannot hold `array`.
            TypeError: NumPy cannot hold `array`.
        """
        return self.to_numpy(array), ""

    def from_plain(self, values: npt.NDArray[Any], tag: str) -> Any:
        """Return a fresh array from a result of `to_plain` with a tag.

        Raises:
            ValueError: The tag is not from this framework.
        """
        raise ValueError(f"unknown kind {tag!r} of {self.name} arrays")

    @abstractmethod
    def copy(self, array: Any) -> Any:
        """Return a fresh copy."""

    @abstractmethod
    def split(self, array: Any, sizes: Sequence[int]) -> Sequence[Any]:
        """Return fresh copies of consecutive groups of rows, ``sizes[i]`` rows in the i-th."""

    @abstractmethod
    def concatenate(self, arrays: Sequence[Any]) -> Any:
        """Concatenate the rows of all arrays into a fresh array."""

    @abstractmethod
    def select(self, mask: Any, chosen: Any, other: Any) -> Any:
        """Take row i of `chosen` if ``mask[i]``, else of `other`; `mask` is NumPy's or the framework's, ``(rows,)``."""

    @abstractmethod
    def zeros_like(self, array: Any) -> Any:
        """Return zeros of the shape and dtype of `array`, on its device."""

    def find_device_or_default(self, name: str) -> Any:
        """Return the device of this name, or the default device where there is none: for what another process wrote."""
        try:
            return self.find_device(name)
        except AgentError:
            return self.find_device(None)

    def find_device(self, device: Any) -> Any:
        """Return a device of this process.

        Args:
            device: A device of the framework or its name, such as ``"cuda:0"``; None for the default device.

        Raises:
            AgentError: There is no such device.
        """
        try:
            return self._device(device)
        except Exception as error:  # each framework has its own
            raise AgentError(
                f"device is {device!r}; expected None for {self.name}'s default device, or a device of this process: "
                f"{', '.join(self.devices())} ({message_of(error).partition(chr(10))[0]})"
            ) from error

    def _device(self, device: Any) -> Any:
        """Return a device as `find_device`, or raise anything."""
        if device not in (None, "cpu"):
            raise ValueError(device)
        return "cpu"

    def is_on_host(self, array: Any) -> bool:
        """Return whether the values of `array` can be read without waiting for a device."""
        return True

    def is_finite(self, array: Any) -> bool:
        """Return whether no element of `array`, which is on the host, is NaN or infinite."""
        values = self.to_numpy(array)
        return values.dtype.kind in "iub" or all_finite(values)

    def probe(self, arrays: Sequence[Any]) -> Any:
        """Return a new array, ``(n,)`` float, that is finite if and only if all `arrays` are, without waiting for them.

        Args:
            arrays: Arrays of numbers or bools on one device.
        """
        raise NotImplementedError(f"{self.name} has no arrays on a device")

    def read_later(self, arrays: Sequence[Any]) -> Reading:
        """Start to copy arrays to the host, without waiting for their device."""
        return Reading([self.to_numpy(array).copy() for array in arrays])

    def is_static(self, value: object) -> bool:
        """Return whether a value is a device or a dtype of the framework, which never change."""
        return False

    def has_devices(self) -> bool:
        """Return whether arrays of this process may be elsewhere than on the host."""
        return False

    def device_of(self, array: Any) -> Any:
        """Return the device of `array`, for `to_device`."""
        return "cpu"

    def to_device(self, array: Any, device: Any) -> Any:
        """Return `array` on a device; itself if it is there."""
        return array

    def device_name(self, device: Any) -> str:
        """Return the name of a device, such as ``"cuda:0"``."""
        return str(device)

    def lanes(self, devices: Sequence[Any]) -> Sequence[Lane]:
        """Return a lane for each of several agents of this process if some of them share a GPU, else none.

        Args:
            devices: The device of each agent; None if it is unknown.
        """
        return ()

    def flags_for_skrl(self, flags: Any) -> Any:
        """Convert flags, ``(rows, 1)`` bool, to what skrl's agents of this framework expect."""
        return flags

    def no_grad(self) -> AbstractContextManager[Any]:
        """Return a context without gradients; it is entered many times but never nested."""
        return nullcontext()

    def rng_state(self) -> Any:
        """Return the state of the host's global random generator; None for a framework without one."""
        return None

    def set_rng_state(self, state: Any) -> None:  # noqa: B027 - nothing to do without a generator
        """Set the state of the host's global random generator."""

    def random_stream(self, seed: int | None) -> RandomNumbers:
        """Return random numbers for the framework's global generators.

        Args:
            seed: Their seed; None for those of the process.
        """
        return RandomNumbers(self.name)

    def silence(self) -> None:  # noqa: B027 - nothing to do for a framework that prints nothing
        """Keep the framework from printing to the process's output, which is for results; warnings remain."""

    def devices(self) -> list[str]:
        """Return the compute devices in this process, such as ``["cpu", "cuda:0 (its name)"]``."""
        return ["cpu"]

    def start(self, num_threads: int) -> None:  # noqa: B027 - nothing to do where threads can be set at any time
        """Start the framework with a number of compute threads, if it fixes the number when it starts.

        A framework that has already started is left unchanged; it warns once if its number differs.
        """

    def thread_control(self) -> ThreadControl | None:
        """Return the getter and setter of its number of compute threads; None if it cannot be set."""
        return None

    def num_threads(self) -> int:
        """Return the number of compute threads that the framework uses for one operation in this process."""
        return 1
