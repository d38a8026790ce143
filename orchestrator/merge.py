"""Merging the outcomes of all scopes, in scope order, into the outcome of the full batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workers.frameworks import Framework
from workers.infos import infos_by_scope, merge_infos
from workers.types import Outcome, Scope

__all__ = ["merge_outcomes", "share_outcome"]


def merge_outcomes(parts: Sequence[Outcome], scopes: Sequence[Scope], framework: Framework) -> Outcome:
    """Concatenate the rows of all outcomes and merge their infos (see `workers.infos.merge_infos`).

    Args:
        parts: The outcome of each scope, in scope order; its NumPy arrays have ``scope.num_envs`` rows.
        scopes: The scopes.
        framework: The framework of the merged arrays.

    Returns:
        An outcome whose row i belongs to environment i. Each of its arrays is copied once.
    """
    *columns, infos = zip(*parts, strict=True)
    merged = [_join(column, framework) for column in columns]
    merged.append(merge_infos(infos, [scope.num_envs for scope in scopes], framework) if any(infos) else {})
    return Outcome._make(merged)


def _join(parts: Sequence[Any], framework: Framework) -> Any:
    """Concatenate the rows of all parts; dictionaries must all have the same agents."""
    if isinstance(parts[0], dict):
        return {name: framework.from_rows([part[name] for part in parts]) for name in parts[0]}
    return framework.from_rows(parts)


def share_outcome(outcome: Outcome, scopes: Sequence[Scope], framework: Framework) -> Outcome:
    """Return the outcome of shared environments as if each scope had its own."""
    if len(scopes) == 1 or not outcome.infos:
        return outcome
    return outcome._replace(infos=infos_by_scope(outcome.infos, [scope.num_envs for scope in scopes], framework))
