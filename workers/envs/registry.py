"""Multi-agent environments by name: those that PettingZoo has registered, and modules made as PettingZoo's are."""

from __future__ import annotations

import importlib
from typing import Any

import pettingzoo
from pettingzoo.env_registry.exceptions import PettingZooRegistryError

from workers.errors import EnvError

__all__ = ["make_multi_agent"]


def make_multi_agent(id: str, kwargs: dict[str, Any]) -> Any:
    """Make one environment: a Parallel one where there is such, else an AEC one.

    Args:
        id: ``"family/name_v0"`` as PettingZoo has registered it, or the name of a module with ``parallel_env`` or
            ``env``.
        kwargs: Keyword arguments.

    Returns:
        The environment, None if there is nothing of that name.

    Raises:
        EnvError: There is, but it cannot be imported.
    """
    for kind in ("parallel", "aec"):
        try:
            spec = pettingzoo.spec(kind, id)
        except PettingZooRegistryError:
            continue
        try:
            return pettingzoo.make(kind, spec, **kwargs)
        except (ImportError, PettingZooRegistryError) as error:
            raise EnvError(f"pettingzoo cannot make {id!r}: {error}") from error
    try:
        module = importlib.import_module(id)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{id}.".startswith(f"{error.name}."):
            raise EnvError(f"{id!r} cannot be imported: {error}") from error
        return None
    except (TypeError, ValueError):  # what is no name of a module
        return None
    make = getattr(module, "parallel_env", None) or getattr(module, "env", None)
    return None if make is None else make(**kwargs)
