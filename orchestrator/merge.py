"""Outcomes of the scopes, in scope order, into the outcome of the full batch."""

from __future__ import annotations

from collections.abc import Sequence

from workers.by_agent import concatenate_rows
from workers.frameworks import Framework
from workers.infos import infos_by_scope, merge_infos
from workers.types import Outcome, Scope

__all__ = ["merge_outcomes", "share_outcome"]


def merge_outcomes(outcomes: Sequence[Outcome], scopes: Sequence[Scope], framework: Framework) -> Outcome:
    """Concatenate the rows of all outcomes, and merge their infos (see `workers.infos.merge_infos`).

    Args:
        outcomes: The outcome of each scope, in scope order; every array has ``scope.num_envs`` rows.
        scopes: The scopes.
        framework: Whose arrays they are.

    Returns:
        An outcome whose row i belongs to environment i.
    """
    if len(outcomes) == 1:
        return outcomes[0]
    *arrays, infos = zip(*outcomes, strict=True)
    rows = [concatenate_rows(parts, framework) for parts in arrays]
    return Outcome._make([*rows, merge_infos(infos, [scope.num_envs for scope in scopes], framework)])


def share_outcome(outcome: Outcome, scopes: Sequence[Scope], framework: Framework) -> Outcome:
    """The outcome of environments that several scopes share, as if each scope had had its own."""
    if len(scopes) == 1 or not outcome.infos:
        return outcome
    return outcome._replace(infos=infos_by_scope(outcome.infos, [scope.num_envs for scope in scopes], framework))
