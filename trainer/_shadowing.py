"""A clear error if another installed package hides one of Lockstep's: their names are common."""

from __future__ import annotations

from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

__all__ = ["check_packages"]

_MARKERS = {"workers": "workers.scope", "orchestrator": "orchestrator.scopes"}


def check_packages() -> None:
    """Check that Python finds Lockstep's ``orchestrator`` and ``workers``.

    Raises:
        ImportError: Another package of that name is found first.
    """
    for name, marker in _MARKERS.items():
        spec = find_spec(name)
        # search the package's own folder only: an editable install would find our module under a foreign package, too
        if spec is None or PathFinder.find_spec(marker, spec.submodule_search_locations or []) is None:
            found = "not found" if spec is None else f"found at {spec.origin or name}"
            raise ImportError(
                f"the package {name!r} is {found}; expected Lockstep's, installed next to {Path(__file__).parent}. "
                "Uninstall or rename the other package, or put Lockstep's folder first in sys.path"
            )
