"""A plain word where another installed package stands before one of ours: their names are common ones."""

from __future__ import annotations

import importlib
from importlib.machinery import PathFinder
from pathlib import Path

__all__ = ["check_packages"]

_MARKERS = {"workers": "workers.scope.env_slice", "orchestrator": "orchestrator.scopes"}


def check_packages() -> None:
    """Check that ``orchestrator`` and ``workers`` are Lockstep's.

    Raises:
        ImportError: Another package of that name is found first.
    """
    for name, marker in _MARKERS.items():
        try:
            package = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            package = None
        # looked for in the package's own folder: an editable install would find ours also below another's package
        if PathFinder.find_spec(marker, getattr(package, "__path__", [])) is None:
            found = "there is none" if package is None else getattr(package, "__file__", None) or package
            raise ImportError(
                f"the package {name!r} that Python finds is not Lockstep's ({found}); Lockstep's was installed next to "
                f"{Path(__file__).parent}. Uninstall or rename the other one, or put Lockstep's folder first in "
                "sys.path"
            )
