"""Samples of single environments, copied into the rows of one batch as soon as they are given."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import Space
from gymnasium.vector.utils import create_empty_array

from workers.copying import copy_containers
from workers.envs.samples import row_writer
from workers.errors import EnvError, mark_row, marked_row
from workers.spaces import flatten_rows

__all__ = ["SampleRows"]


class SampleRows:
    """Samples of one space, at most one for each row, added in the order of the rows.

    Samples are copied when they are added, so the copies of an environment may write all of them to one array.
    """

    def __init__(self, space: Space[Any], num_envs: int, what: str, owner: object) -> None:
        """Start without samples.

        Args:
            space: Space of a single environment; see `workers.spaces.check_space`.
            num_envs: Number of rows.
            what: What the samples are, for errors, such as ``"a state"``.
            owner: The environment that steps the copies, for errors.
        """
        self._space = space
        self._num_envs = num_envs
        self._what = what
        self._owner = owner
        self._rows: list[int] = []
        self._batch: Any = create_empty_array(space, n=num_envs, fn=np.zeros)
        self._put = row_writer(space, self._batch, what)

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Rows that have a sample, ``(num_envs,)`` bool."""
        mask = np.zeros(self._num_envs, np.bool_)
        mask[self._rows] = True
        return mask

    def add(self, row: int, sample: Any) -> None:
        """Copy a sample into its row.

        Raises:
            EnvError: The sample has another structure, shape or kind of dtype than the space.
        """
        self._put(row, sample)
        self._rows.append(row)

    def sample(self, row: int) -> Any:
        """Return a copy of the sample of a row; None if it has none."""
        return copy_containers(take(self._batch, row)) if row in self._rows else None

    def flat(self) -> npt.NDArray[Any]:
        """Return the samples, ``(num_envs, flatdim(space))``, with zeros in the other rows; see `flatten_rows`.

        The array may share memory with the batch: call it once, after the last sample.

        Raises:
            EnvError: A category is outside of its space; the error is marked with the row.
        """
        is_full = len(self._rows) == self._num_envs
        # only the rows with a sample: zero, which is in the others, is not in every space
        batch = self._batch if is_full else take(self._batch, self._rows)
        try:
            flat = flatten_rows(self._space, batch, self._what)
        except EnvError as error:
            mark_row(error, self._rows[marked_row(error) or 0], self._owner)
            raise
        if is_full:
            return flat
        full = np.zeros((self._num_envs, flat.shape[1]), flat.dtype)
        full[self._rows] = flat
        return full


def take(batch: Any, rows: Any) -> Any:
    """Return what an index selects of each array of a batch in a vector environment's format."""
    if isinstance(batch, dict):
        return {key: take(member, rows) for key, member in batch.items()}
    return tuple(take(member, rows) for member in batch) if isinstance(batch, tuple) else batch[rows]
