"""The map from a Gaussian policy's actions to those of a Box with bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box

from workers.errors import AgentError

__all__ = ["action_map"]

LARGEST = float(np.finfo(np.float32).max)


def action_map(space: Any, action_bounds: str) -> npt.NDArray[np.float32] | None:
    """Return the map from the policy's actions to the environment's, for a value of `PPOCfg.action_bounds`.

    The environment gets ``clip(actions * scale + shift, low, high)``, which for ``"rescale"`` equals clipping to
    [-1, 1] first. An element without bounds has scale 1, shift 0 and infinite limits. Actions are float32: a bound that
    no finite float32 exceeds counts as infinite, and limits that are not float32 are rounded inwards.

    Args:
        space: Action space of one environment.
        action_bounds: ``"none"``, ``"clip"`` or ``"rescale"``.

    Returns:
        Rows scale, shift, low and high, ``(4, elements)``, with the elements of the Box in C order. None if actions do
        not change: the space is no Box or has no bounds, or `action_bounds` is ``"none"``.

    Raises:
        AgentError: `action_bounds` is ``"rescale"`` and an element has a single bound.
    """
    if action_bounds == "none" or not isinstance(space, Box):
        return None
    precise = np.promote_types(space.dtype, np.float64)
    low, high = (bounds.reshape(-1).astype(precise) for bounds in (space.low, space.high))
    has_low, has_high = low > -LARGEST, high < LARGEST
    low = np.where(has_low, np.minimum(low, LARGEST), -np.inf)
    high = np.where(has_high, np.maximum(high, -LARGEST), np.inf)
    if not (has_low | has_high).any():
        return None
    scale, shift = np.ones(len(low)), np.zeros(len(low))
    if action_bounds == "rescale":
        if (single := np.flatnonzero(has_low != has_high)).size:
            raise AgentError(_describe_single_bound(space, int(single[0])))
        scale[has_low] = (high[has_low] - low[has_low]) / 2.0
        shift[has_low] = (high[has_low] + low[has_low]) / 2.0
    return np.stack([scale, shift, *_limits(low, high)]).astype(np.float32)


def _describe_single_bound(space: Box, column: int) -> str:
    index = ", ".join(str(i) for i in np.unravel_index(column, space.shape))
    return (
        f"action_space is {space}, in which element ({index}) has a single bound (from {space.low.flat[column]} to "
        f"{space.high.flat[column]}, for float32 actions); PPOCfg.action_bounds 'rescale' needs both or none: set it "
        "to 'clip' or 'none'"
    )


def _limits(low: npt.NDArray[Any], high: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the smallest and the largest float32 within the bounds; the nearest one twice if there is none."""
    nearest, least, most = (bounds.astype(np.float32) for bounds in (low, low, high))
    for limits, outside, inwards in ((least, least < low, np.inf), (most, most > high, -np.inf)):
        limits[outside] = np.nextafter(limits[outside], np.float32(inwards))
    empty = least > most
    return np.where(empty, nearest, least), np.where(empty, nearest, most)
