"""Conversion of environments' action masks for categorical policies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.errors import AgentError

__all__ = ["legal_actions"]


def legal_actions(mask: Any, rows: int, sizes: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Return which categories may be sampled.

    Args:
        mask: ``(rows, categories)``, where 0 or False marks illegal categories; or an object array that holds for each
            row a mask or a tuple of one mask for each component, as accepted by ``Space.sample``, or None.
        rows: Number of environments.
        sizes: Number of categories of each component.

    Returns:
        ``(rows, sum(sizes))``. If a component has no legal category, for example because its agent does not act, all
        its categories are allowed.

    Raises:
        AgentError: The mask has another shape, or is no mask.
    """
    try:
        mask = np.asarray(mask)
        if mask.dtype == object:
            mask = np.array([_flat(row, sum(sizes)) for row in mask])
        mask = mask.astype(np.bool_)
    except (TypeError, ValueError) as error:
        raise AgentError(
            f"infos['action_mask'] has rows that do not fit together: {error}; expected {(rows, sum(sizes))}, or for "
            f"each row a mask of {sum(sizes)} actions or None"
        ) from error
    if mask.shape != (rows, sum(sizes)):
        raise AgentError(f"infos['action_mask'] has shape {mask.shape}; expected {(rows, sum(sizes))}")
    parts = np.split(mask, np.cumsum(sizes)[:-1], axis=1)
    return np.concatenate([part | ~part.any(axis=1, keepdims=True) for part in parts], axis=1)


def _flat(row: Any, width: int) -> npt.NDArray[Any]:
    if row is None:
        return np.ones(width, np.bool_)
    return np.concatenate([np.ravel(part) for part in row]) if isinstance(row, tuple) else np.ravel(row)
