"""Adapter for JAX."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from workers.errors import EnvError, mark_row
from workers.frameworks.base import Framework, Reading

__all__ = ["FRAMEWORK"]

_logger = logging.getLogger("lockstep")

_THREADS_VARIABLE = "NPROC"
"""Environment variable from which XLA reads its number of CPU threads once, when it starts."""


class JaxFramework(Framework):
    """Arrays on JAX's default device. JAX has no global generator: its agents hold their own keys.

    Operations are compiled once per shape: uncompiled ``jnp`` calls take several times as long.
    """

    name = "jax"

    def __init__(self) -> None:
        self._num_threads: int | None = None
        self._reason = ""
        self._has_said = False
        self._has_devices: bool | None = None

    def is_array(self, value: object) -> bool:
        return isinstance(value, jax.Array)

    def kind(self, array: jax.Array) -> str:
        if jnp.issubdtype(array.dtype, jax.dtypes.extended):  # random keys
            return "key"
        return "f" if jnp.issubdtype(array.dtype, jnp.floating) else super().kind(array)  # NumPy knows no bfloat16

    def from_numpy(self, array: npt.NDArray[Any]) -> jax.Array:
        if array.dtype.itemsize == 8 and array.dtype.kind in "iu" and array.size:
            _check_range(array)
        return jnp.array(array)  # not jax.device_put, which keeps NumPy's memory

    def to_numpy(self, array: jax.Array) -> npt.NDArray[Any]:
        return np.asarray(array)

    def to_plain(self, array: jax.Array) -> tuple[npt.NDArray[Any], str]:
        if self.kind(array) == "key":
            return np.asarray(jax.random.key_data(array)), f"key {jax.random.key_impl(array)}"
        if array.dtype == jnp.bfloat16:
            return np.asarray(array).view(np.uint16), "bfloat16"
        return np.asarray(array), "weak" if array.weak_type else ""

    def from_plain(self, values: npt.NDArray[Any], tag: str) -> jax.Array:
        if tag == "weak":  # a number that takes the dtype of what it meets
            return jnp.full(values.shape, values.dtype.type(0).item()).at[...].set(values)
        if tag == "bfloat16":
            return jnp.array(values.view(jnp.bfloat16))
        if tag.startswith("key "):
            return jax.random.wrap_key_data(jnp.array(values), impl=tag.removeprefix("key "))
        return super().from_plain(values, tag)

    def copy(self, array: jax.Array) -> jax.Array:
        return _copy(array)

    def split(self, array: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
        return _split(array, tuple(sizes))

    def concatenate(self, arrays: Sequence[jax.Array]) -> jax.Array:
        return _concatenate(*arrays)

    def select(self, mask: npt.NDArray[np.bool_] | jax.Array, chosen: jax.Array, other: jax.Array) -> jax.Array:
        return _select(mask, chosen, other)

    def zeros_like(self, array: jax.Array) -> jax.Array:
        return _zeros_like(array)

    def _device(self, device: Any) -> jax.Device:
        if device is None:
            [default] = jnp.zeros(()).devices()
            return default
        if isinstance(device, jax.Device):
            return device
        platform, _, index = device.partition(":")
        return jax.devices(platform)[int(index or 0)]

    def is_static(self, value: object) -> bool:
        return isinstance(value, jax.Device)

    def has_devices(self) -> bool:
        if self._has_devices is None:  # to ask JAX takes longer than what it saves
            self._has_devices = jax.default_backend() != "cpu" or jax.device_count() > 1
        return self._has_devices

    def device_of(self, array: jax.Array) -> jax.Device:
        devices = array.devices()
        return next(iter(devices)) if len(devices) == 1 else None  # of several, each has a part

    def to_device(self, array: jax.Array, device: jax.Device | None) -> jax.Array:
        return array if device is None or array.devices() == {device} else jax.device_put(array, device)

    def device_name(self, device: Any) -> str:
        return f"{device.platform}:{device.id}" if isinstance(device, jax.Device) else str(device)

    def is_on_host(self, array: jax.Array) -> bool:
        return _platform(array) == "cpu"

    def probe(self, arrays: Sequence[jax.Array]) -> jax.Array:
        return _probe(arrays)

    def read_later(self, arrays: Sequence[jax.Array]) -> Reading:
        return _Reading(arrays)

    def devices(self) -> list[str]:
        others = (device for device in jax.devices() if device.platform != "cpu")
        return ["cpu", *(f"{device.platform}:{device.id} ({device.device_kind})" for device in others)]

    def start(self, num_threads: int) -> None:
        if self._num_threads is None:
            self._num_threads, self._reason = self.num_threads(), "JAX was used before the trainer was built"
            if not _has_started():
                _start(num_threads)
                self._num_threads, self._reason = num_threads, f"an earlier trainer had num_threads={num_threads}"
        if self._num_threads != num_threads and not self._has_said:
            self._has_said = True
            _logger.warning(
                "XLA's number of threads in this process is %d because %s; expected %d. Results may differ from those "
                "of other modes. Use one number in a process, and build the trainer before JAX computes anything: with "
                "factories instead of agents, or with %s=%d in the environment",
                self._num_threads,
                self._reason,
                num_threads,
                _THREADS_VARIABLE,
                num_threads,
            )

    def num_threads(self) -> int:
        if self._num_threads is not None:
            return self._num_threads
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return int(os.environ.get(_THREADS_VARIABLE) or available or 1)  # XLA's own rule for the CPU


def _start(num_threads: int) -> None:
    """Start XLA."""
    before = os.environ.get(_THREADS_VARIABLE)
    os.environ[_THREADS_VARIABLE] = str(num_threads)
    try:
        jax.devices()
    finally:
        del os.environ[_THREADS_VARIABLE]
        if before is not None:
            os.environ[_THREADS_VARIABLE] = before


def _has_started() -> bool:
    """Return whether XLA has started: JAX then refuses to change its number of CPU devices."""
    number = jax.config.jax_num_cpu_devices
    try:
        jax.config.update("jax_num_cpu_devices", number + 1)
    except RuntimeError:
        return True
    jax.config.update("jax_num_cpu_devices", number)
    return False


def _check_range(array: npt.NDArray[Any]) -> None:
    """Check that JAX can hold the values of a 64-bit array.

    Raises:
        EnvError: It cannot: without ``jax_enable_x64`` the values would wrap around. The error is marked with the row.
    """
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    limits = np.iinfo(dtype)
    if array.min() >= limits.min and array.max() <= limits.max:
        return
    wrong = (array < limits.min) | (array > limits.max)
    error = EnvError(
        f"{array[wrong][0]} of dtype {array.dtype} does not fit JAX's {dtype}; use smaller numbers or a Box of floats, "
        "or set jax.config.update('jax_enable_x64', True) at the start of the program"
    )
    if array.ndim:
        mark_row(error, int(np.argwhere(wrong)[0, 0]), "the environments")
    raise error


def _platform(array: jax.Array) -> str:
    return next(iter(array.devices())).platform


@jax.jit
def _probe(arrays: Sequence[jax.Array]) -> jax.Array:
    finite = jnp.stack([jnp.isfinite(array).all() for array in arrays]).all()
    return jnp.where(finite, 0.0, jnp.nan)[None]  # one number, so that probes of all steps are joined alike


@partial(jax.jit, keep_unused=True)  # the argument tells the device
def _zeros_like(array: jax.Array) -> jax.Array:
    return jnp.zeros_like(array)


@jax.jit
def _copy(array: jax.Array) -> jax.Array:
    return jnp.copy(array)


@partial(jax.jit, static_argnums=1)
def _split(array: jax.Array, sizes: tuple[int, ...]) -> list[jax.Array]:
    return jnp.split(array, np.cumsum(sizes)[:-1])


@jax.jit
def _concatenate(*arrays: jax.Array) -> jax.Array:
    return jnp.concatenate(arrays)


@jax.jit
def _select(mask: jax.Array, chosen: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.where(mask.reshape(-1, *[1] * (other.ndim - 1)), chosen, other)


class _Reading(Reading):
    """Arrays on their way to the host."""

    def __init__(self, arrays: Sequence[jax.Array]) -> None:
        super().__init__([])
        self._arrays = arrays
        for array in arrays:
            array.copy_to_host_async()

    def is_ready(self) -> bool:
        return all(array.is_ready() for array in self._arrays)

    def result(self) -> list[npt.NDArray[Any]]:
        return [np.asarray(array) for array in self._arrays]


FRAMEWORK = JaxFramework()
