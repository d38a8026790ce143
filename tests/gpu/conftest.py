"""The frameworks of these tests: those that have the device. Elsewhere everything is skipped, with the reason."""

from __future__ import annotations

import os

import pytest

from tests.gpu.device import missing

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch and JAX share the GPU


def _required(name: str) -> str:
    if reason := missing(name):
        pytest.skip(f"{name}: {reason}")
    return name


@pytest.fixture(params=["torch", "jax", "warp"])
def framework(request: pytest.FixtureRequest) -> str:
    """Name of each framework that has the device."""
    return _required(request.param)


@pytest.fixture
def on_torch() -> str:
    """PyTorch, if it has the device."""
    return _required("torch")
