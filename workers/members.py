"""Inspection of the members of environments and agents."""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["is_factory", "is_of_skrl", "missing_members", "takes_infos"]


def missing_members(value: Any, role: type, *others: str) -> list[str]:
    """Return the names of the members that a role (`Env`, `MultiAgentEnv`, `Agent`) requires and `value` lacks.

    Args:
        value: Object to check.
        role: The role.
        others: Names of additional required members.
    """
    required = [name for name in vars(role) if not name.startswith("_")]
    return [name for name in (*required, *others) if not hasattr(value, name)]


def is_factory(agent: Any) -> bool:
    """Return whether `agent` is a factory of agents: a class, or a callable without ``act``."""
    return isinstance(agent, type) or (callable(agent) and not hasattr(agent, "act"))


def is_of_skrl(value: Any) -> bool:
    """Return whether a value is an object of skrl, or of a class derived from one of skrl's."""
    return any(kind.__module__.startswith("skrl.") for kind in type(value).__mro__)


def takes_infos(agent: Any) -> bool:
    """Return whether ``agent.act`` has a parameter ``infos`` for the infos of the observations it acts on."""
    try:
        return "infos" in inspect.signature(agent.act).parameters
    except (TypeError, ValueError):  # not written in Python
        return False
