"""Copies of containers share nothing that an environment may write again, and nothing else is copied."""

from __future__ import annotations

import socket
import sys
import threading
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from workers.copying import copy_containers
from workers.frameworks import load_framework


@dataclass(frozen=True, slots=True)
class Record:
    array: Any
    lock: Any


class Pair(NamedTuple):
    one: Any
    other: Any


class Stubborn(list[Any]):
    """A list that cannot be copied."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("no copies")


WRAPPED = {
    "dict": lambda x: {"x": x},
    "list": lambda x: [[x]],
    "tuple": lambda x: (1, (x,)),
    "named tuple": lambda x: Pair(x, 1),
    "deque": lambda x: deque([x], maxlen=3),
    "defaultdict": lambda x: defaultdict(list, a=[x]),
    "OrderedDict": lambda x: OrderedDict(a=x),
    "frozen dataclass with slots": lambda x: Record(x, None),
    "SimpleNamespace": lambda x: SimpleNamespace(x=x),
    "array of objects": lambda x: np.array([{"x": x}, None], dtype=object),
}


def leaves(value: Any) -> Iterator[Any]:
    """Yield what is in the containers of a value."""
    if isinstance(value, Record):
        value = [value.array, value.lock]
    elif isinstance(value, (dict, SimpleNamespace)):
        value = list((value if isinstance(value, dict) else vars(value)).values())
    elif isinstance(value, np.ndarray) and value.dtype == object:
        value = value.tolist()
    if type(value) in (list, tuple, deque, Pair):
        for item in value:
            yield from leaves(item)
    else:
        yield value


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_arrays_in_containers_are_copied(wrap: Any):
    array = np.arange(3)
    copied = copy_containers(wrap(array))
    array[:] = 9
    assert type(copied) is type(wrap(array))
    assert [leaf.tolist() for leaf in leaves(copied) if isinstance(leaf, np.ndarray)] == [[0, 1, 2]]


def test_arrays_of_a_framework_are_copied(framework: str):
    array = load_framework(framework).from_numpy(np.arange(3))
    copied = copy_containers({"x": array})["x"]
    assert type(copied) is type(array)
    assert load_framework(framework).to_numpy(copied).tolist() == [0, 1, 2]


@pytest.mark.parametrize("wrap", [lambda x: x, *WRAPPED.values()])
def test_other_objects_are_passed_on(wrap: Any):
    with socket.socket() as open_socket:
        generator = (number for number in range(3))
        for thing in (threading.Lock(), open_socket, generator, sys, len, Record, np.random.default_rng(), Stubborn()):
            copied = copy_containers(wrap((thing, 1)))
            assert any(leaf is thing for leaf in leaves(copied))


def test_containers_that_hold_each_other():
    array = np.arange(2)
    outer: dict[str, Any] = {"array": array, "again": array}
    outer["list"] = [outer]
    copied = copy_containers(outer)
    assert copied["list"][0] is copied
    assert copied["array"] is copied["again"]
    assert copied["array"] is not array
