"""Unpickling: what was pickled arrives; what is damaged takes no memory for what it announces."""

from __future__ import annotations

import pickle
import random
import tracemalloc
from collections import Counter
from typing import Any

import numpy as np
import pytest
from ray import cloudpickle

from tests.support.connections import Bounded
from tests.support.schedule import examples
from workers.pickling import dumps, loads, objects


def shared() -> Any:
    part = ["part"] * 300
    return {index: part for index in range(300)}


VALUES: tuple[Any, ...] = (
    None,
    (1, 2.5, "text", b"bytes", True, 2**100, -(2**3000)),
    {"long text": "x" * 300, "longer": b"y" * 70_000, "nested": [{}, set(), frozenset({1}), bytearray(5)]},
    shared(),
    Counter("abc"),
    np.arange(6.0),
    np.array([None, "x"], object),
)
STRUCTURE = np.zeros(3, [("a", "f4"), ("b", "i2", (2,)), ("c", [("d", "S3")])])
ARRAYS: tuple[Any, ...] = (
    STRUCTURE,
    STRUCTURE.view(np.recarray),
    {"in a list": [STRUCTURE, np.array(["ab", "cde"])]},
    np.zeros(3, "M8[ns]"),
    np.zeros(3, ">f8"),
)


@pytest.mark.parametrize("protocol", [4, 5])
def test_what_was_pickled_arrives(protocol: int):
    for value in VALUES:
        data = pickle.dumps(value, protocol)
        for given in (data, memoryview(data), data + b"more"):
            assert pickle.dumps(loads(given)) == pickle.dumps(pickle.loads(data))
    assert loads(cloudpickle.dumps(lambda x: x + 1))(2) == 3


OBJECTS: list[Any] = [
    np.array(None, object),
    np.array([[None, "x"], [[1, 2], {3}]], object),
    np.fromiter([[1, 2], [3, 4]], object),  # no more dimensions than it has
    np.fromiter([np.arange(2), np.arange(2)], object),
    np.zeros((0, 3), object),
]


@pytest.mark.parametrize("array", OBJECTS, ids=repr)
def test_arrays_of_objects_arrive(array: Any):
    arrived = loads(dumps([array, array]))
    assert arrived[0] is arrived[1]
    assert (arrived[0].shape, arrived[0].dtype) == (array.shape, array.dtype)
    for one, other in zip(arrived[0].flat, array.flat, strict=True):
        assert type(one) is type(other)
        assert repr(one) == repr(other)


def test_arrays_of_objects_that_are_not_as_many_as_their_shape_says_are_refused():
    with pytest.raises(ValueError, match=r"2 objects do not fit the shape \(3,\)"):
        objects((3,), [1, 2])


DAMAGED = {
    "nothing": b"",
    "no end": pickle.dumps((1, 2))[:-1],
    "a length within a length": b"\x80\x04\x8e\x05\0",
    "an entry of the memo far away": b"\x80\x04Nr\xff\xff\xff\x0f.",
    "a text of a terabyte": b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"x.",
    "bytes of four gigabytes": b"\x80\x04B\xff\xff\xff\xffx.",
    "a bytearray of a terabyte": b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"x.",
    "a number of two gigabytes": b"\x80\x04\x8b\xff\xff\xff\x7fx.",
    "a number of negative length": b"\x80\x04\x8b\xff\xff\xff\xffx.",
    "text": b"I5\n.",
    "another protocol": pickle.dumps(("a", "a"), 2),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_takes_no_memory(name: str):
    tracemalloc.start()
    try:
        with Bounded(1000), pytest.raises(pickle.UnpicklingError, match="damaged"):
            loads(DAMAGED[name])
    finally:
        tracemalloc.stop()


@pytest.mark.fuzz
def test_damaged_pickles_take_no_memory_and_do_not_crash():
    random.seed(1)
    pickles = [dumps(value) for value in (*VALUES, *ARRAYS)]
    tracemalloc.start()
    try:
        for _ in range(examples(1000, long=20_000)):
            data = bytearray(random.choice(pickles))
            for _ in range(random.randrange(1, 4)):
                data[random.randrange(len(data))] = random.randrange(256)
            with Bounded(10 * len(data)):
                try:
                    repr(loads(data))
                except Exception:  # of any class that it names
                    continue
    finally:
        tracemalloc.stop()
