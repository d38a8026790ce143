"""Pickles that another process sends: damaged ones take no more memory than they bring, and do not crash NumPy.

`pickle.loads` allocates what a length or the number of a memo entry says before it looks for it. NumPy pickles a dtype
and an array of objects as a state that it does not check when it is unpickled, so both are described instead.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import pickletools
from collections import ChainMap
from collections.abc import Callable, MutableMapping
from math import prod
from typing import Any

import numpy as np

__all__ = ["dumper", "dumps", "loads", "objects"]

_CHARACTERS = frozenset(map(np.dtype, "?bBhHiIlLqQefdgFDGO"))
"""The dtypes that are pickled by their characters: those of numbers and objects."""


def _reduced(dtype: np.dtype[Any]) -> Any:
    """Return what makes a dtype from a description, unless that would make another one."""
    if not dtype.metadata:
        if dtype in _CHARACTERS:
            return np.dtype, (dtype.char,)
        description = _description(dtype)
        made = np.dtype(*description)
        if (made, made.type, made.flags) == (dtype, dtype.type, dtype.flags):
            return np.dtype, description
    return dtype.__reduce__()


def _description(dtype: np.dtype[Any]) -> tuple[Any, ...]:
    """Return arguments of `np.dtype`."""
    if dtype.subdtype is not None:
        return (dtype.subdtype,)
    if dtype.fields is None or dtype.names is None:
        return (dtype.str,)
    fields = [(*dtype.fields[name], None)[:3] for name in dtype.names]
    formats, offsets, titles = (list(column) for column in zip(*fields, strict=True)) if fields else ([], [], [])
    parts = {"names": list(dtype.names), "formats": formats, "offsets": offsets, "titles": titles}
    description: Any = ({**parts, "itemsize": dtype.itemsize}, dtype.isalignedstruct)
    return description if dtype.type is np.void else ((dtype.type, np.dtype(*description)),)


def _reduced_array(array: np.ndarray[Any, Any]) -> Any:
    if array.dtype == object:
        return objects, (array.shape, array.ravel().tolist())
    return array.__reduce_ex__(pickle.HIGHEST_PROTOCOL)


def objects(shape: tuple[int, ...], values: list[Any]) -> np.ndarray[Any, Any]:
    """Return an array of objects, given in C order.

    Raises:
        ValueError: They are not as many as the shape says.
    """
    if prod(shape) != len(values):
        raise ValueError(f"{len(values)} objects do not fit the shape {shape}")
    return np.fromiter(values, object, len(values)).reshape(shape)


_REDUCERS: dict[type, Any] = {
    **{type(np.dtype(code)): _reduced for code in "?bBhHiIlLqQefdgFDGOSUVMm"},
    np.ndarray: _reduced_array,
}

_STOP = ord(".")
_REFUSED = 0
_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: -1,
    pickletools.TAKEN_FROM_ARGUMENT4: -4,
    pickletools.TAKEN_FROM_ARGUMENT4U: -4,
    pickletools.TAKEN_FROM_ARGUMENT8U: -8,
}
_OLD = {"PUT", "BINPUT", "LONG_BINPUT"}
"""Protocol 4 numbers the entries of the memo without gaps instead."""


def _step(opcode: pickletools.OpcodeInfo) -> int:
    """Return the length of an opcode with its argument; or, if negative, the length of the argument's length."""
    length = 0 if opcode.arg is None else opcode.arg.n
    if opcode.name in _OLD or length == pickletools.UP_TO_NEWLINE:
        return _REFUSED
    return 1 + length if length >= 0 else _LENGTHS[length]


_STEPS = [_REFUSED] * 256
for _opcode in pickletools.opcodes:
    _STEPS[ord(_opcode.code)] = _step(_opcode)


def dumper(
    kind: type[pickle.Pickler], reducers: MutableMapping[type, Any] = copyreg.dispatch_table
) -> Callable[[Any], bytes]:
    """Return a function that pickles values, with dtypes and arrays of objects as their descriptions.

    Args:
        kind: The class of picklers to use.
        reducers: Its dispatch table.
    """

    class Pickler(kind):  # type: ignore[misc, valid-type]
        dispatch_table = ChainMap(_REDUCERS, reducers)  # noqa: RUF012

    def dumps(value: Any) -> bytes:
        with io.BytesIO() as file:
            Pickler(file, pickle.HIGHEST_PROTOCOL).dump(value)
            return file.getvalue()

    return dumps


dumps = dumper(pickle.Pickler)
"""Pickle a value; see `dumper`."""


def loads(data: bytes | bytearray | memoryview) -> Any:
    """Unpickle data that were pickled with protocol 4 or later.

    Raises:
        UnpicklingError: They are damaged.
        Exception: What `pickle.loads` or a class raises.
    """
    try:
        _check(data)
    except IndexError:
        raise pickle.UnpicklingError("the pickle is damaged: it ends too early") from None
    return pickle.loads(data)


def _check(data: bytes | bytearray | memoryview) -> None:
    """Go from opcode to opcode."""
    place, steps = 0, _STEPS
    while True:
        code = data[place]
        step = steps[code]
        if step > 0:
            place += step
            if code == _STOP:
                return
        elif step == -1:
            place += 2 + data[place + 1]
        elif step:
            start = place + 1
            place = start - step + int.from_bytes(data[start : start - step], "little")
        else:
            raise pickle.UnpicklingError(f"the pickle is damaged: {code} is no opcode of protocol 4")
