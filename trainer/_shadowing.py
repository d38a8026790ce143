"""A plain word where another installed package stands before one of ours: their names are common ones."""

from __future__ import annotations

from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

__all__ = ["check_packages"]

_MARKERS = {"workers": "workers.scope", "orchestrator": "orchestrator.scopes"}


def check_packages() -> None:
    """Check that ``orchestrator`` and ``workers`` are Lockstep's.

    Raises:
        ImportError: Another package of that name is found first.
    """
    for name, marker in _MARKERS.items():
        spec = find_spec(name)
        # looked for in the package's own folder: an editable install would find ours also below another's package
        if spec is None or PathFinder.find_spec(marker, spec.submodule_search_locations or []) is None:
            found = "there is none" if spec is None else spec.origin or name
            raise ImportError(
                f"the package {name!r} that Python finds is not Lockstep's ({found}); Lockstep's was installed next to "
                f"{Path(__file__).parent}. Uninstall or rename the other one, or put Lockstep's folder first in "
                "sys.path"
            )
