"""Running statistics that environment wrappers hold, such as Gymnasium's ``NormalizeObservation``.

A statistic is an attribute of a wrapper with ``mean``, ``var`` and ``count``, numbers or NumPy arrays, like Gymnasium's
``RunningMeanStd``. Wrappers around single copies, around vector environments and around PettingZoo environments are
searched from the outside in. The copies of an ``AsyncVectorEnv`` live in other processes: there, only ``obs_rms`` and
``return_rms`` of the outermost wrapper that has them are found.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import AsyncVectorEnv

__all__ = ["Statistics", "are_statistics", "is_statistic", "layers", "load_statistics", "read_statistics"]

Statistics = Mapping[str, Mapping[str, Any]]
"""The statistics of one row: mean, var and count by the names of the wrapper and its attribute."""

_FIELDS = ("mean", "var", "count")
_INNER = ("env", "_env", "aec_env")
_REMOTE = ("obs_rms", "return_rms")
_REMEDY = "let the agents normalise instead, such as with normalize_observations of PPO"


class _Found(NamedTuple):
    """Statistics by name: of the wrappers around the whole batch, and of those around each copy.

    Attributes:
        remote: The vector environment whose copies live in other processes; `copies` has copies of their statistics.
    """

    batch: dict[str, Any]
    copies: list[dict[str, Any]]
    remote: AsyncVectorEnv[Any, Any] | None = None


def read_statistics(env: Any) -> list[Statistics]:
    """Return copies of the statistics of each row, which has an empty dictionary if there are none.

    Args:
        env: Wrapped environments.
    """
    batch, copies, _ = _find(env)
    return [_read(batch | copy) for copy in copies]


def are_statistics(value: object) -> bool:
    """Return whether a value, such as one from a file, has the form of `read_statistics`, with possible numbers."""
    rows = value if isinstance(value, list) else [None]
    return all(isinstance(row, Mapping) and all(map(_is_entry, row.items())) for row in rows)


def _is_entry(entry: tuple[object, object]) -> bool:
    name, held = entry
    if (
        not isinstance(name, str)
        or not name.isprintable()
        or not isinstance(held, Mapping)
        or set(held) != set(_FIELDS)
    ):
        return False
    fields = [held[field] for field in _FIELDS]
    if not all(isinstance(one, np.ndarray) and one.dtype.kind in "biuf" for one in fields):
        return False
    return not any((held[field] < 0).any() for field in ("var", "count"))


def load_statistics(env: Any, rows: Sequence[Statistics]) -> list[str]:
    """Give the wrappers the statistics of their rows, and keep the statistics from changing.

    Args:
        env: Wrapped environments that have not been reset yet.
        rows: The statistics of each row; empty for rows without any.

    Returns:
        What cannot be carried over, or will change nevertheless, and what to do about it.
    """
    batch, copies, remote = _find(env)
    notes = [_put(name, held, [row.get(name) for row in rows]) for name, held in batch.items()]
    for copy, row in zip(copies, rows, strict=True):
        notes += [_put(name, held, [row.get(name)]) for name, held in copy.items()]
        notes += [
            f"no wrapper takes the stored statistics of {name} before the first reset; {_REMEDY}"
            for name in row
            if name not in copy and name not in batch
        ]
    if remote is not None:
        for name in copies[0]:
            remote.set_attr(name, [copy[name] for copy in copies])
    return list(dict.fromkeys(note for note in notes if note))


def _find(env: Any) -> _Found:
    batch: dict[str, Any] = {}
    copies: list[dict[str, Any]] = [{} for _ in range(env.num_envs)]
    inner = None
    for layer in layers(env):
        _add(batch, layer)
        inner = layer
    if isinstance(inner, AsyncVectorEnv):
        for name in _REMOTE:
            if all(inner.call("has_wrapper_attr", name)):
                for copy, held in zip(copies, inner.get_attr(name), strict=True):
                    copy[name] = held
        return _Found(batch, copies, inner)
    envs = getattr(inner, "envs", None)
    if isinstance(envs, (list, tuple)) and len(envs) == env.num_envs:
        for copy, single in zip(copies, envs, strict=True):
            for layer in layers(single):
                _add(copy, layer, taken=batch)
    return _Found(batch, copies)


def layers(env: Any) -> Iterator[Any]:
    """Yield an environment and those inside it, from the outside in."""
    seen: set[int] = set()
    while hasattr(env, "__dict__") and id(env) not in seen:
        yield env
        seen.add(id(env))
        env = next((inner for name in _INNER if (inner := vars(env).get(name)) is not None), None)


def _add(found: dict[str, Any], layer: Any, taken: Container[str] = ()) -> None:
    """Add the statistics of a wrapper to those found."""
    for attribute, value in vars(layer).items():
        if is_statistic(value):
            name = f"{type(layer).__name__}.{attribute}"
            while name in found or name in taken:  # several wrappers of one kind
                name += "'"
            found[name] = value


def is_statistic(value: Any) -> bool:
    """Return whether a value has the fields of running statistics."""
    try:
        fields = [getattr(value, field) for field in _FIELDS]
    except Exception:  # properties of the user's objects may raise anything
        return False
    return all(isinstance(field, (int, float, np.ndarray, np.generic)) for field in fields)


def _read(found: Mapping[str, Any]) -> Statistics:
    return {name: {field: np.array(getattr(held, field)) for field in _FIELDS} for name, held in found.items()}


def _put(name: str, held: Any, stored: Sequence[Mapping[str, Any] | None]) -> str:
    """Load the stored statistics, one or one for each row of the batch; return what is wrong, or nothing."""
    parts = [part for part in stored if part is not None and _fits(part, held)]
    if len(parts) < len(stored):
        return (
            f"no statistics that fit are stored for {name}: the evaluation starts with empty ones, so the agents see "
            f"other observations or rewards than in training; {_REMEDY}"
        )
    try:
        for field in _FIELDS:
            values = [part[field] for part in parts]
            # a batch whose scopes had environments of their own has different statistics in different rows
            same = all(np.array_equal(value, values[0]) for value in values)
            setattr(held, field, np.array(values[0] if same else values))
        if not callable(held.update):
            raise TypeError(f"update is a {type(held.update).__qualname__}")
        held.update = _no_update
    except (AttributeError, TypeError, ValueError) as error:
        return (
            f"the statistics of {name}, a {type(held).__qualname__}, cannot be set and kept from changing ({error}): "
            f"they go on changing in the evaluation; {_REMEDY}"
        )
    return ""


def _fits(part: Mapping[str, Any], held: Any) -> bool:
    return all(np.shape(part[field]) == np.shape(getattr(held, field)) for field in _FIELDS)


def _no_update(*_args: Any, **_kwargs: Any) -> None:
    """Replace ``update`` of a statistic that must not change."""
