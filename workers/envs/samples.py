"""What single environments give: samples of a space, rewards and flags, checked as they are put into a batch.

Values are converted only if nothing is lost but floating-point precision. Everything else is an `EnvError` that says
what was given and what was expected; whoever knows the row adds it (see `workers.errors.mark_row`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import Space
from gymnasium.spaces import Dict, Tuple

from workers.copying import copy_containers
from workers.errors import EnvError, type_name
from workers.info_rows import check_infos
from workers.spaces import check_members, converted

__all__ = [
    "RESERVED",
    "check_reserved",
    "checked_flag",
    "checked_infos",
    "checked_number",
    "checked_reset",
    "checked_step",
    "row_writer",
]

NumpyArray = npt.NDArray[Any]

RESERVED = frozenset(f"{mask}final_{what}" for what in ("obs", "state", "info") for mask in ("", "_"))
"""Keys of the infos that wrappers add when environments end, and their masks."""

_NATIVE = (np.ndarray, np.generic, int, float, list, tuple)
_ONE = ((), (1,))
"""Shapes of arrays with one element that count as numbers."""


def row_writer(space: Space[Any], batch: Any, what: str = "an observation") -> Callable[[int, Any], None]:
    """Return a function ``(row, sample)`` that copies a sample into its row of a batch.

    Args:
        space: Space of a single environment; see `workers.spaces.check_space`.
        batch: Arrays to write to, in a vector environment's format.
        what: What the samples are, for errors.

    Returns:
        The function. It raises an `EnvError` if a sample has another structure, shape or kind of dtype than `space`.
    """
    if isinstance(space, (Dict, Tuple)):
        keys = list(space.spaces) if isinstance(space, Dict) else list(range(len(space.spaces)))
        writers = {key: row_writer(space[key], batch[key], f"{what}, in [{key!r}],") for key in keys}  # type: ignore[index]

        def put_members(row: int, sample: Any) -> None:
            check_members(sample, space, keys, what)
            for key, put in writers.items():
                put(row, sample[key])

        return put_members

    dtype, shape = space.dtype, space.shape

    def put(row: int, sample: Any) -> None:
        if type(sample) is np.ndarray and sample.dtype is dtype and sample.shape == shape:
            batch[row] = sample
        else:
            batch[row] = _fitting(sample, space, what)

    return put


def _fitting(sample: Any, space: Space[Any], what: str) -> NumpyArray:
    """Return a sample as an array of the space's shape and dtype."""
    if not isinstance(sample, _NATIVE):
        raise EnvError(
            f"{what} is of type {type_name(type(sample))}; expected a NumPy array of shape {space.shape}, as in {space}"
        )
    if np.ma.is_masked(sample):
        raise EnvError(f"{what} is a masked array with masked elements; expected an array without a mask")
    try:
        array = np.asarray(sample)
    except ValueError as error:
        raise EnvError(
            f"{what} is a ragged {type_name(type(sample))}; expected an array of shape {space.shape}"
        ) from error
    if array.shape != space.shape:
        raise EnvError(f"{what} has shape {array.shape}; expected {space.shape}, as in {space}")
    return converted(array, space.dtype, what)


def checked_number(value: Any, what: str) -> float:
    """Return a reward as a float: a number, or an array of shape ``()`` or ``(1,)``.

    Raises:
        EnvError: It is something else.
    """
    if isinstance(value, (int, float, np.number, np.bool_)) and not isinstance(value, np.complexfloating):
        return float(value)
    if isinstance(value, np.ndarray) and value.shape in _ONE and value.dtype.kind in "fiub":
        return float(value.reshape(()))
    raise EnvError(f"{what} is {_described(value)}; expected a number, or an array of shape () or (1,)")


def checked_flag(value: Any, what: str) -> bool:
    """Return a flag as a bool: True, False, 0 or 1, or an array of shape ``()`` or ``(1,)`` with one of these.

    Raises:
        EnvError: It is something else.
    """
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, np.ndarray) and value.shape in _ONE and value.dtype.kind in "iub":
        value = value.reshape(()).item()
    if isinstance(value, (int, np.integer)) and value in (0, 1):
        return bool(value)
    raise EnvError(f"{what} is {_described(value)}; expected True or False")


def checked_step(given: Any) -> tuple[Any, Any, Any, Any, Any]:
    """Return what ``step`` gave, if it is a tuple of five.

    Raises:
        EnvError: It is something else, such as the four values of the old Gym.
    """
    if isinstance(given, (tuple, list)) and len(given) == 5:
        return given  # type: ignore[return-value]
    raise EnvError(
        f"step() returned {_returned(given)}; expected five: observations, rewards, terminated, truncated and infos"
    )


def checked_reset(given: Any) -> tuple[Any, Any]:
    """Return what ``reset`` gave, if it is a pair.

    Raises:
        EnvError: It is something else, such as only the observation, as in the old Gym.
    """
    if isinstance(given, (tuple, list)) and len(given) == 2:
        return given[0], given[1]
    raise EnvError(f"reset() returned {_returned(given)}; expected two: observations and infos")


def check_reserved(infos: Mapping[Any, Any], keys: frozenset[str], owner: object) -> None:
    """Check that infos have none of the keys that a wrapper adds itself.

    Raises:
        EnvError: They have one.
    """
    if not keys.isdisjoint(infos):
        taken = min(keys.intersection(infos))
        raise EnvError(
            f"{owner}: the infos have {taken!r}, which the wrapper adds itself; rename it, for example in a wrapper of "
            "the environment"
        )


def checked_infos(given: Any, reserved: frozenset[str], owner: object) -> dict[Any, Any]:
    """Return a copy of the infos that a copy gave: it may write to the same objects again, as may the next copy.

    Raises:
        EnvError: They are not a mapping, or have one of the keys that a wrapper adds itself.
    """
    infos = check_infos(given, owner)
    check_reserved(infos, reserved, owner)
    return {key: copy_containers(value) for key, value in infos.items()}


def _returned(given: Any) -> str:
    return f"{len(given)} values" if isinstance(given, (tuple, list)) else f"a {type_name(type(given))}"


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    return "None" if value is None else f"{str(value)[:40]!r} of type {type_name(type(value))}"
