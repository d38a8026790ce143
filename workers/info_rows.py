"""Infos of single environments, and the rule by which they become those of a batch, in Gymnasium's format.

A *column* has the values of a key in all rows: an array with one row per environment, or a dictionary of columns. The
boolean array ``_key``, the *mask* of ``key``, marks the rows that have the key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from reprlib import repr as short
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.copying import copy_containers
from workers.errors import EnvError

__all__ = [
    "Infos",
    "Mask",
    "add_row",
    "check_infos",
    "check_names",
    "empty",
    "is_column",
    "mask_name",
    "mask_of",
    "merge_columns",
    "merge_rows",
]

Infos = dict[Any, Any]
NumpyArray = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

Form = Any
"""How a value is stored: the dtype and shape of its row in an array, `dict`, or None for an object array."""

_FORMS: dict[type, Form] = {
    **{kind: (np.dtype(kind), ()) for kind in (bool, int, float, np.float32, np.float64, np.int32, np.int64)},
    **dict.fromkeys((str, bytes, list, tuple, type(None))),
    dict: dict,
}
_TEXTS = {str, bytes, type(None)}
_PYTHONS = {np.dtype(kind) for kind in (bool, int, float)}
_SMALLEST, _LARGEST = np.iinfo(int).min, np.iinfo(int).max
_EXACT = 2**53
"""Largest integer up to which float64 has all integers."""


def check_infos(infos: Any, owner: Any) -> Infos:
    """Return infos as a dictionary.

    Args:
        infos: What an environment returned.
        owner: The environment, or its name.

    Raises:
        EnvError: `infos` is not a mapping.
    """
    if isinstance(infos, dict):
        return infos
    if isinstance(infos, Mapping):
        return dict(infos)
    given = "None" if infos is None else f"{short(infos)} of type {type(infos).__qualname__}"
    raise EnvError(f"{owner}: the infos are {given}; expected a dictionary, such as {{}}")


def mask_name(key: Any) -> str:
    """Return the name of a key's mask: its text after an underscore; the members of sets are sorted in it."""
    try:
        return f"_{key}" if type(key) is str else f"_{_text(key, str)}"
    except Exception as error:  # the class is the user's
        raise EnvError(
            f"infos have a key of type {type(key).__qualname__} without a name: str() of it fails with "
            f"{type(error).__name__}: {error}"
        ) from error


def _text(key: Any, text: Callable[[Any], str] = repr) -> str:
    """Return the same text in every process: the order of a set's members differs between processes."""
    if type(key) is frozenset and key:
        return f"frozenset({{{', '.join(sorted(map(_text, key)))}}})"
    if type(key) is tuple:
        return f"({', '.join(map(_text, key))}{',' * (len(key) == 1)})"
    return text(key)


def mask_of(infos: Infos, key: Any, rows: int) -> Mask | None:
    """Return the mask of a key, ``(rows,)``; None if it has none."""
    mask = infos.get(mask_name(key))
    return mask if isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == (rows,) else None


def merge_rows(rows: Sequence[Mapping[Any, Any] | None], *, where: tuple[Any, ...] = ()) -> Infos:
    """Merge the infos of single environments into those of a batch.

    The result is that of Gymnasium's vector environments, except that it follows from the values of all rows, not from
    the first row that has the key:

    - Dictionaries become one dictionary, recursively.
    - Numbers and arrays of one shape become an array ``(rows, ...)``, with NumPy's common type of all values: float64
      for an int and a float.
    - Anything else becomes an object array ``(rows,)`` of the values: strings, lists and other objects; arrays of
      several shapes; values of several kinds (a dictionary and a number, a number and None); integers that would lose
      digits. ``final_obs`` is always an object array.

    A row without the key is zero, or None in an object array, and False in the mask. Arrays and containers are copied.

    Args:
        rows: Infos of each row, with keys of any hashable type; None or ``{}`` for a row without infos.
        where: The keys under which the infos are in those of the environment, for messages.

    Raises:
        EnvError: A key is also the name of another key's mask, two keys have masks of the same name, or a dictionary
            contains itself. The message has the keys.
    """
    if not any(rows):
        return {}
    return _merge([(row, infos) for row, infos in enumerate(rows) if infos], len(rows), where)


def _merge(given: Sequence[tuple[int, Mapping[Any, Any]]], rows: int, where: tuple[Any, ...]) -> Infos:
    """Merge the infos given for some rows; see `merge_rows`."""
    columns: dict[Any, tuple[list[int], list[Any]]] = {}
    for row, infos in given:
        for key, value in infos.items():
            column = columns.get(key)
            if column is None:
                column = columns[key] = ([], [])
            column[0].append(row)
            column[1].append(value)
    if not all(type(key) is str for key in columns):
        _check_equal_keys([infos for _, infos in given], where)
    merged: Infos = {}
    for key, (indices, values) in columns.items():
        name = mask_name(key)
        if name in columns or name in merged:
            raise _clash(key, columns, where)
        merged[key] = _column(key, indices, values, rows, where)
        merged[name] = mask = np.zeros(rows, np.bool_)
        mask[indices] = True
    return merged


def add_row(num_envs: int, infos: Infos, row_infos: Any, row: int, *, where: tuple[Any, ...] = ()) -> Infos:
    """Add the infos of one environment to those of the batch, in place, and return them.

    With the first argument bound, it is ``VectorEnv._add_info`` of Gymnasium, by the rule of `merge_rows`.

    Raises:
        EnvError: `row_infos` is not a mapping; or as in `merge_rows`.
    """
    if not isinstance(row_infos, dict):
        row_infos = check_infos(row_infos, f"row {row}")
    for key, value in row_infos.items():
        name = f"_{key}" if type(key) is str else mask_name(key)
        column, mask = infos.get(key), infos.get(name)
        if column is None and mask is None:
            infos[key], infos[name] = _column(key, [row], [value], num_envs, where), np.zeros(num_envs, np.bool_)
            mask = infos[name]
        elif column is None or mask is None:
            raise _clash(key, infos, where)
        elif isinstance(value, dict) and isinstance(column, dict):
            add_row(num_envs, column, value, row, where=(*where, key))
        elif isinstance(column, dict) or not _put(key, value, column, mask, row):
            others = np.flatnonzero(mask & (np.arange(num_envs) != row)).tolist()
            infos[key] = _column(key, [*others, row], [*_values(column, others, num_envs), value], num_envs, where)
        mask[row] = True
    return infos


def _put(key: Any, value: Any, column: NumpyArray, mask: Mask, row: int) -> bool:
    """Store a value in an array by row, unless that changes its layout or its other values; return whether it did."""
    form = None if _is_final_obs(key) else _form(value)
    if column.dtype.kind != "O":
        if form != (column.dtype, column.shape[1:]):
            return False
    elif column.ndim > 1 or form is not None:
        if mask[row] or form is dict or all(_form(other) != form for other in column[mask]):
            return False
        value = _values(_column(key, [0], [value], 1, ()), [0], 1)[0]
    column[row] = value if column.dtype.kind != "O" else copy_containers(value)
    return True


def _column(key: Any, indices: Sequence[int], values: Sequence[Any], rows: int, where: tuple[Any, ...]) -> Any:
    """Return what the values of a key become: an array by row, or a dictionary of such arrays."""
    if _TEXTS.issuperset(map(type, values)):
        return _objects(indices, values, rows)
    forms = [None] * len(values) if _is_final_obs(key) else list(map(_form, values))
    form = _common_form(set(forms), values)
    if form is None:
        return _objects(indices, map(copy_containers, _alike(key, values, forms, where)), rows)
    if form is dict:
        try:
            return _merge(list(zip(indices, values, strict=True)), rows, (*where, key))
        except RecursionError:
            raise EnvError(f"{_path(*where, key)} is nested too deeply: a dictionary in it contains itself") from None
    dtype, shape = form
    column = empty(dtype, (rows, *shape))
    if dtype.kind != "O":
        column[indices] = values
    else:
        for row, value in zip(indices, values, strict=True):
            column[row] = copy_containers(value)
    return column


def _objects(indices: Sequence[int], values: Iterable[Any], rows: int) -> NumpyArray:
    """Return the object array with the values; they are stored one by one, because they may be sequences."""
    column = empty(np.dtype(object), (rows,))
    for row, value in zip(indices, values, strict=True):
        column[row] = value
    return column


def _alike(key: Any, values: Sequence[Any], forms: Sequence[Form], where: tuple[Any, ...]) -> list[Any]:
    """Return the values of an object array, with dictionaries, and numbers of one shape, as in a column of their own.

    So it does not matter whether some of the rows have been in such a column before.
    """
    alike = list(values)
    groups: dict[Any, dict[Form, list[int]]] = {}
    for place, form in enumerate(forms):
        if form is not None:
            groups.setdefault(_family(form), {}).setdefault(form, []).append(place)
    for by_form in groups.values():
        batches = [*by_form.values()]
        places = [place for batch in batches for place in batch]
        if _common_form(set(by_form), [values[place] for place in places]) is not None:
            batches = [places]
        for batch in batches:
            count = len(batch)
            column = _column(key, range(count), [values[place] for place in batch], count, where)
            for place, value in zip(batch, _values(column, range(count), count), strict=True):
                alike[place] = value
    return alike


def _path(*keys: Any) -> str:
    """Return the first keys as they are written in Python, such as ``infos['a']['b']``."""
    return "infos" + "".join(f"[{short(key)}]" for key in keys[:5]) + "…" * (len(keys) > 5)


def empty(dtype: np.dtype[Any], shape: tuple[int, ...]) -> NumpyArray:
    """Return an array of fillers, which are None for objects and zero for other dtypes."""
    return np.full(shape, None, dtype=object) if dtype.kind == "O" else np.zeros(shape, dtype=dtype)


def _is_final_obs(key: Any) -> bool:
    return isinstance(key, str) and key == "final_obs"


def _form(value: Any) -> Form:
    kind = type(value)
    if kind in _FORMS:
        return None if kind is int and not _SMALLEST <= value <= _LARGEST else _FORMS[kind]
    if isinstance(value, dict):
        return dict
    if isinstance(value, np.number) or (isinstance(value, np.ndarray) and (value.ndim or value.dtype != object)):
        return value.dtype, value.shape
    return None


def _family(form: Form) -> Any:
    """Return what forms have in common that may have a common form."""
    if form is None or form is dict:
        return form
    dtype, shape = form
    return shape, "numbers" if dtype.kind in "biufc" else dtype.kind if dtype.kind in "US" else dtype


def _common_form(forms: set[Form], values: Sequence[Any]) -> Form:
    """Return the form that holds all values without changing any of them; None if there is none."""
    if len(forms) == 1:
        return next(iter(forms))
    if len(set(map(_family, forms))) > 1:
        return None
    dtype = np.result_type(*(dtype for dtype, _ in forms))
    if dtype.kind in "fc" and not all(map(_is_exact, values)):
        return None
    return dtype, next(iter(forms))[1]


def _is_exact(value: Any) -> bool:
    """Return whether float64 has all integers of `value`."""
    array = np.asarray(value)
    return array.dtype.kind not in "iu" or bool(((array >= -_EXACT) & (array <= _EXACT)).all())


def _listed(array: NumpyArray) -> list[Any]:
    """Return the items of a one-dimensional array that does not hold objects."""
    if array.dtype in _PYTHONS:
        return array.tolist()
    is_numbers = issubclass(array.dtype.type, np.number)
    return list(array) if is_numbers else [array[i, ...].copy() for i in range(len(array))]


def _values(column: Any, indices: Iterable[int], rows: int) -> list[Any]:
    """Return the values of some rows of a column of `rows` rows: the inverse of `_column`."""
    indices = list(indices)
    if not isinstance(column, dict):
        is_plain = column.ndim == 1 and column.dtype != object
        return _listed(column[indices]) if is_plain else [column[row] for row in indices]
    split: dict[int, Infos] = {row: {} for row in indices}
    masks = {mask_name(key): mask_of(column, key, rows) for key in column}
    for key, entry in column.items():
        if masks.get(key) is None:
            mask = masks[mask_name(key)]
            valid = indices if mask is None else [row for row in indices if mask[row]]
            for row, value in zip(valid, _values(entry, valid, rows), strict=True):
                split[row][key] = value
    return list(split.values())


def is_column(value: Any, rows: int) -> bool:
    """Return whether a value is an array of NumPy's with one row per environment, or a dictionary of nothing else."""
    if isinstance(value, dict):
        return all(is_column(entry, rows) for entry in value.values())
    return isinstance(value, np.ndarray) and value.ndim > 0 and value.shape[0] == rows


def merge_columns(key: Any, parts: Iterable[tuple[Any, int, Mask]], rows: int, *, where: tuple[Any, ...] = ()) -> Any:
    """Return the column of the values in parts of several columns, as `merge_rows` would make it.

    Args:
        key: Key of the columns.
        parts: Columns, each with the row of the result that is its first one, and a mask of the rows to take.
        rows: Number of rows of the result.
        where: As in `merge_rows`.
    """
    indices: list[int] = []
    values: list[Any] = []
    for column, first, mask in parts:
        taken = np.flatnonzero(mask).tolist()
        indices += [first + row for row in taken]
        values += _values(column, taken, len(mask))
    return _column(key, indices, values, rows, where)


def _clash(key: Any, others: Iterable[Any], where: tuple[Any, ...]) -> EnvError:
    """Return the error for a key whose mask cannot have its name because of one of the other keys."""
    name, other, why = mask_name(key), None, ""
    for other in others:
        if other == name or mask_name(other) == key:
            owner, mask = (key, other) if other == name else (other, key)
            why = f"{short(mask)} is the name of the mask of {short(owner)}"
        elif other != key and mask_name(other) == name:
            why = f"the masks of both would have the name {name!r}"
        elif other == key and mask_name(other) != name:
            why = f"they are equal, but their masks would have the names {mask_name(other)!r} and {name!r}"
        if why:
            break
    return EnvError(
        f"the keys {short(other)} and {short(key)} of {_path(*where)} clash: {why}; rename one of them, for example in "
        "a wrapper of the environment"
    )


def _check_equal_keys(parts: Iterable[Iterable[Any]], where: tuple[Any, ...]) -> None:
    """Check that keys that are equal, such as 1 and True, have the same name."""
    first: dict[Any, Any] = {}
    for key in (key for part in parts for key in part):
        known = first.setdefault(key, key)
        if known is not key and mask_name(known) != mask_name(key):
            raise _clash(key, [known], where)


def check_names(merged: Infos, parts: Sequence[Infos], where: tuple[Any, ...]) -> None:
    """Check that no key of one part is the name of a mask in another part.

    Args:
        merged: What the parts were merged to.
        parts: Infos with masks.
        where: As in `merge_rows`.

    Raises:
        EnvError: The message has the keys.
    """
    if all(type(key) is str and not (key[1:] in merged and f"_{key}" in merged) for key in merged):
        return
    parts_keys = []
    for part in parts:
        masks = {mask_name(key) for key in part}
        parts_keys.append([key for key in part if key not in masks])
    _check_equal_keys(parts_keys, where)
    names: dict[str, Any] = {}
    keys = dict.fromkeys(key for keys in parts_keys for key in keys)
    for key in keys:
        name = mask_name(key)
        if name in merged and (name in names or (name in keys and mask_name(name) in merged)):
            raise _clash(key, keys, where)
        names[name] = key
