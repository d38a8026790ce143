"""The JAX framework on a device: nothing travels there that need not. CPUs suffice for this."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from tests.support.processes import python
from workers.frameworks import load_framework

JAX = load_framework("jax")


def test_checks_and_copies_send_nothing_to_the_device():
    array, mask = jnp.ones((3, 2)), jnp.array([True, False, True])

    def operate() -> None:
        JAX.probe([array, mask])
        JAX.zeros_like(array)
        JAX.copy(array)
        JAX.split(array, [1, 2])
        JAX.concatenate([array, array])
        JAX.select(mask, array, array)

    operate()
    with jax.transfer_guard("disallow_explicit"):
        operate()
        with pytest.raises(jax.errors.JaxRuntimeError, match="host-to-device"):
            JAX.select(np.array([True, False, True]), array, array)


def test_results_are_on_the_device_of_the_arrays():
    code = """
import jax, numpy as np
from workers.frameworks import load_framework

framework, place = load_framework("jax"), jax.devices("cpu")[1]
array = jax.device_put(np.ones((3, 2), np.float32), place)
results = [framework.zeros_like(array), framework.copy(array), *framework.split(array, [1, 2])]
results.append(framework.probe([array]))
results += [framework.concatenate([array]), framework.select(np.array([True, False, True]), array, array)]
assert [result.devices() for result in results] == [{place}] * 7
"""
    done = python("-W", "error", "-c", code, env={"XLA_FLAGS": "--xla_force_host_platform_device_count=2"})
    assert done.returncode == 0, done.stderr
