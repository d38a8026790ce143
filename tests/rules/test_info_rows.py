"""Infos of single environments become those of a batch by one rule, which does not depend on the order of rows."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rules.test_infos import INFO, gymnasium_infos
from tests.support.parity import assert_alike, assert_same
from tests.support.processes import python
from tests.support.schedule import examples
from workers.errors import EnvError
from workers.frameworks import load_framework
from workers.info_rows import add_row, check_infos, merge_rows
from workers.infos import infos_by_scope, mask_rows, merge_infos, overlay, scalars, take_rows

NUMPY = load_framework("numpy")
Infos = dict[Any, Any]


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Thing:
    """An object that is equal to itself only."""


THING = Thing()
KEYS: list[Any] = ["a", "_b", "final_obs", 1, 2.5, None, ("t", 2), Colour.RED, b"bytes", frozenset({3})]

NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([0.5, -2.0, float("inf")]),
    st.booleans(),
    st.sampled_from([np.float32(0.25), np.float64(1.5), np.int8(7), np.uint64(5), np.array(2.5), np.array(4)]),
)
ARRAYS = st.builds(
    lambda shape, dtype, fill: np.full(shape, fill, dtype),
    st.sampled_from([(2,), (3,), (2, 2), (0,)]),
    st.sampled_from(["int64", "float32", "float64", "bool", "uint8"]),
    st.integers(0, 3),
)
OBJECTS = st.one_of(
    st.text(max_size=2),
    st.none(),
    st.sampled_from([[1], [1, [2]], (1, 2), np.bool_(True), Colour.BLUE, THING, 2**70, np.array("text"), b"b"]),
    st.sampled_from([np.array(["ab", "c"]), np.array(["abc", "d"]), np.array([None, 1], object)]),
)
NESTED: st.SearchStrategy[Any] = st.recursive(
    st.dictionaries(st.sampled_from(KEYS), NUMBERS | ARRAYS | OBJECTS, max_size=2),
    lambda inner: st.dictionaries(st.sampled_from(KEYS), NUMBERS | inner, max_size=2),
    max_leaves=3,
)
VALUES = st.one_of(NUMBERS, ARRAYS, OBJECTS, NESTED)
ODD = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3)


@st.composite
def odd_batches(draw: st.DrawFn) -> tuple[list[Infos], list[int]]:
    sizes = draw(st.lists(st.integers(1, 3), min_size=2, max_size=3))
    return draw(st.lists(ODD, min_size=sum(sizes), max_size=sum(sizes))), sizes


def added(rows: Sequence[Mapping[Any, Any] | None]) -> Infos:
    infos: Infos = {}
    for row, row_infos in enumerate(rows):
        if row_infos is not None:
            infos = add_row(len(rows), infos, row_infos, row)
    return infos


@given(st.lists(INFO | st.none(), min_size=1, max_size=6))
@settings(deadline=None)
def test_ordinary_infos_are_gymnasiums(rows: list[Infos | None]):
    assert_same(merge_rows(rows), gymnasium_infos(rows))
    assert_same(added(rows), gymnasium_infos(rows))


@given(odd_batches())
@settings(deadline=None, max_examples=examples(300, long=5000))
def test_parts_merge_into_the_whole(batch: tuple[list[Infos], list[int]]):
    rows, sizes = batch
    whole = merge_rows(rows)
    stops = np.cumsum(sizes)
    parts = [merge_rows(rows[stop - size : stop]) for stop, size in zip(stops, sizes, strict=True)]
    assert_same(merge_infos(parts, sizes, NUMPY), whole)


@given(odd_batches())
@settings(deadline=None, max_examples=examples(300, long=5000))
def test_rows_taken_from_a_batch_are_what_they_are_alone(batch: tuple[list[Infos], list[int]]):
    rows, sizes = batch
    whole, first = merge_rows(rows), 0
    for size in sizes:
        part = take_rows(whole, first, first + size, len(rows), NUMPY)
        assert_alike(part, merge_rows(rows[first : first + size]))
        first += size
    assert_same(whole, merge_rows(rows))  # unchanged


@given(st.lists(ODD | st.none(), min_size=1, max_size=6))
@settings(deadline=None, max_examples=examples(200, long=5000))
def test_row_after_row_is_all_rows(rows: list[Infos | None]):
    assert_same(added(rows), merge_rows(rows))


@given(st.lists(st.tuples(ODD, ODD, st.booleans()), min_size=1, max_size=5))
@settings(deadline=None, max_examples=examples(200, long=5000))
def test_masks_and_overlays(rows: list[tuple[Infos, Infos, bool]]):
    mask = np.array([chosen for _, _, chosen in rows])
    under, over = merge_rows([row[0] for row in rows]), merge_rows([row[1] for row in rows])
    kept = mask_rows(under, ~mask)
    assert_alike(kept, merge_rows([None if chosen else before for before, _, chosen in rows]))
    expected = merge_rows([after if chosen else before for before, after, chosen in rows])
    assert_alike(overlay(kept, mask_rows(over, mask), mask), expected)


@given(odd_batches())
@settings(deadline=None)
def test_nothing_else_fails(batch: tuple[list[Infos], list[int]]):
    rows, sizes = batch
    whole = merge_rows(rows)
    assert_same(infos_by_scope(whole, sizes, NUMPY), whole)
    assert all(type(name) is str for name, _ in scalars(whole, len(rows), NUMPY))


def column(*values: Any) -> Any:
    """Return the column that values of one row each make."""
    infos = merge_rows([{"key": value} for value in values])
    assert infos["_key"].all()
    return infos["key"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2.5], np.array([1.0, 2.5])),
        ([False, 5], np.array([0, 5])),
        ([np.float32(0.5), 1], np.array([0.5, 1.0])),
        ([np.zeros(2, np.float32), np.ones(2)], np.array([[0.0, 0.0], [1.0, 1.0]])),
        ([np.array(["a"]), np.array(["long"])], np.array([["a"], ["long"]])),
        ([1, 2**70], [1, 2**70]),
        ([2**53 + 1, 0.5], [2**53 + 1, 0.5]),  # float64 would round it
        ([1.0, None], [1.0, None]),  # NumPy would store NaN
        ([1, "1"], [1, "1"]),
        ([1, 2.5, "x"], [1.0, 2.5, "x"]),  # as in an array of its own
        ([np.float32(0.5), "x"], [np.float32(0.5), "x"]),
        ([np.array(3), np.int64(4), "x"], [3, 4, "x"]),
        ([np.array("x"), 0, 0.5], [np.array("x"), 0.0, 0.5]),
        ([np.arange(2), np.zeros(2), np.arange(3)], [np.array([0.0, 1.0]), np.zeros(2), np.arange(3)]),
        ([{"n": 1}, 2], [{"n": 1}, 2]),
        ([{"n": np.array(1)}, {"n": 0.5}, 2], [{"n": 1.0}, {"n": 0.5}, 2]),
        ([[1, 2], (3,)], [[1, 2], (3,)]),
        ([np.bool_(True), True], [np.bool_(True), True]),
    ],
)
def test_values_of_several_kinds(values: list[Any], expected: Any):
    if isinstance(expected, list):
        array = np.full(len(expected), None, object)
        for row, value in enumerate(expected):
            array[row] = value
        expected = array
    assert_same(column(*values), expected)
    assert_same(column(*values[::-1]), expected[::-1])
    assert_same(added([{"key": value} for value in values])["key"], expected)


def test_rows_of_several_shapes():
    one, other = np.zeros(2), np.arange(3)
    infos = merge_rows([{"x": one}, {}, {"x": other}])
    assert infos["x"].shape == (3,)
    assert infos["x"][1] is None
    assert_same(infos["_x"], np.array([True, False, True]))
    assert_same([infos["x"][0], infos["x"][2]], [one, other])
    one[:] = 9  # an environment may always write to the same array
    assert infos["x"][0].tolist() == [0.0, 0.0]


def test_nested_in_one_row_and_not_in_another():
    rows: list[Infos] = [{"x": {"y": 1, "z": {"deep": "a"}}}, {"x": 3}, {}, {"x": {"y": 2.5}}]
    infos = merge_rows(rows)
    assert infos["x"].tolist() == [{"y": 1.0, "z": {"deep": "a"}}, 3, None, {"y": 2.5}]
    assert_same(take_rows(infos, 2, 4, 4, NUMPY), merge_rows(rows[2:]))
    assert take_rows(infos, 1, 2, 4, NUMPY)["x"].dtype == np.int64


def test_nothing_is_nothing():
    assert merge_rows([{}, None, {}]) == merge_rows([]) == {}


class Nameless:
    def __str__(self) -> str:
        raise LookupError("no name")


LOOP: Infos = {}
LOOP["loop"] = LOOP

CLASHES: list[tuple[list[Infos], str]] = [
    ([{"a": 1, "_a": 2}], "of infos clash: '_a' is the name of the mask of 'a'; rename one of them"),
    ([{"a": 1}, {"_a": 2}], "of infos clash: '_a' is the name of the mask of 'a'"),
    ([{"_a": 2}, {"a": 1}], "of infos clash: '_a' is the name of the mask of 'a'"),
    ([{"n": {"a": 1, "_a": 2}}], r"of infos\['n'\] clash: '_a' is the name of the mask of 'a'"),
    ([{1: 5}, {"1": 6}], "the keys 1 and '1' of infos clash: the masks of both would have the name '_1'"),
    ([{None: 5, "None": 6}], "the masks of both would have the name '_None'"),
    ([{1: 5}, {True: 6}], "the keys 1 and True of infos clash: they are equal, but their masks would have the names"),
    ([{Nameless(): 1}], "key of type Nameless without a name: str.. of it fails with LookupError: no name"),
]


@pytest.mark.parametrize(("rows", "message"), CLASHES)
@pytest.mark.parametrize("merge", [merge_rows, added])
def test_keys_that_clash(rows: list[Infos], message: str, merge: Any):
    with pytest.raises(EnvError, match=message):
        merge(rows)


@pytest.mark.parametrize(("rows", "message"), [case for case in CLASHES if len(case[0]) == 2])
def test_keys_that_clash_in_two_scopes(rows: list[Infos], message: str):
    parts = [merge_rows([row]) for row in rows]
    with pytest.raises(EnvError, match=message):
        merge_infos(parts, [1, 1], NUMPY)
    mask = np.array([False, True])
    with pytest.raises(EnvError, match=message):
        overlay(merge_rows([rows[0], {}]), merge_rows([{}, rows[1]]), mask)


@pytest.mark.parametrize("rows", [[LOOP], [{"loop": 1}, LOOP]])
def test_a_dictionary_that_contains_itself(rows: list[Infos]):
    with pytest.raises(EnvError, match=r"infos\['loop'\].* is nested too deeply: a dictionary in it contains itself"):
        merge_rows(rows)


@pytest.mark.parametrize(("given_infos", "shown"), [(None, "None"), ([1], r"\[1\] of type list"), ("a", "'a' of type")])
def test_what_is_not_a_dictionary(given_infos: Any, shown: str):
    with pytest.raises(EnvError, match=f"Cart: the infos are {shown}.*; expected a dictionary"):
        check_infos(given_infos, "Cart")
    with pytest.raises(EnvError, match=f"row 3: the infos are {shown}"):
        add_row(5, {}, given_infos, 3)
    assert check_infos(MappingProxyType({"a": 1}), "Cart") == {"a": 1}


NAMES = """
from workers.info_rows import mask_name
print([mask_name(key) for key in (frozenset("abcdefgh"), ("pair", frozenset({("x",), "y"})), frozenset(), (1,), ())])
"""


def test_masks_of_sets_have_the_same_name_in_every_process():
    """The order of a set of strings depends on the process."""
    said = set()
    for seed in range(4):
        done = python("-c", NAMES, env={"PYTHONHASHSEED": str(seed)})
        assert done.returncode == 0, done.stderr
        said.add(done.stdout)
    assert said == {
        """["_frozenset({'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'})", "_('pair', frozenset({'y', ('x',)}))", """
        """'_frozenset()', '_(1,)', '_()']\n"""
    }
