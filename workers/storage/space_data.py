"""Gymnasium spaces as data for JSON, and back: what agents are built from, without the environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from workers.errors import ConfigError

__all__ = ["from_data", "to_data"]


def to_data(space: Any) -> Any:
    """Return a space, or dictionaries of spaces, as data for JSON.

    Args:
        space: A space, None, or a dictionary whose values are these; other values are data already. Of a space of an
            unknown kind, only its text is kept.
    """
    if isinstance(space, Space):
        return {"space": type(space).__name__, **_fields(space)}
    return {name: to_data(item) for name, item in space.items()} if isinstance(space, Mapping) else space


def from_data(data: Any) -> Any:
    """Return what `to_data` was given.

    Raises:
        ConfigError: A space is of an unknown kind, or the data is damaged.
    """
    try:
        return _from_data(data)
    except ConfigError:
        raise
    except Exception as error:  # anything may be in a file
        raise ConfigError(f"the spaces are damaged: {type(error).__name__}: {error}") from error


def _fields(space: Space[Any]) -> dict[str, Any]:
    kind = type(space)
    if kind is Box:
        bounds = {"low": _elements(space.low), "high": _elements(space.high)}  # type: ignore[attr-defined]
        return {**bounds, "shape": list(space.shape or ()), "dtype": str(space.dtype)}
    if kind is Discrete:
        return {"n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}  # type: ignore[attr-defined]
    if kind is MultiDiscrete:
        sizes = {"nvec": space.nvec.tolist(), "start": space.start.tolist()}  # type: ignore[attr-defined]
        return {**sizes, "dtype": str(space.dtype)}
    if kind is MultiBinary:
        return {"n": np.asarray(space.n).tolist()}  # type: ignore[attr-defined]
    if kind is Dict:
        return {"members": [[key, to_data(item)] for key, item in space.items()]}  # type: ignore[attr-defined]
    if kind is Tuple:
        return {"members": [to_data(item) for item in space]}  # type: ignore[attr-defined]
    return {"text": str(space)}


def _elements(bounds: npt.NDArray[Any]) -> Any:
    """Return the elements of an array, in C order; a single one if they are all equal. JSON has no infinity."""
    elements = [str(value) if value in (np.inf, -np.inf) else value for value in bounds.ravel().tolist()]
    return elements[0] if len(set(elements)) == 1 else elements


def _array(elements: Any, shape: list[int], dtype: str) -> npt.NDArray[Any]:
    array = np.array(elements, dtype)
    return array.reshape(shape) if array.ndim else np.full(shape, array)


def _from_data(data: Any) -> Any:
    if not isinstance(data, dict):
        return data
    kind = data.get("space")
    if not isinstance(kind, str):  # there may be an agent of this name
        return {name: _from_data(item) for name, item in data.items()}
    if kind == "Box":
        low, high = (_array(data[key], data["shape"], data["dtype"]) for key in ("low", "high"))
        return Box(low, high, dtype=low.dtype.type)
    if kind == "Discrete":
        return Discrete(data["n"], start=data["start"], dtype=np.dtype(data["dtype"]).type)
    if kind == "MultiDiscrete":
        return MultiDiscrete(data["nvec"], start=data["start"], dtype=np.dtype(data["dtype"]).type)
    if kind == "MultiBinary":
        return MultiBinary(data["n"])
    if kind == "Dict":
        return Dict([(key, _from_data(item)) for key, item in data["members"]])
    if kind == "Tuple":
        return Tuple([_from_data(item) for item in data["members"]])
    raise ConfigError(
        f"the space {data['text']} is not of a kind that can be stored; expected Box, Discrete, MultiDiscrete, "
        "MultiBinary, or a Dict or Tuple of these"
    )
