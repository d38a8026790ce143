"""Trees with odd arrays, tuples and keys: they arrive as they are, or an error names them."""

from __future__ import annotations

import pickle
from collections import namedtuple
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.processes import python
from workers.errors import EnvError
from workers.frameworks import load_framework
from workers.remote.layout import MOST_LEVELS, check_layout
from workers.remote.wire import FrameworkArray, from_wire, to_wire

NUMPY = load_framework("numpy")


def sent(tree: Any) -> Any:
    """Return what arrives of a tree, whose layout is checked."""
    packed = pickle.loads(pickle.dumps(to_wire(tree, NUMPY)))
    assert check_layout(packed.spec) == (packed.spec, packed.size, len(packed.others))
    return from_wire(packed, NUMPY)


ALIGNED = np.dtype([("a", "f8"), ("b", "i1"), ("c", "f4", (2,)), ("d", [("x", "i2"), ("y", "U3")])], align=True)
INHERITED = np.dtype((np.int32, {"low": (np.int16, 0), "high": (np.int16, 2)}))

DTYPES: list[Any] = [
    *"?bBhHiIlLqQefdgFDG",
    *(">f8", ">c16", "S3", "U3", ">U3", "V5", "M8", ">M8[25s]", "m8[ns]", "m8"),
    *(jnp.bfloat16, jnp.float8_e5m2, jnp.int4),
]
PICKLED_DTYPES: list[Any] = [
    np.dtype("f4", metadata={"unit": "m"}),
    [("a", ">f4"), ("b", "i2", (2, 3)), ("c", [("d", "S2")])],
    [(("title", "name"), "f4"), ("other", "i4")],
    {"names": ["a", "b"], "formats": ["f4", "f4"], "offsets": [0, 2], "itemsize": 9},
    ALIGNED,
    ALIGNED.newbyteorder(),
    (np.record, [("a", "f4"), ("b", "i1")]),
    INHERITED,
]
EMPTY_DTYPES: list[Any] = ["S0", "U0", "V0", [], "O", [("a", "O")], np.dtypes.StringDType()]


@pytest.mark.parametrize("dtype", DTYPES + PICKLED_DTYPES, ids=repr)
def test_arrays_of_any_dtype_arrive(dtype: Any):
    array = np.frombuffer(bytes(range(256)) * 6, np.dtype(dtype), 12).reshape(3, 4)
    values = FrameworkArray(array) if array.dtype.isbuiltin == 2 else array
    packed = to_wire(values, NUMPY)
    assert bool(packed.others) == any(dtype is one for one in PICKLED_DTYPES)
    arrived = sent(values)
    assert arrived.dtype == array.dtype
    assert arrived.dtype.metadata == array.dtype.metadata
    for name in array.dtype.names or [...]:  # without what is between fields
        assert arrived[name].tobytes() == array[name].tobytes()
    assert sent(array[:0]).shape == (0, 4)


def test_arrays_of_the_dtypes_of_other_packages_bring_the_package_along():
    """The receiver may not have imported it."""
    array = np.arange(3).astype(jnp.bfloat16)
    code = "import sys, pickle; print(pickle.loads(bytes.fromhex(sys.argv[1])).dtype, 'ml_dtypes' in sys.modules)"
    packed = to_wire(array, NUMPY)
    assert python("-c", code, packed.others[0].hex()).stdout == "bfloat16 True\n"


@pytest.mark.parametrize("dtype", EMPTY_DTYPES, ids=repr)
def test_arrays_of_dtypes_without_bytes_are_pickled(dtype: Any):
    array = np.zeros((2, 3), [("a", dtype), ("b", "i1")])["a"] if dtype in ("S0", "U0") else np.zeros((2, 3), dtype)
    assert to_wire(array, NUMPY).size == 0
    arrived = sent(array)
    assert arrived.dtype == array.dtype
    assert arrived.tolist() == array.tolist()


def test_fields_of_an_array_arrive():
    array = np.zeros(3, ALIGNED)
    array["b"], array["c"] = [1, 2, 3], 7
    for fields in (["b", "c"], ["a"]):
        assert str(sent(array[fields])) == str(array[fields])
    records = np.array([(1, 2.5)], [("a", "i4"), ("b", "f8")]).view(np.recarray)
    assert sent(records)["b"].tolist() == [2.5]


class Pair(NamedTuple):
    first: Any
    second: Any


class Sum(namedtuple("Sum", ["first", "second", "sum"])):
    """Named tuples whose constructor takes something else."""

    def __new__(cls, first: int, second: int) -> Sum:
        return super().__new__(cls, first, second, first + second)


class WithFields(tuple[Any, ...]):
    _fields = ("a", "b")


class OfAnotherLength(tuple[Any, ...]):
    _fields = ("a",)


class Listed(tuple[Any, ...]):
    _fields = ["a", "b"]  # noqa: RUF012 - odd on purpose


@pytest.mark.parametrize("kind", [Pair, Sum, WithFields])
def test_named_tuples_arrive(kind: Any):
    tree = tuple.__new__(kind, (1, 2, 3)[: len(kind._fields)])
    arrived = sent(tree)
    assert type(arrived) is kind
    assert arrived == tree


@pytest.mark.parametrize("kind", [OfAnotherLength, Listed])
def test_other_classes_of_tuples_arrive_as_tuples(kind: Any):
    assert type(sent(kind((1, 2)))) is tuple


def nested(levels: int, *, keys: bool) -> Any:
    tree: Any = 1
    for _ in range(levels):
        tree = {"a": tree} if keys else (tree,)
    return tree


@pytest.mark.parametrize("keys", [True, False])
def test_trees_of_too_many_levels_are_named(keys: bool):
    assert sent(nested(MOST_LEVELS - 1, keys=keys)) == nested(MOST_LEVELS - 1, keys=keys)
    for levels in (MOST_LEVELS + 1, 100_000):
        with pytest.raises(EnvError, match=r"^infos.* has more than 100 levels; remove some") as caught:
            to_wire(nested(levels, keys=keys), NUMPY)
        assert len(str(caught.value)) < 300
    itself: dict[str, Any] = {}
    itself["me"] = itself
    with pytest.raises(EnvError, match="more than 100 levels"):
        to_wire(itself, NUMPY)


@pytest.mark.parametrize("make", [tuple, frozenset])
def test_keys_of_too_many_parts_are_named(make: Any):
    assert sent({make(range(900)): 1}) == {make(range(900)): 1}
    with pytest.raises(EnvError, match=r"^the key .* cannot be sent to another process: it has too many parts"):
        to_wire({make(range(1001)): 1}, NUMPY)


def test_a_tree_that_shares_parts_arrives():
    """Only what is sent may occur once: the parts of a tree may be one object."""
    part, key = {"a": np.arange(3)}, ("some", ("key",))
    tree = {"x": part, "y": (part, part), key: {key: 1}, (key, key): 2}
    assert str(sent(tree)) == str(tree)
