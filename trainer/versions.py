"""Versions of everything that the results of a run depend on."""

from __future__ import annotations

import platform

from workers import node_report

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
    machine = {"python": platform.python_version(), "platform": platform.platform()}
    return machine | node_report.versions(PACKAGES)
