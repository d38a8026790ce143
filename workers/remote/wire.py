"""The wire format of array trees: the layout of the tree and one block of bytes.

The layout is the same in every iteration, so it need not be sent again. Framework arrays travel as NumPy arrays
and are rebuilt on arrival.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from reprlib import repr as short
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from workers.errors import EnvError, ends_program, message_of, type_name
from workers.fetching import Fetch
from workers.frameworks import Framework
from workers.info_rows import mask_name
from workers.pickling import dumps as plain_dumps
from workers.pickling import loads
from workers.remote.layout import (
    ALIGNMENT,
    ARRAY,
    DICT,
    DICT_OF_OTHER_KEYS,
    FRAMEWORK_ARRAY,
    MOST_LEVELS,
    PICKLED,
    SCALAR,
    TUPLE,
    DamagedError,
    check_layout,
    describe,
    goes_as_bytes,
    is_small,
)
from workers.types import Outcome

__all__ = ["FrameworkArray", "Packed", "check_packed", "from_wire", "read_outcome", "to_wire"]

_SCALARS = {bool, int, float, str, bytes, type(None)}
_STRING = {str}
_DICTS = (DICT, DICT_OF_OTHER_KEYS)
_MOST_KEYS = 10
"""How deep to look for an object that cannot be pickled, and how many keys a message has."""

_REMEDY = "for example in a wrapper of the environment, or train with orchestrator='local'"

Dumps = Callable[[Any], bytes]


@dataclass(frozen=True, slots=True)
class FrameworkArray:
    """The values of an array that becomes a framework array on arrival."""

    values: npt.NDArray[Any]


class Packed(NamedTuple):
    """A tree in wire format.

    Attributes:
        spec: Layout of the tree; see `workers.remote.layout`.
        others: The leaves that are not arrays, and arrays of objects: scalars as they are, anything else pickled.
        data: The bytes of all arrays; None if they are in memory that sender and receiver share.
        size: Number of these bytes.
    """

    spec: tuple[Any, ...]
    others: tuple[Any, ...]
    data: Any
    size: int


class _LeafError(Exception):
    """A leaf or a key that cannot be sent or read.

    Attributes:
        keys: Where it is.
    """

    def __init__(self, before: str, after: str, keys: Iterable[Any] = ()) -> None:
        self.keys = list(keys)
        super().__init__(before, after)

    def error(self) -> EnvError:
        """Return the error for the user. Only infos have leaves that are neither arrays nor scalars."""
        before, after = self.args
        keys = [f"[{short(key)}]" for key in self.keys]
        if len(keys) > _MOST_KEYS:
            keys[_MOST_KEYS:] = ["[...]"]
        return EnvError(before + "infos" + "".join(keys) + after)


def to_wire(tree: Any, framework: Framework, into: Any = None, *, dumps: Dumps = plain_dumps) -> Packed:
    """Copy all arrays of `tree` into one block. Tuples (including named tuples) and dictionaries may nest.

    Args:
        tree: Arrays of the framework (or `FrameworkArray` in their place), NumPy arrays, and anything picklable.
        framework: The framework whose arrays `tree` may contain.
        into: Writable memory for the arrays if they fit, instead of a new block.
        dumps: Pickles leaves that are not arrays, including instances of classes that the receiver cannot import.

    Raises:
        EnvError: A leaf cannot be pickled, a key is not equal to what would arrive, or dictionaries and tuples nest too
            deep. The message has the keys.
    """
    if framework.has_devices():
        tree = Fetch(tree, framework, wrap=FrameworkArray).result()
    arrays: list[npt.NDArray[Any]] = []
    stops = [0]
    others: list[Any] = []
    try:
        spec = _flatten(tree, framework, dumps, arrays, stops, others)
    except _LeafError as error:
        raise error.error() from error.__cause__
    size = stops[-1]
    data = None if into is not None and size <= len(into) else bytearray(size)
    block = into if data is None else data
    for array, start in zip(arrays, stops, strict=False):
        np.ndarray(array.shape, array.dtype, block, start)[...] = array
    return Packed(spec, tuple(others), data, size)


def _flatten(
    tree: Any,
    framework: Framework,
    dumps: Dumps,
    arrays: list[npt.NDArray[Any]],
    stops: list[int],
    others: list[Any],
    level: int = 1,
) -> tuple[Any, ...]:
    """Return the layout of a tree and append its leaves to the lists."""
    is_pickled = isinstance(tree, np.ndarray) and not goes_as_bytes(tree.dtype)
    if framework.is_array(tree) and not is_pickled:
        kind, array = FRAMEWORK_ARRAY, framework.to_numpy(tree)
    elif isinstance(tree, dict):
        values, level = [], _next(level)
        try:
            for value in tree.values():
                values.append(_flatten(value, framework, dumps, arrays, stops, others, level))
        except _LeafError as error:
            error.keys.insert(0, tuple(tree)[len(values)])
            raise
        if _STRING.issuperset(map(type, tree)):
            return DICT, tuple(tree), tuple(values)
        return DICT_OF_OTHER_KEYS, tuple(tree), tuple(values), *_described(tree, dumps)
    elif isinstance(tree, tuple):
        level = _next(level)
        values = [_flatten(value, framework, dumps, arrays, stops, others, level) for value in tree]
        fields = getattr(tree, "_fields", None)
        is_named = type(fields) is tuple and len(fields) == len(values)
        return TUPLE, type(tree) if is_named else tuple, tuple(values)
    elif isinstance(tree, np.ndarray) and not is_pickled:
        kind, array = ARRAY, tree
    elif isinstance(tree, FrameworkArray):
        kind, array = FRAMEWORK_ARRAY, tree.values
    else:
        is_scalar = type(tree) in _SCALARS
        others.append(tree if is_scalar else _pickled(tree, dumps))
        return SCALAR if is_scalar else PICKLED, len(others) - 1
    start = stops[-1]
    arrays.append(array)
    stops.append(start + (array.nbytes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT)
    return kind, describe(array.dtype), array.shape, start


def _next(level: int) -> int:
    if level == MOST_LEVELS:
        raise _LeafError("", f" has more than {MOST_LEVELS} levels; remove some, {_REMEDY}")
    return level + 1


def _described(keys: Iterable[Any], dumps: Dumps) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return for each key whose mask it is, as an index or -1, and the name of its type.

    On arrival, a mask gets its name from the key that has arrived: ``str`` of a set depends on the process. The types
    tell the layouts of equal keys, such as 1 and True, apart.
    """
    for key in keys:
        if not _is_plain(key):
            _check_key(key, dumps)
    names = {mask_name(key): index for index, key in enumerate(keys) if type(key) is not str}
    return tuple(names.get(key, -1) for key in keys), tuple(type(key).__qualname__ for key in keys)


def _is_plain(key: Any) -> bool:
    """Return whether a key is certainly the same in another process. NaN is not: it is not equal to itself."""
    if isinstance(key, tuple):
        return is_small(key) and all(map(_is_plain, key))
    return isinstance(key, Enum) or (type(key) in _SCALARS and key == key)


def _check_key(key: Any, dumps: Dumps) -> None:
    before, after = f"the key {short(key)} of ", f", of type {type_name(type(key))}, cannot be sent to another process"
    remedy = f"use a string, {_REMEDY}"
    if not is_small(key):
        raise _LeafError(before, f"{after}: it has too many parts; {remedy}")
    try:
        if loads(dumps(key)) == key:
            return
    except Exception as error:  # the class is the user's
        raise _LeafError(before, f"{after}: {type(error).__name__}: {error}; {remedy}") from error
    raise _LeafError(before, f"{after}: what arrives is not equal to it; {remedy}")


def _pickled(leaf: Any, dumps: Dumps) -> bytes:
    try:
        if isinstance(leaf, np.ndarray) and _SCALARS.issuperset(map(type, leaf.flat)):
            return plain_dumps(leaf)  # as `dumps`, but faster
        return dumps(leaf)
    except Exception as error:
        keys, culprit, reason = _culprit(leaf, error, dumps)
        raise _LeafError(
            "",
            f" is of type {type_name(type(culprit))}, which cannot be sent to another process: {type(reason).__name__}"
            f": {reason}; remove it, {_REMEDY}",
            keys,
        ) from error


def _culprit(value: Any, error: Exception, dumps: Dumps) -> tuple[list[Any], Any, Exception]:
    """Return where in a value something cannot be pickled, what it is, and the error."""
    keys: list[Any] = []
    while len(keys) < _MOST_KEYS:
        if isinstance(value, (dict, list, tuple, np.ndarray)):
            items = list(value.items() if isinstance(value, dict) else enumerate(value))
        else:
            items = []
        for key, item in items:
            try:
                dumps(item)
            except Exception as inner:
                keys.append(key)
                value, error = item, inner
                break
        else:
            break
    return keys, value, error


def check_packed(packed: Packed) -> None:
    """Check a tree that arrived without a `Channel`, which checks its layout once.

    Raises:
        DamagedError: It is not one that `to_wire` makes.
    """
    layout = check_layout(packed.spec)
    if type(packed.others) is not tuple or (len(packed.others), packed.size) != (layout.others, layout.size):
        raise DamagedError("a tree does not fit its layout")
    if not isinstance(packed.data, (bytes, bytearray)) or len(packed.data) != layout.size:
        raise DamagedError("a tree does not have the data of its layout")


def from_wire(packed: Packed, framework: Framework) -> Any:
    """Return the tree that was passed to `to_wire`, with new arrays.

    Args:
        packed: The tree in wire format, with a layout of this process or one that `check_layout` accepted.
        framework: The framework of its arrays.

    Raises:
        EnvError: A leaf cannot be unpickled. The message has its keys.
        DamagedError: The leaves do not fit the layout, or the framework cannot make one of the arrays.
    """

    def make(kind: int, array: npt.NDArray[Any]) -> Any:
        return framework.from_numpy(array) if kind == FRAMEWORK_ARRAY else array.copy()

    return _trees([packed.spec], packed, make)[0]


def read_outcome(packed: Packed | None, framework: Framework, num_envs: int) -> Outcome:
    """Return the outcome that was passed to `to_wire`; its infos contain new arrays.

    The other arrays are NumPy views of the block: copy them before the block is reused.

    Args:
        packed: As in `from_wire`; None is no outcome.
        framework: The framework of its arrays.
        num_envs: Number of its rows.

    Raises:
        EnvError: A value in the infos cannot be unpickled. The message has its keys.
        DamagedError: As in `from_wire`, or it is not an outcome of so many rows.
    """
    if packed is None:  # from a worker that was halted
        raise _not_an_outcome(num_envs)
    spec = packed.spec
    if spec[0] != TUPLE or spec[1] is not Outcome or spec[2][-1][0] not in _DICTS:
        raise _not_an_outcome(num_envs)
    *columns, infos = spec[2]
    for column in columns:
        for array in column[2] if column[0] in _DICTS else (column,):
            if array[0] > FRAMEWORK_ARRAY or array[2][:1] != (num_envs,):
                raise _not_an_outcome(num_envs)
    values = _trees(columns, packed, _as_it_is)
    values.append(from_wire(packed._replace(spec=infos), framework) if infos[1] else {})
    return Outcome._make(values)


def _not_an_outcome(num_envs: int) -> DamagedError:
    return DamagedError(f"a worker has sent something else than the outcome of {num_envs} rows")


def _as_it_is(_: int, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array


def _trees(specs: Iterable[tuple[Any, ...]], packed: Packed, make: Callable[[int, npt.NDArray[Any]], Any]) -> list[Any]:
    """Return the trees of some layouts."""
    if packed.data is None and packed.size:  # NumPy would take any memory
        raise DamagedError("a message has no data")
    try:
        return [_build(spec, packed, make) for spec in specs]
    except _LeafError as error:
        raise error.error() from error.__cause__
    except EnvError:  # from the framework
        raise
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        raise DamagedError(f"a message cannot be read: {type(error).__name__}: {error}") from error


def _build(spec: tuple[Any, ...], packed: Packed, make: Callable[[int, npt.NDArray[Any]], Any]) -> Any:
    kind = spec[0]
    if kind <= FRAMEWORK_ARRAY:
        _, dtype, shape, offset = spec
        return make(kind, np.ndarray(shape, dtype, packed.data, offset))
    if kind == SCALAR:
        value = packed.others[spec[1]]
        if type(value) not in _SCALARS:
            raise TypeError(f"a scalar is of type {type_name(type(value))}")
        return value
    if kind == PICKLED:
        return _unpickled(packed.others[spec[1]])
    if kind == TUPLE:
        return tuple.__new__(spec[1], [_build(value, packed, make) for value in spec[2]])
    keys, values = spec[1], []
    if kind == DICT_OF_OTHER_KEYS:
        keys = [key if owner < 0 else mask_name(keys[owner]) for key, owner in zip(keys, spec[3], strict=True)]
    try:
        for value in spec[2]:
            values.append(_build(value, packed, make))
    except _LeafError as error:
        error.keys.insert(0, keys[len(values)])
        raise
    return dict(zip(keys, values, strict=True))


def _unpickled(data: bytes) -> Any:
    if type(data) is not bytes:
        raise TypeError(f"a pickle is of type {type_name(type(data))}")
    try:
        return loads(data)
    except BaseException as error:  # the class is the user's
        if ends_program(error):
            raise
        raise _LeafError(
            "",
            f" has arrived from another process, but cannot be unpickled: {type(error).__name__}: {message_of(error)}; "
            "make its module importable in both processes, or remove it, for example in a wrapper of the environment",
        ) from error
