"""Infos of vectorised environments: take and merge rows as Gymnasium does, and find scalars to log.

An entry is *by row* if it is an array with one row per environment; the boolean array ``_key`` marks the valid rows of
``key``. The same holds for the entries of nested dictionaries. Everything else belongs to all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.frameworks import Framework
from workers.frameworks.numpy import FRAMEWORK as NUMPY

__all__ = ["infos_by_scope", "mask_rows", "merge_infos", "overlay", "scalars", "take_rows"]

Infos = dict[str, Any]


def _is_by_row(value: Any, rows: int, framework: Framework) -> bool:
    if isinstance(value, np.ndarray) or framework.is_array(value):
        return value.ndim > 0 and value.shape[0] == rows
    return False


def _are_by_row(values: Sequence[Any], sizes: Sequence[int], framework: Framework) -> bool:
    """Return whether all values except None are arrays by row whose rows have the same shape."""
    pairs = [(value, size) for value, size in zip(values, sizes, strict=True) if value is not None]
    return all(_is_by_row(*pair, framework) for pair in pairs) and len({tuple(one.shape[1:]) for one, _ in pairs}) == 1


def _map(infos: Infos, rows: int, framework: Framework, take: Callable[[Any], Any]) -> Infos:
    """Return new dictionaries, with `take` applied to every array by row and the other arrays copied.

    Keys without a valid row are dropped.
    """
    taken: Infos = {}
    for key, value in infos.items():
        if isinstance(value, dict):
            taken[key] = _map(value, rows, framework, take)
        elif _is_by_row(value, rows, framework):
            taken[key] = take(value)
        else:
            taken[key] = _copy(value, framework)
    return _without_empty(taken)


def _without_empty(infos: Infos) -> Infos:
    """Delete the keys whose masks are all False, and return the same dictionary."""
    for mask in [key for key in infos if key.startswith("_") and key[1:] in infos]:
        if isinstance(infos.get(mask), np.ndarray) and not infos[mask].any():
            del infos[mask]
            infos.pop(mask[1:], None)
    return infos


def _copy(value: Any, framework: Framework) -> Any:
    """Copy an array, so that an agent can modify its own; return anything else unchanged."""
    if isinstance(value, np.ndarray):
        return value.copy()
    return framework.copy(value) if framework.is_array(value) else value


def take_rows(infos: Infos, start: int, stop: int, rows: int, framework: Framework) -> Infos:
    """Return the infos of the environments ``[start, stop)`` out of `rows`, as new dictionaries and arrays."""
    return _map(infos, rows, framework, lambda array: _copy(array[start:stop], framework))


def mask_rows(infos: Infos, mask: npt.NDArray[np.bool_]) -> Infos:
    """Return NumPy infos with only the rows of `mask`; the other rows are empty, and their masks False."""

    def take(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        kept = _empty(array, len(mask))
        kept[mask] = array[mask]
        return kept

    return _map(infos, len(mask), NUMPY, take)


def overlay(under: Infos, over: Infos, mask: npt.NDArray[np.bool_]) -> Infos:
    """Return NumPy infos with the rows `mask` of `over` and the others of `under`, both masked by `mask_rows`."""
    merged = dict(under)
    for key, value in over.items():
        below = under.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            merged[key] = overlay(below, value, mask)
        elif below is not None and _is_by_row(value, len(mask), NUMPY) and _is_by_row(below, len(mask), NUMPY):
            kept = below.astype(np.result_type(below, value), copy=True)
            kept[mask] = value[mask]
            merged[key] = kept
        else:
            merged[key] = value
    return merged


def _empty(like: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    """Return Gymnasium's filler: None for objects, zeros for other dtypes."""
    shape = (rows, *like.shape[1:])
    return np.full(shape, None, dtype=object) if like.dtype == object else np.zeros(shape, dtype=like.dtype)


def merge_infos(parts: Sequence[Infos], sizes: Sequence[int], framework: Framework) -> Infos:
    """Merge the infos of the scopes, in scope order, into those of the full batch.

    Arrays by row are concatenated, and so are masks; if a scope lacks the key, its rows are empty and False in the
    mask. Dictionaries are merged recursively. Floats without dimensions become their mean, weighted by environments.
    Integers, booleans, strings and anything else become a list by scope, with None for a scope that lacks the key. Keys
    without a valid row are dropped: not every scope needs to have them. Infos of a single scope are returned unchanged.

    Args:
        parts: Infos of each scope.
        sizes: Number of environments of each scope.
        framework: Framework whose arrays may occur in addition to NumPy's.
    """
    if len(parts) == 1:
        return parts[0]
    merged: Infos = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        values = [part.get(key) for part in parts]
        known = [value for value in values if value is not None]
        if known and all(isinstance(value, dict) for value in known):
            merged[key] = merge_infos([value or {} for value in values], sizes, framework)
        elif known and _are_by_row(values, sizes, framework):
            merged[key] = _concatenate(values, known[0], sizes, framework)
        elif known and all(_is_float(value, framework) for value in known):
            weights = [size for value, size in zip(values, sizes, strict=True) if value is not None]
            floats = [float(value) for value in known]
            merged[key] = floats[0] if len(set(floats)) == 1 else float(np.average(floats, weights=weights))
        else:
            merged[key] = values
    return _without_empty(merged)


def infos_by_scope(
    infos: Infos, sizes: Sequence[int], framework: Framework, having: Sequence[bool] | None = None
) -> Infos:
    """Return the infos as `merge_infos` would if each scope had the entries that belong to all rows.

    Args:
        infos: Infos of the full batch.
        sizes: Number of environments of each scope.
        framework: Framework whose arrays may occur in addition to NumPy's.
        having: Which scopes have the entries; all if None. A dictionary belongs to the scopes with rows in its mask.
    """
    by_scope: Infos = {}
    rows, having = sum(sizes), having or [True] * len(sizes)
    for key, value in infos.items():
        if isinstance(value, dict):
            by_scope[key] = infos_by_scope(value, sizes, framework, _having(infos.get(f"_{key}"), sizes) or having)
        elif _is_by_row(value, rows, framework):
            by_scope[key] = value
        elif _is_float(value, framework):
            by_scope[key] = float(value)
        else:
            by_scope[key] = [value if has else None for has in having]
    return _without_empty(by_scope)


def _having(mask: Any, sizes: Sequence[int]) -> list[bool] | None:
    """Return which scopes have a row in the mask; None if `mask` is not a mask."""
    if not _is_by_row(mask, sum(sizes), NUMPY):
        return None
    return [bool(part.any()) for part in np.split(mask, np.cumsum(sizes)[:-1])]


def _concatenate(values: Sequence[Any], like: Any, sizes: Sequence[int], framework: Framework) -> Any:
    if isinstance(like, np.ndarray):
        arrays = (_empty(like, size) if value is None else value for value, size in zip(values, sizes, strict=True))
        return np.concatenate(list(arrays))
    filler = framework.to_numpy(like)
    return framework.concatenate(
        [
            framework.from_numpy(_empty(filler, size)) if value is None else value
            for value, size in zip(values, sizes, strict=True)
        ]
    )


def _is_float(value: Any, framework: Framework) -> bool:
    if framework.is_array(value) and value.ndim == 0:
        value = framework.to_numpy(value)
    if isinstance(value, np.ndarray):
        return value.ndim == 0 and bool(np.issubdtype(value.dtype, np.floating))
    return isinstance(value, (float, np.floating))


def scalars(
    infos: Infos, rows: int, framework: Framework, mask: npt.NDArray[np.bool_] | None = None
) -> Iterator[tuple[str, float]]:
    """Yield the names and values to log: scalars, and means of arrays by row over their valid rows.

    Args:
        infos: Infos under one key.
        rows: Number of environments.
        framework: Framework whose arrays may occur in addition to NumPy's.
        mask: Valid rows of entries without their own mask; None for all rows.
    """
    for key, value in infos.items():
        if key.startswith("_") and key[1:] in infos:
            continue
        if framework.is_array(value):
            array = framework.to_numpy(value)
        elif isinstance(value, (bool, int, float, np.generic, np.ndarray)):
            array = np.asarray(value)
        else:
            continue
        if array.dtype.kind not in "fiub":
            continue
        if array.size == 1:
            yield key, float(array.reshape(()))
        elif array.ndim and array.shape[0] == rows:
            own = infos.get(f"_{key}", mask)
            valid = array if own is None else array[framework.to_numpy(own) if framework.is_array(own) else own]
            if valid.size:
                yield key, float(valid.mean())
