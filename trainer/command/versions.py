"""Versions of everything that the results of a run depend on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

__all__ = ["PACKAGES", "versions"]

PACKAGES = (
    "lockstep-rl",
    "torch",
    "jax",
    "flax",
    "optax",
    "warp-lang",
    "warp-nn",
    "numpy",
    "gymnasium",
    "pettingzoo",
    "mujoco",
    "envpool",
    "ray",
    "skrl",
)


def versions() -> dict[str, str | None]:
    """Return the version of Python, the platform, and the version of each package (None if it is not installed)."""
    found: dict[str, str | None] = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
