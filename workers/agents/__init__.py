"""Agents included in Lockstep.

`workers.agents.base` and `workers.agents.ppo` hold the framework-independent part; ``workers.agents.<framework>`` holds
the networks, the array operations and the update.

Imports storage, the rules and the frameworks, but no environments. Imported by users and by the functions here.
"""

from __future__ import annotations

import importlib
from typing import Any

from workers.errors import ConfigError

__all__ = ["load_ppo", "load_skrl_parts"]


def load_ppo(framework: str) -> type[Any]:
    """Return the PPO class of a framework.

    Raises:
        ConfigError: A required package is not installed.
    """
    try:
        kind: type[Any] = importlib.import_module(f"workers.agents.{framework}").PPO
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"PPO for {framework} needs the package {error.name!r}, which is not installed; "
            f"pip install 'lockstep-rl[{framework}]'"
        ) from error
    return kind


def load_skrl_parts(framework: str) -> Any:
    """Return the module that keeps the state of skrl's agents of a framework; None if there is none."""
    return importlib.import_module("workers.agents.torch.skrl_parts") if framework == "torch" else None
