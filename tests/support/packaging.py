"""The versions that the project is tested with."""

from __future__ import annotations

from packaging.utils import canonicalize_name

from tests.support.processes import ROOT

__all__ = ["PINS"]


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


PINS = _pins()
"""Versions in constraints.txt, by canonical name."""
