"""Multi-agent environments by name: from PettingZoo's registry, or from modules structured like PettingZoo's."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pettingzoo
from pettingzoo.env_registry.exceptions import PettingZooRegistryError

from workers.errors import EnvError

__all__ = ["is_registered", "make_multi_agent"]


def make_multi_agent(id: str, kwargs: dict[str, Any]) -> Any:
    """Make one environment: the Parallel version if it exists, else the AEC version.

    Args:
        id: ``"family/name_v0"`` from PettingZoo's registry, or the name of a module with ``parallel_env`` or ``env``.
        kwargs: Keyword arguments of the environment.

    Returns:
        The environment; None if `id` is unknown.

    Raises:
        EnvError: The environment exists but cannot be made or imported.
    """
    for kind, spec in _registered(id):
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
    except (TypeError, ValueError):  # not a module name
        return None
    make = getattr(module, "parallel_env", None) or getattr(module, "env", None)
    return None if make is None else make(**kwargs)


def is_registered(id: str) -> bool:
    """Whether PettingZoo's registry has an environment of this name."""
    return any(True for _ in _registered(id))


def _registered(id: str) -> Iterator[tuple[Any, Any]]:
    for kind in ("parallel", "aec"):
        try:
            spec = pettingzoo.spec(kind, id)
        except PettingZooRegistryError:
            continue
        yield kind, spec
