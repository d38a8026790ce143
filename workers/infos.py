"""Infos of vectorised environments: take and merge rows as Gymnasium does, and find scalars to log.

An entry is *by row* if it is an array with one row per environment; the boolean array ``_key``, its *mask*, marks the
valid rows of ``key``. The same holds for the entries of nested dictionaries. Everything else belongs to all rows.

Entries with a mask are always laid out as `workers.info_rows.merge_rows` makes them of the values of their rows. An
agent gets the same infos with and without the rows of other agents, and the parts of a batch merge into the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.copying import copy_containers
from workers.frameworks import Framework
from workers.frameworks.numpy import FRAMEWORK as NUMPY
from workers.info_rows import Infos, Mask, check_names, empty, is_column, mask_name, mask_of, merge_columns

__all__ = ["infos_by_scope", "mask_rows", "merge_infos", "overlay", "scalars", "take_rows"]

NumpyArray = npt.NDArray[Any]


def _is_by_row(value: Any, rows: int, framework: Framework) -> bool:
    """Return whether a value is an array with one row per environment."""
    if isinstance(value, np.ndarray) or framework.is_array(value):
        return value.ndim > 0 and value.shape[0] == rows
    return False


def take_rows(infos: Infos, start: int, stop: int, rows: int, framework: Framework) -> Infos:
    """Return the infos of the environments ``[start, stop)`` out of `rows`, as new dictionaries and arrays.

    Entries with a mask are what `merge_rows` makes of these rows, but numbers keep the dtype of the whole batch.
    """
    return _map(infos, rows, framework, lambda array: array[start:stop], ())


def mask_rows(infos: Infos, mask: Mask) -> Infos:
    """Return NumPy infos with only the rows of `mask`; the other rows are empty, and their masks False."""

    def take(array: NumpyArray) -> NumpyArray:
        kept = empty(array.dtype, array.shape)
        kept[mask] = array[mask]
        return kept

    return _map(infos, len(mask), NUMPY, take, ())


def _map(infos: Infos, rows: int, framework: Framework, take: Callable[[Any], Any], where: tuple[Any, ...]) -> Infos:
    """Return new dictionaries, with `take` applied to every array by row, and all arrays and containers copied.

    Keys without a valid row are dropped.
    """
    taken: Infos = {}
    columns = []
    for key, value in infos.items():
        if isinstance(value, dict):
            taken[key] = _map(value, rows, framework, take, (*where, key))
        elif not _is_by_row(value, rows, framework):
            taken[key] = _copy(value, framework)
        elif value.dtype == object:
            taken[key] = take(value)
            columns.append(key)
        else:
            taken[key] = _copy(take(value), framework)
    _without_empty(taken)
    for key in columns:  # after taking: some of the objects may be numbers, or dictionaries
        if key in taken:
            column = taken[key]
            mask = mask_of(taken, key, len(column))
            taken[key] = (
                _copy(column, framework)
                if mask is None
                else merge_columns(key, [(column, 0, mask)], len(column), where=where)
            )
    return taken


def _without_empty(infos: Infos) -> Infos:
    """Delete the keys whose masks are all False, and return the same dictionary."""
    for key in list(infos):
        name = mask_name(key)
        mask = infos.get(name)
        if isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and not mask.any():
            del infos[name]
            infos.pop(key, None)
    return infos


def _copy(value: Any, framework: Framework) -> Any:
    """Copy an array or a container, so that an agent can modify its own; return anything else unchanged."""
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return value.copy()
    return framework.copy(value) if framework.is_array(value) else copy_containers(value)


def overlay(under: Infos, over: Infos, mask: Mask, *, where: tuple[Any, ...] = ()) -> Infos:
    """Return NumPy infos with the rows `mask` of `over` and the others of `under`, both masked by `mask_rows`.

    Raises:
        EnvError: A key of one is the name of a mask in the other, or two keys have masks of the same name.
    """
    merged, rows = dict(under), len(mask)
    for key, value in over.items():
        below = under.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            merged[key] = overlay(below, value, mask, where=(*where, key))
        elif below is None or not (is_column(value, rows) and is_column(below, rows)):
            merged[key] = value
        elif _are_alike(_dtypes_by_row([below, value], [rows, rows], NUMPY)):
            merged[key] = kept = below.copy()
            kept[mask] = value[mask]
        else:
            parts = [(infos[key], 0, _valid(infos, key, chosen)) for infos, chosen in ((under, ~mask), (over, mask))]
            merged[key] = merge_columns(key, parts, rows, where=where)
    check_names(merged, [under, over], where)
    return merged


def _valid(infos: Infos, key: Any, chosen: Mask) -> Mask:
    """Return which of the chosen rows have the key."""
    mask = mask_of(infos, key, len(chosen))
    return chosen if mask is None else chosen & mask


def merge_infos(
    parts: Sequence[Infos], sizes: Sequence[int], framework: Framework, *, where: tuple[Any, ...] = ()
) -> Infos:
    """Merge the infos of the scopes, in scope order, into those of the full batch.

    Arrays by row are concatenated, and so are masks; if a scope lacks the key, its rows are empty and False in the
    mask. Where entries with a mask have different layouts, they become what `merge_rows` makes of all rows.
    Dictionaries are merged recursively. Floats without dimensions become their mean, weighted by environments.
    Integers, booleans, strings and anything else become a list by scope, with None for a scope that lacks the key. Keys
    without a valid row are dropped: not every scope needs to have them. Infos of a single scope are returned unchanged.

    Args:
        parts: Infos of each scope.
        sizes: Number of environments of each scope.
        framework: Framework whose arrays may occur in addition to NumPy's.
        where: The keys under which the infos are in those of the environment, for messages.

    Raises:
        EnvError: A key of one scope is the name of a mask in another, or two keys have masks of the same name.
    """
    if len(parts) == 1:
        return parts[0]
    merged: Infos = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        values = [part.get(key) for part in parts]
        known = [value for value in values if value is not None]
        dtypes = _dtypes_by_row(values, sizes, framework)
        if known and all(isinstance(value, dict) for value in known):
            merged[key] = merge_infos([value or {} for value in values], sizes, framework, where=(*where, key))
        elif _are_alike(dtypes):
            merged[key] = _concatenate(values, known[0], sizes, framework)
        elif columns := _columns(key, parts, sizes):
            merged[key] = merge_columns(key, columns, sum(sizes), where=where)
        elif len(dtypes) == 1 or (dtypes and all(getattr(dtype, "kind", "f") in "biufc" for dtype in dtypes)):
            merged[key] = _concatenate(values, known[0], sizes, framework)
        elif known and all(_is_float(value, framework) for value in known):
            weights = [size for value, size in zip(values, sizes, strict=True) if value is not None]
            floats = [float(value) for value in known]
            merged[key] = floats[0] if len(set(floats)) == 1 else float(np.average(floats, weights=weights))
        else:
            merged[key] = values
    check_names(merged, parts, where)
    return _without_empty(merged)


def _dtypes_by_row(values: Sequence[Any], sizes: Sequence[int], framework: Framework) -> set[Any]:
    """Return the dtypes of arrays by row, of one library, whose rows have one shape; empty if they are not that."""
    dtypes, kinds = set(), set()
    for value, size in zip(values, sizes, strict=True):
        if value is None:
            continue
        if not _is_by_row(value, size, framework):
            return set()
        dtypes.add(value.dtype)
        kinds.add((isinstance(value, np.ndarray), *value.shape[1:]))
    return dtypes if len(kinds) == 1 else set()


def _are_alike(dtypes: set[Any]) -> bool:
    """Return whether arrays of these dtypes can be joined as they are. The layout of objects depends on all of them."""
    return len(dtypes) == 1 and np.dtype(object) not in dtypes


def _columns(key: Any, parts: Sequence[Infos], sizes: Sequence[int]) -> list[tuple[Any, int, Mask]]:
    """Return the columns of a key for `merge_columns`; empty if a scope has an entry that is not one with a mask."""
    columns = []
    first = 0
    for part, size in zip(parts, sizes, strict=True):
        if part.get(key) is not None:
            mask = mask_of(part, key, size)
            if mask is None or not is_column(part[key], size):
                return []
            columns.append((part[key], first, mask))
        first += size
    return columns


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
            by_scope[key] = infos_by_scope(value, sizes, framework, _having(mask_of(infos, key, rows), sizes) or having)
        elif _is_by_row(value, rows, framework):
            by_scope[key] = value
        elif _is_float(value, framework):
            is_elsewhere = framework.is_array(value) and not framework.is_on_host(value)
            by_scope[key] = value if is_elsewhere else float(value)  # to read it would wait for the device
        else:
            by_scope[key] = [value if has else None for has in having]
    return _without_empty(by_scope)


def _having(mask: Mask | None, sizes: Sequence[int]) -> list[bool] | None:
    """Return which scopes have a row in the mask; None without a mask."""
    return None if mask is None else [bool(part.any()) for part in np.split(mask, np.cumsum(sizes)[:-1])]


def _concatenate(values: Sequence[Any], like: Any, sizes: Sequence[int], framework: Framework) -> Any:
    is_numpys = isinstance(like, np.ndarray)
    filler = like if is_numpys else framework.to_numpy(like)
    rows: list[Any] = []
    for value, size in zip(values, sizes, strict=True):
        if value is None:
            value = empty(filler.dtype, (size, *filler.shape[1:]))
            value = value if is_numpys else framework.from_numpy(value)
        rows.append(value)
    return np.concatenate(rows) if is_numpys else framework.concatenate(rows)


def _is_float(value: Any, framework: Framework) -> bool:
    if framework.is_array(value):
        return value.ndim == 0 and framework.kind(value) == "f"
    if isinstance(value, np.ndarray):
        return value.ndim == 0 and bool(np.issubdtype(value.dtype, np.floating))
    return isinstance(value, (float, np.floating))


def scalars(infos: Infos, rows: int, framework: Framework, mask: Mask | None = None) -> Iterator[tuple[str, float]]:
    """Yield the names and values to log: scalars, and means of arrays by row over their valid rows.

    Args:
        infos: Infos under one key.
        rows: Number of environments.
        framework: Framework whose arrays may occur in addition to NumPy's.
        mask: Valid rows of entries without their own mask; None for all rows.
    """
    masks = {mask_name(key) for key in infos}
    for key, value in infos.items():
        if key in masks:
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
            yield str(key), float(array.reshape(()))
        elif array.ndim and array.shape[0] == rows:
            own = infos.get(mask_name(key), mask)
            valid = array if own is None else array[framework.to_numpy(own) if framework.is_array(own) else own]
            if valid.size:
                yield str(key), float(valid.mean())
