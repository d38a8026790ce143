"""A plain word where another installed package stands before one of ours: their names are common ones."""

from __future__ import annotations

import importlib
from pathlib import Path

__all__ = ["check_packages"]

_MARKERS = {"orchestrator": "orchestrator.scopes", "workers": "workers.env_slice"}


def check_packages() -> None:
    """Check that ``orchestrator`` and ``workers`` are Lockstep's.

    Raises:
        ImportError: Another package of that name is found first.
    """
    for name, marker in _MARKERS.items():
        try:
            importlib.import_module(marker)
        except ModuleNotFoundError as error:
            if error.name not in (name, marker):
                raise
            other = getattr(importlib.import_module(name), "__file__", None) if error.name == marker else None
            raise ImportError(
                f"the package {name!r} that Python finds is not Lockstep's ({other or 'there is none'}); Lockstep's "
                f"was installed next to {Path(__file__).parent}. Uninstall or rename the other one, or put Lockstep's "
                "folder first in sys.path"
            ) from error
