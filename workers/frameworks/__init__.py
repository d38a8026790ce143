"""One thin adapter for each framework; the algorithms are written once, on top of them."""

from __future__ import annotations

import importlib
import importlib.util
import sys

import numpy as np

from workers.errors import ConfigError
from workers.frameworks.base import Framework, ThreadControl

__all__ = ["Framework", "ThreadControl", "available_frameworks", "load_framework"]


def available_frameworks() -> tuple[str, ...]:
    """Names of the frameworks that this version of Lockstep supports, whether or not they are installed."""
    names = ("numpy", "torch", "jax", "warp")
    return tuple(name for name in names if importlib.util.find_spec(f"{__name__}.{name}"))


def load_framework(name: str) -> Framework:
    """Import the adapter of a framework, and with it the framework itself.

    Raises:
        ConfigError: There is no such framework, or it is not installed.
    """
    framework: Framework | None = getattr(sys.modules.get(f"{__name__}.{name}"), "FRAMEWORK", None)
    return framework or _import(name)


def _import(name: str) -> Framework:
    if name not in available_frameworks():
        raise ConfigError(f"framework {name!r} is not known; expected one of {', '.join(available_frameworks())}")
    numbers = np.random.get_state()
    try:
        framework: Framework = importlib.import_module(f"{__name__}.{name}").FRAMEWORK
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"framework {name!r} needs the package {error.name!r}, which is not installed; "
            f"pip install 'lockstep-rl[{name}]'"
        ) from error
    finally:
        np.random.set_state(numbers)  # importing jax draws from the user's generator
    return framework
