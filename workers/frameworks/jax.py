"""JAX."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from workers.frameworks.base import Framework

__all__ = ["FRAMEWORK"]


class JaxFramework(Framework):
    """Arrays on JAX's default device. JAX has no global generator: its agents hold keys of their own.

    Operations are compiled, once for every shape: what ``jnp`` does without takes several times as long.
    """

    name = "jax"
    threads_variable = "NPROC"  # XLA takes no notice of OMP_NUM_THREADS

    def is_array(self, value: object) -> bool:
        return isinstance(value, jax.Array)

    def from_numpy(self, array: npt.NDArray[Any]) -> jax.Array:
        return jnp.array(array)  # not jax.device_put: it keeps NumPy's memory

    def to_numpy(self, array: jax.Array) -> npt.NDArray[Any]:
        return np.asarray(array)

    def copy(self, array: jax.Array) -> jax.Array:
        return _copy(array)

    def split(self, array: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
        return _split(array, tuple(sizes))

    def concatenate(self, arrays: Sequence[jax.Array]) -> jax.Array:
        return _concatenate(*arrays)

    def select(self, mask: npt.NDArray[np.bool_] | jax.Array, chosen: jax.Array, other: jax.Array) -> jax.Array:
        return _select(mask, chosen, other)

    def devices(self) -> list[str]:
        others = (device for device in jax.devices() if device.platform != "cpu")
        return ["cpu", *(f"{device.platform}:{device.id} ({device.device_kind})" for device in others)]

    def num_threads(self) -> int:
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return int(os.environ.get(self.threads_variable) or available or 1)  # XLA's own rule for the CPU


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


FRAMEWORK = JaxFramework()
