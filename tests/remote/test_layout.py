"""Layouts from a damaged or hostile peer: what no tree has is refused, without a crash, a hang or much memory."""

from __future__ import annotations

import os
import tracemalloc
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.support.processes import python
from tests.support.schedule import examples
from workers.remote.layout import (
    ARRAY,
    DICT,
    DICT_OF_OTHER_KEYS,
    FRAMEWORK_ARRAY,
    PICKLED,
    SCALAR,
    TUPLE,
    DamagedError,
    check_layout,
)

F4 = "<f4"
LEAF: Any = (SCALAR, 0)

BAD_DTYPES: dict[str, Any] = {
    "objects": "|O",
    "objects in a field": "O,f4",
    "strings of any length": "|T16",
    "size 0": "|V0",
    "size 0 of a string": "<U0",
    "negative size": "|V-8",
    "huge size": "|V99999999999999999999",
    "fields": "f4,f4",
    "fields in a list": "[('a', 'f4')]",
    "subarray": "(2,)<f4",
    "other text of the same": "f4",
    "name": "float32",
    "no unit": "<m8[0D]",
    "a unit divided by zero": "<m8[D/0]",
    "no dtype": "no dtype",
    "nothing": "",
    "a space": "<f4 ",
    "character that is none": "\ud800",
    "long": "<f4" * 1_000_000,
    "bytes": b"<f4",
    "dtype": np.dtype("f4"),
    "dtype of objects": np.dtype("O"),
    "class": np.float32,
    "number": 5,
    "None": None,
}


@pytest.mark.parametrize("name", BAD_DTYPES)
def test_texts_that_no_dtype_has_are_refused(name: str):
    with pytest.raises(DamagedError, match="a dtype is not one that is sent as bytes"):
        check_layout((ARRAY, BAD_DTYPES[name], (3,), 0))


class Pair(NamedTuple):
    first: Any
    second: Any


class Listed(tuple[Any, ...]):
    _fields = ["a", "b"]  # noqa: RUF012 - odd on purpose


class IntOfOurs(int):
    pass


class StrOfOurs(str):
    pass


class TupleOfOurs(tuple[Any, ...]):
    def __len__(self) -> int:
        raise SystemExit("len")

    def __iter__(self) -> Any:
        raise SystemExit("iter")


class Unhashable:
    def __hash__(self) -> int:
        raise LookupError("hash")


class Lying:
    """Says that it is a class."""

    __class__ = type  # type: ignore[assignment]
    _fields = ("a", "b")


class Meta(type):
    @property
    def _fields(cls) -> Any:
        raise LookupError("_fields")


class WithMeta(tuple[Any, ...], metaclass=Meta):
    pass


def deep() -> Any:
    node: Any = LEAF
    for _ in range(100_000):
        node = (TUPLE, tuple, (node,))
    return node


def bomb() -> Any:
    node: Any = LEAF
    for _ in range(60):
        node = (TUPLE, tuple, (node, node))
    return node


def key_bomb() -> Any:
    key: Any = ()
    for _ in range(60):
        key = (key, key)
    return other_keys((key,))


def deep_key() -> Any:
    key: Any = ()
    for _ in range(1_000_000):
        key = (key,)
    return other_keys((key,))


def other_keys(keys: Any, owners: Any = (-1,), types: Any = ("int",)) -> Any:
    return DICT_OF_OTHER_KEYS, keys, tuple((SCALAR, index) for index in range(len(keys))), owners, types


FOUR = (0, 64, 128, 192)
BAD_LAYOUTS: dict[str, Any] = {
    "None": None,
    "a number": 5,
    "a list": [SCALAR, 0],
    "an instance of a subclass of tuple": TupleOfOurs(LEAF),
    "nothing": (),
    "a kind alone": (SCALAR,),
    "too long": (SCALAR, 0, 0),
    "no kind": (7, 0),
    "a negative kind": (-1, F4, (), 0),
    "a kind that is a bool": (True, F4, (), 0),
    "a kind that is a float": (5.0, 0),
    "a kind of another class": (IntOfOurs(SCALAR), 0),
    "a kind without a hash": ([], 0),
    "a leaf of another number": (PICKLED, 1),
    "a leaf of a negative number": (SCALAR, -1),
    "a leaf of number False": (SCALAR, False),
    "leaves in another order": (TUPLE, tuple, ((SCALAR, 1), (SCALAR, 0))),
    "one leaf twice": (TUPLE, tuple, ((SCALAR, 0), (PICKLED, 0))),
    "a shape that is a list": (ARRAY, F4, [3], 0),
    "a shape that is a number": (ARRAY, F4, 3, 0),
    "a shape of bools": (ARRAY, F4, (True,), 0),
    "a shape of floats": (ARRAY, F4, (3.0,), 0),
    "a shape of NumPy's numbers": (ARRAY, F4, (np.int64(3),), 0),
    "a negative shape": (FRAMEWORK_ARRAY, F4, (-1,), 0),
    "negative lengths": (FRAMEWORK_ARRAY, F4, (-1, -3), 0),
    "too many dimensions": (ARRAY, F4, (1,) * 65, 0),
    "a large shape": (ARRAY, F4, (2**38 + 1,), 0),
    "a shape that overflows": (ARRAY, F4, (2**32, 2**32), 0),
    "a shape that overflows to its size": (ARRAY, F4, (2**62 + 1, 4), 0),
    "an empty shape that overflows": (ARRAY, F4, (0, 2**62), 0),
    "a huge length": (ARRAY, F4, (10**5000,), 0),
    "an offset": (ARRAY, F4, (3,), 64),
    "a negative offset": (ARRAY, F4, (3,), -64),
    "an offset that is a bool": (ARRAY, F4, (3,), False),
    "a huge offset": (ARRAY, F4, (3,), 10**5000),
    "arrays that overlap": (TUPLE, tuple, ((ARRAY, F4, (3,), 0), (ARRAY, F4, (3,), 0))),
    "arrays with a gap": (TUPLE, tuple, ((ARRAY, F4, (3,), 0), (ARRAY, F4, (3,), 128))),
    "arrays that are not aligned": (TUPLE, tuple, ((ARRAY, F4, (3,), 0), (ARRAY, F4, (3,), 12))),
    "arrays too large together": (TUPLE, tuple, tuple((ARRAY, F4, (2**37,), 2**39 * index) for index in range(4))),
    "a tuple of a list": (TUPLE, tuple, [LEAF]),
    "a tuple of no nodes": (TUPLE, tuple, (5,)),
    "a tuple of another tuple": (TUPLE, tuple, TupleOfOurs((LEAF,))),
    "a tuple of a function": (TUPLE, os.system, (LEAF,)),
    "a tuple of a class that is none": (TUPLE, Lying(), (LEAF, (SCALAR, 1))),
    "a tuple of a class of other things": (TUPLE, list, (LEAF,)),
    "a tuple of a subclass without fields": (TUPLE, TupleOfOurs, (LEAF,)),
    "a tuple of a class with a list of fields": (TUPLE, Listed, (LEAF, (SCALAR, 1))),
    "a tuple of a class with other fields": (TUPLE, Pair, (LEAF,)),
    "a tuple of a class with an error": (TUPLE, WithMeta, (LEAF,)),
    "keys that are a list": (DICT, ["a"], (LEAF,)),
    "keys that are a string": (DICT, "a", (LEAF,)),
    "too few keys": (DICT, (), (LEAF,)),
    "too many keys": (DICT, ("a", "b"), (LEAF,)),
    "a key that is a number": (DICT, (1,), (LEAF,)),
    "a key of another class": (DICT, (StrOfOurs("a"),), (LEAF,)),
    "a key twice": (DICT, ("a", "a"), (LEAF, (SCALAR, 1))),
    "an equal key": other_keys((1, True), (-1, -1), ("int", "bool")),
    "a key without a hash": other_keys(([],)),
    "a key whose hash is an error": other_keys((Unhashable(),)),
    "too few masks": other_keys((1,), ()),
    "masks that are a list": other_keys((1,), [-1]),
    "a mask of no key": other_keys((1,), (1,)),
    "a mask of number -2": other_keys((1,), (-2,)),
    "a mask of number False": other_keys((1,), (False,)),
    "too many types": other_keys((1,), (-1,), ("int", "int")),
    "a type that is no name": other_keys((1,), (-1,), (int,)),
    "a bomb": bomb(),
    "a bomb of keys": key_bomb(),
    "a deep layout": deep(),
    "a deep key": deep_key(),
}


@pytest.mark.parametrize("name", BAD_LAYOUTS)
def test_layouts_of_no_tree_are_refused(name: str):
    tracemalloc.start()
    try:
        for layout in (BAD_LAYOUTS[name], (TUPLE, tuple, (BAD_LAYOUTS[name],))):
            with pytest.raises(DamagedError, match=r"^the layout of a message ") as caught:
                check_layout(layout)
            assert len(str(caught.value)) < 200
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.fuzz
def test_damaged_layouts():
    """In a process of its own: NumPy crashes on some of them where they are not refused."""
    count = examples(2000, long=100_000)
    done = python("-m", "tests.support.damaged_layouts", str(count))
    assert done.returncode == 0, done.stderr
    refused, unreadable, built = map(int, done.stdout.split())
    assert refused + unreadable + built == count
    assert min(refused, 10 * unreadable, built) > count // 50
