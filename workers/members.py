"""What an object has that is to fill a role, and what it asks for."""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["is_factory", "missing_members", "takes_infos"]


def missing_members(value: Any, role: type, *others: str) -> list[str]:
    """Names of the members that `value` lacks of those that a role (`Env`, `MultiAgentEnv`, `Agent`) requires.

    Args:
        value: What is to fill the role.
        role: The role.
        others: Names of more members that it needs.
    """
    required = [name for name in vars(role) if not name.startswith("_")]
    return [name for name in (*required, *others) if not hasattr(value, name)]


def is_factory(agent: Any) -> bool:
    """Whether `agent` makes an agent rather than being one: a class, or a callable without ``act``."""
    return isinstance(agent, type) or (callable(agent) and not hasattr(agent, "act"))


def takes_infos(agent: Any) -> bool:
    """Whether ``agent.act`` has a parameter ``infos``, for what comes with the observations that it acts on."""
    try:
        return "infos" in inspect.signature(agent.act).parameters
    except (TypeError, ValueError):  # written in another language
        return False
