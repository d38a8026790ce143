"""The JAX framework on a device: nothing travels there that need not. CPUs suffice for this."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from tests.support.processes import python
from workers.frameworks import load_framework

JAX = load_framework("jax")


def first_bad(bad: set[int], timesteps: list[int]) -> int:
    """Return what is found if the arrays of some timesteps are not finite."""
    first = None
    for timestep in timesteps:
        array = jnp.full((3, 2), np.nan if timestep in bad else 1.0)
        first = JAX.first_bad(first, timestep, [jnp.ones((3, 1), bool), array, jnp.ones((3, 1), jnp.int32)])
    [number] = JAX.read_later([first]).result()
    return int(number)


@pytest.mark.parametrize(
    ("bad", "timesteps", "expected"),
    [
        (set(), [4, 5, 6], -1),
        ({4}, [4], 4),
        ({0}, [0, 1, 2], 0),
        ({6, 7}, [4, 5, 6, 7, 8], 6),
        ({9}, [4, 5, 5, 6, 9, 10], 9),  # the timestep of a reset comes twice, and others may be missing
        ({10}, [4, 5, 5, 6, 9, 10], 10),
        ({2}, [7, 8, 2, 3], 2),
    ],
)
def test_the_first_bad_timestep(bad, timesteps, expected):
    assert first_bad(bad, timesteps) == expected


def test_checks_and_copies_send_nothing_to_the_device():
    array, mask = jnp.ones((3, 2)), jnp.array([True, False, True])
    first = JAX.first_bad(None, 4, [array])

    def operate(timestep: int) -> None:
        nonlocal first
        first = JAX.first_bad(first, timestep, [array])
        JAX.zeros_like(array)
        JAX.copy(array)
        JAX.split(array, [1, 2])
        JAX.concatenate([array, array])
        JAX.select(mask, array, array)

    operate(5)
    with jax.transfer_guard("disallow_explicit"):
        operate(6)
        operate(7)
        with pytest.raises(jax.errors.JaxRuntimeError, match="host-to-device"):
            operate(9)  # the device has not counted up to it


def test_results_are_on_the_device_of_the_arrays():
    code = """
import jax, numpy as np
from workers.frameworks import load_framework

framework, place = load_framework("jax"), jax.devices("cpu")[1]
array = jax.device_put(np.ones((3, 2), np.float32), place)
first = framework.first_bad(framework.first_bad(None, 4, [array]), 5, [array])
results = [framework.zeros_like(array), framework.copy(array), *framework.split(array, [1, 2]), first.number]
results += [framework.concatenate([array]), framework.select(np.array([True, False, True]), array, array)]
assert [result.devices() for result in results] == [{place}] * 7
"""
    done = python("-W", "error", "-c", code, env={"XLA_FLAGS": "--xla_force_host_platform_device_count=2"})
    assert done.returncode == 0, done.stderr
