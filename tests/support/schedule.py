"""The parts of a test matrix that `make test` runs, and those that only `make test-long` runs.

``make test-long`` sets ``LOCKSTEP_TESTS=long``: every test runs, with every pair of a matrix and large budgets.
``make fuzz`` sets it for the tests marked with ``fuzz``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import cycle, product
from typing import Any

import pytest

__all__ = ["FRAMEWORKS", "IS_LONG", "examples", "full_or_short", "in_turn", "only_long"]

FRAMEWORKS = ("torch", "jax", "warp")
IS_LONG = os.environ.get("LOCKSTEP_TESTS") == "long"

only_long = pytest.mark.skipif(not IS_LONG, reason="a part of make test-long")
"""Mark of a test that takes long, or whose faults others find as well."""


def full_or_short(full: Sequence[Any], short: Sequence[Any]) -> Sequence[Any]:
    """Return the parameters of a test: all of them, or those that find the same faults in less time."""
    missing = [one for one in short if one not in full]
    assert not missing, f"only in the short schedule: {missing}"
    return full if IS_LONG else short


def in_turn(modes: Sequence[Any], frameworks: Sequence[str] = FRAMEWORKS) -> Sequence[tuple[Any, str]]:
    """Return pairs of a mode and a framework: all of them, or each mode with one framework, in turn."""
    return full_or_short(list(product(modes, frameworks)), list(zip(modes, cycle(frameworks), strict=False)))


def examples(count: int, *, long: int) -> int:
    """Return the number of random examples: of Hypothesis, or of damaged messages and files."""
    return long if IS_LONG else count
