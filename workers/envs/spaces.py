"""Batches of a Gymnasium space: between what vector environments take and give and flat arrays of rows.

A vector environment's batch has an array with one row per environment in the place of each Box, Discrete,
MultiDiscrete and MultiBinary, in a dictionary for a Dict and a tuple for a Tuple. All of it is converted leaf by leaf,
for all rows at once: row by row, as Gymnasium's own ``flatten`` works, takes 10 to 70 times as long for 64 rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.spaces.utils import flatdim
from gymnasium.vector.utils import concatenate, create_empty_array

from workers.errors import EnvError

__all__ = [
    "action_width",
    "check_space",
    "flatten_rows",
    "mask_columns",
    "native_actions",
    "stack_rows",
    "unflatten_actions",
]

NumpyArray = npt.NDArray[Any]


def check_space(space: Any, owner: str) -> None:
    """Check that every sample of `space` has one and the same flat width.

    Args:
        space: Space of a single environment.
        owner: Whose space it is, used in the error.

    Raises:
        EnvError: It is, or contains, another space than those named in the error.
    """
    members = _members(space)
    for member in members.values():
        check_space(member, f"{owner}, in {space}")
    if not members and not isinstance(space, (Box, Discrete, MultiDiscrete, MultiBinary)):
        raise EnvError(
            f"{owner}: {space} is not supported; "
            "expected Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of some of them"
        )


def flatten_rows(space: Space[Any], batch: Any) -> NumpyArray:
    """A batch in a vector environment's format as a flat array.

    Args:
        space: Space of a single environment.
        batch: Samples of it, one for each environment.

    Returns:
        ``(num_envs, flatdim(space))``: row i is what ``gymnasium.spaces.utils.flatten`` gives for sample i, of its
        dtype, but float32 for every floating-point dtype. It may share its memory with `batch`.
    """
    flat = _flatten(space, batch)
    return flat.astype(np.float32, copy=False) if flat.dtype.kind == "f" else flat


def stack_rows(space: Space[Any], samples: Sequence[Any]) -> Any:
    """Samples of single environments as a batch in a vector environment's format."""
    batch: Any = create_empty_array(space, n=len(samples), fn=np.zeros)
    return concatenate(space, samples, batch)


def action_width(space: Space[Any]) -> int:
    """Number of columns of flat actions.

    An action takes one column for each element of a Box, one for a Discrete (the action itself, so the first is
    ``start``), one for each component of a MultiDiscrete and for each bit of a MultiBinary, all in C order; the members
    of a Dict and a Tuple follow one another in the space's order. This is no one-hot encoding: observations of these
    spaces are wider.

    Raises:
        EnvError: A sample of `space` has no fixed number of elements.
    """
    check_space(space, "action space")
    return _action_width(space)


def native_actions(space: Space[Any], actions: NumpyArray, num_envs: int, width: int, owner: str) -> Any:
    """Flat actions of an agent as a batch in a vector environment's format.

    Args:
        space: Action space of a single environment.
        actions: ``(num_envs, width)``, laid out as `action_width` says, or an array of as many rows and numbers.
        num_envs: Number of environments.
        width: What `action_width` gives for `space`.
        owner: Whose actions they are, used in the error.

    Raises:
        EnvError: The actions have another shape.
    """
    shape = (num_envs, width)
    # rows must be rows: reshaping alone would take (size, num_envs) too
    if actions.shape[:1] != shape[:1] or actions.size != shape[0] * shape[1]:
        raise EnvError(f"{owner}: actions have shape {actions.shape}; expected {shape}")
    return unflatten_actions(space, actions.reshape(shape))


def mask_columns(space: Space[Any]) -> slice | None:
    """Columns of flat observations that are the ``action_mask`` of a Dict space, as PettingZoo's games have it."""
    members = list(space.spaces) if isinstance(space, Dict) else []
    if "action_mask" not in members or not isinstance(space["action_mask"], (Box, MultiBinary)):  # type: ignore[index]
        return None
    before = members[: members.index("action_mask")]
    widths = [int(flatdim(space[name])) for name in (*before, "action_mask")]  # type: ignore[index]
    return slice(sum(widths[:-1]), sum(widths))


def unflatten_actions(space: Space[Any], actions: NumpyArray) -> Any:
    """Flat actions as a batch in a vector environment's format.

    Args:
        space: Action space of a single environment.
        actions: ``(num_envs, action_width(space))``, laid out as `action_width` says.

    Returns:
        The batch, of the dtypes and shapes of `space`; its arrays may share their memory with `actions`.
    """
    members = _members(space)
    if not members:
        return actions.reshape(len(actions), *space.shape).astype(space.dtype, copy=False)  # type: ignore[misc]
    stops = np.cumsum([_action_width(member) for member in members.values()])
    columns = np.split(actions, stops[:-1], axis=1)
    batches = [
        # each a contiguous array, as a member that stands alone would be: environments may hand it to C
        unflatten_actions(member, np.ascontiguousarray(part))
        for member, part in zip(members.values(), columns, strict=True)
    ]
    return dict(zip(members, batches, strict=True)) if isinstance(space, Dict) else tuple(batches)


def _members(space: Any) -> dict[Any, Space[Any]]:
    """The members of a Dict or Tuple by key or index, in the space's order; empty for any other space."""
    if isinstance(space, Dict):
        return dict(space.spaces)
    return dict(enumerate(space.spaces)) if isinstance(space, Tuple) else {}


def _action_width(space: Space[Any]) -> int:
    members = _members(space)
    return sum(map(_action_width, members.values())) if members else math.prod(space.shape)  # type: ignore[arg-type]


def _flatten(space: Space[Any], batch: Any) -> NumpyArray:
    if members := _members(space):
        return np.concatenate([_flatten(member, batch[key]) for key, member in members.items()], axis=1)
    if isinstance(space, Discrete):
        return _one_hot(batch, int(space.start), int(space.n), space.dtype)
    if isinstance(space, MultiDiscrete):
        stops = np.cumsum(space.nvec, dtype=np.int64)
        first_columns = (stops - space.nvec.ravel()).reshape(space.shape)
        return _one_hot(batch, space.start.astype(np.int64) - first_columns, int(stops[-1]), space.dtype)
    array = np.asarray(batch, dtype=space.dtype)
    return array.reshape(len(array), math.prod(space.shape))  # type: ignore[arg-type]


def _one_hot(values: Any, offsets: int | NumpyArray, width: int, dtype: npt.DTypeLike) -> NumpyArray:
    """Rows of `width` zeros, but ones in the columns ``values - offsets``."""
    columns = np.asarray(values, dtype=np.int64) - offsets  # unsigned or narrow values would wrap around
    rows = len(columns)
    flat = np.zeros((rows, width), dtype=dtype)
    flat[np.arange(rows)[:, None], columns.reshape(rows, math.prod(columns.shape[1:]))] = 1
    return flat
