"""One thin adapter per framework; the algorithms are written once, on top of them.

Imports `workers.errors`. Imported by everything that handles arrays. Only ``workers.frameworks.<name>`` imports the
framework itself.
"""

from __future__ import annotations

import importlib
import sys

import numpy as np

from workers.errors import ConfigError
from workers.frameworks.base import Framework, Lane, RandomNumbers, Reading, ThreadControl

__all__ = ["Framework", "Lane", "RandomNumbers", "Reading", "ThreadControl", "available_frameworks", "load_framework"]


def available_frameworks() -> tuple[str, ...]:
    """Return the names of the frameworks that this version of Lockstep supports, installed or not."""
    return ("numpy", "torch", "jax", "warp")


def load_framework(name: str) -> Framework:
    """Import a framework and return its adapter.

    Raises:
        ConfigError: The framework is unknown or not installed.
    """
    framework: Framework | None = getattr(sys.modules.get(f"{__name__}.{name}"), "FRAMEWORK", None)
    return framework or _import(name)


def _import(name: str) -> Framework:
    if name not in available_frameworks():
        raise ConfigError(f"unknown framework {name!r}; expected one of {', '.join(available_frameworks())}")
    numbers = np.random.get_state()
    try:
        framework: Framework = importlib.import_module(f"{__name__}.{name}").FRAMEWORK
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"framework {name!r} needs the package {error.name!r}, which is not installed; "
            f"run pip install 'lockstep-rl[{name}]'"
        ) from error
    finally:
        np.random.set_state(numbers)  # importing jax draws from the global generator
    return framework
