"""Infos: rows are taken and merged as Gymnasium itself builds them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import VectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.merge import merge_outcomes, share_outcome
from orchestrator.scopes import resolve_scopes
from tests.support.agents import copied
from tests.support.parity import assert_same
from tests.support.schedule import FRAMEWORKS
from workers.frameworks import Framework, load_framework
from workers.infos import mask_rows, merge_infos, overlay, scalars, take_rows
from workers.remote.wire import read_outcome, to_wire
from workers.types import Outcome, Scope

Infos = dict[str, Any]


def gymnasium_infos(infos: Sequence[Infos | None]) -> Infos:
    """Combine infos of single environments as Gymnasium's vector environments do; None skips one. The oracle."""
    env: VectorEnv[Any, Any, Any] = VectorEnv()
    env.num_envs = len(infos)
    merged: Infos = {}
    for row, info in enumerate(infos):
        if info is not None:
            merged = env._add_info(merged, info, row)
    return merged


def floats(width: int = 64) -> st.SearchStrategy[float]:
    return st.floats(allow_nan=False, width=width)  # type: ignore[arg-type]


VECTORS = st.tuples(floats(32), floats(32)).map(lambda pair: np.array(pair, dtype=np.float32))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(-(2**40), 2**40),
    "float": floats(),
    "bool": st.booleans(),
    "name": st.text(max_size=3),
    "float32": floats(32).map(np.float32),
    "vector": VECTORS,
    "final_obs": VECTORS,
    "_private": st.integers(0, 9),
    "zero_d": st.integers(0, 9).map(np.array),
}
NESTED = st.fixed_dictionaries({}, optional=VALUES)
INFO = st.fixed_dictionaries(
    {}, optional={**VALUES, "nested": st.fixed_dictionaries({}, optional={**VALUES, "deeper": NESTED})}
)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[Infos], tuple[Scope, ...]]:
    """Draw infos of every environment, and scopes that cover them."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=2, max_size=4))
    infos = draw(st.lists(INFO, min_size=sum(sizes), max_size=sum(sizes)))
    return infos, resolve_scopes(sizes, num_envs=sum(sizes), num_simultaneous_agents=len(sizes))


def sizes_of(scopes: tuple[Scope, ...]) -> list[int]:
    return [scope.num_envs for scope in scopes]


def with_arrays(infos: Infos, framework: Framework) -> Infos:
    """Return the same infos with the vectors as arrays of the framework."""

    def converted(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return with_arrays(value, framework)
        return framework.from_numpy(value) if key == "vector" else value

    return {key: converted(key, value) for key, value in infos.items()}


@pytest.mark.parametrize("name", FRAMEWORKS)
@given(batch=batches())
@settings(deadline=None)
def test_slices_of_a_batch_and_back(name: str, batch: tuple[list[Infos], tuple[Scope, ...]]):
    (infos, scopes), framework = batch, load_framework(name)
    expected = gymnasium_infos(infos)
    expected_parts = [gymnasium_infos(infos[scope.start : scope.stop]) for scope in scopes]
    whole, *parts = (with_arrays(infos, framework) for infos in (expected, *expected_parts))
    taken = [take_rows(whole, *scope.rows, len(infos), framework) for scope in scopes]
    # in every mode an agent sees the infos of its own environments, keys included
    assert_same([copied(infos) for infos in taken], expected_parts)
    assert_same(copied(merge_infos(parts, sizes_of(scopes), framework)), expected)
    assert_same(copied(merge_infos(taken, sizes_of(scopes), framework)), expected)


@given(st.lists(st.tuples(INFO, INFO, st.booleans()), min_size=1, max_size=6))
@settings(deadline=None)
def test_masks_and_overlays_by_row(rows: list[tuple[Infos, Infos, bool]]):
    mask = np.array([chosen for _, _, chosen in rows])
    under, over = gymnasium_infos([row[0] for row in rows]), gymnasium_infos([row[1] for row in rows])
    kept = mask_rows(under, ~mask)
    assert_same(kept, gymnasium_infos([None if chosen else row for row, _, chosen in rows]))
    expected = gymnasium_infos([after if chosen else before for before, after, chosen in rows])
    assert_same(overlay(kept, mask_rows(over, mask), mask), expected)
    assert_same(under, gymnasium_infos([row[0] for row in rows]))  # unchanged


def test_rows_are_fresh_copies(framework: str):
    inner, tensor = np.arange(4), load_framework(framework).from_numpy(np.arange(4))
    infos = {"nested": {"array": inner}, "tensor": tensor, "by scope": "same"}
    taken = take_rows(infos, 1, 3, 4, load_framework(framework))
    assert taken["nested"]["array"].tolist() == [1, 2] == copied(taken["tensor"]).tolist()
    taken["nested"]["array"][:] = -1
    if framework != "jax":  # its arrays are read-only
        taken["tensor"].fill_(-1)
    taken["nested"]["new"] = 1
    assert inner.tolist() == copied(tensor).tolist() == [0, 1, 2, 3]
    assert list(infos["nested"]) == ["array"]
    assert taken["by scope"] == "same"


def test_a_mask_without_rows_is_dropped_with_its_key(framework: str):
    adapter, mask = load_framework(framework), np.array([True, False])
    # the private key has a mask, and is itself the mask of another key
    infos = {"a": adapter.from_numpy(np.array([1, 0])), "_a": mask, "__a": mask, "b": np.zeros(2)}
    assert list(take_rows(infos, 0, 1, 2, adapter)) == ["a", "_a", "__a", "b"]
    left = take_rows(infos, 1, 2, 2, adapter)
    assert "a" not in left
    assert "_a" not in left
    assert left["b"].tolist() == [0.0]


@pytest.mark.parametrize("name", ["torch", "jax"])  # Warp has no arrays without dimensions
@pytest.mark.parametrize(
    ("values", "merged"),
    [
        ([2.0, 8.0], (2.0 * 1 + 8.0 * 3) / 4),
        ([np.float32(2.0), torch.tensor(8.0)], 6.5),
        ([np.array(2.0), torch.tensor(8.0, dtype=torch.float64)], 6.5),
        ([2, 8], [2, 8]),
        ([True, False], [True, False]),
        ([2.0, 8], [2.0, 8]),
        ([np.int64(2), torch.tensor(8)], [np.int64(2), torch.tensor(8)]),
        (["a", "b"], ["a", "b"]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        ([np.arange(2), np.arange(3)], [np.arange(2), np.arange(3)]),  # the first is not by row
        ([None, None], [None, None]),
    ],
)
def test_what_belongs_to_no_row(name: str, values: list[Any], merged: Any):
    framework = load_framework(name)

    def converted(value: Any) -> Any:
        return framework.from_numpy(value.numpy()) if isinstance(value, torch.Tensor) else value

    given_values = merge_infos([{"x": converted(value)} for value in values], [1, 3], framework)["x"]
    if isinstance(merged, float):
        assert type(given_values) is float
        assert given_values == merged
    else:
        assert [type(value) for value in given_values] == [type(converted(value)) for value in merged]
        for value, expected in zip(given_values, merged, strict=True):
            np.testing.assert_array_equal(value, expected)


def test_where_a_scope_lacks_the_key(framework: str):
    adapter = load_framework(framework)
    one, two = adapter.from_numpy(np.array([5])), adapter.from_numpy(np.array([6, 7]))
    merged = merge_infos([{"f": 2.0, "n": 1, "s": "a", "t": one}, {}, {"f": 8.0, "t": two}], [1, 4, 2], adapter)
    assert merged["f"] == (2.0 * 1 + 8.0 * 2) / 3  # weighted by the environments that have it
    assert merged["n"] == [1, None, None]
    assert merged["s"] == ["a", None, None]
    assert adapter.is_array(merged["t"])
    assert copied(merged["t"]).tolist() == [5, 0, 0, 0, 0, 6, 7]
    assert "_t" not in merged
    assert "_f" not in merged
    parts = [{"a": one, "_a": np.array([True])}, {}]
    merged = copied(merge_infos(parts, [1, 2], adapter))
    assert {key: value.tolist() for key, value in merged.items()} == {"a": [5, 0, 0], "_a": [True, False, False]}


def carried(outcome: Outcome, framework: Framework) -> Outcome:
    """Return the outcome as read from the wire, with NumPy arrays."""
    return read_outcome(to_wire(outcome, framework), framework, len(outcome.observations))


def test_a_single_scope_is_unchanged(framework: str):
    adapter = load_framework(framework)
    infos = {"float": 2.0, "int": 3, "array": np.arange(2)}
    assert merge_infos([infos], [2], adapter) is infos
    outcome = Outcome._make([*[adapter.from_numpy(np.zeros((2, 1)))] * 4, infos])
    scopes = resolve_scopes([2], num_envs=2, num_simultaneous_agents=1)
    merged = merge_outcomes([carried(outcome, adapter)], scopes, adapter)
    assert_same(copied(merged._asdict()), copied(outcome._asdict()))
    assert share_outcome(outcome, scopes, adapter) is outcome


@pytest.mark.parametrize("name", ["numpy", *FRAMEWORKS])
def test_outcomes_merge_in_scope_order(name: str):
    framework = load_framework(name)
    scopes = resolve_scopes([1, 3, 2], num_envs=6, num_simultaneous_agents=3)

    def outcome(start: int, stop: int) -> Outcome:
        rows = np.arange(start, stop, dtype=np.float32).reshape(-1, 1)
        arrays = np.hstack([rows, rows + 100]), rows + 1000, rows % 2 == 0, rows % 3 == 0
        infos = {"row": rows[:, 0], "mean": float(stop - start)}
        return Outcome._make([*map(framework.from_numpy, arrays), infos])

    merged = merge_outcomes([carried(outcome(*scope.rows), framework) for scope in scopes], scopes, framework)
    for array, expected in zip(merged[:4], outcome(0, 6)[:4], strict=True):
        assert framework.is_array(array)
        assert_same(framework.to_numpy(array), framework.to_numpy(expected))
    assert merged.infos["row"].tolist() == [0, 1, 2, 3, 4, 5]
    assert merged.infos["mean"] == (1 * 1 + 3 * 3 + 2 * 2) / 6

    shared = share_outcome(outcome(0, 6)._replace(infos={"n": 7, "f": 2.0, "row": np.arange(6)}), scopes, framework)
    assert shared.infos["n"] == [7, 7, 7]
    assert shared.infos["f"] == 2.0
    assert shared.infos["row"].tolist() == [0, 1, 2, 3, 4, 5]


def test_scalars(framework: str):
    adapter = load_framework(framework)
    infos = {
        "float": 2.5,
        "int": np.int64(3),
        "bool": True,
        "tensor": adapter.from_numpy(np.array([4.0])),
        "rows": np.array([1.0, 2.0, 6.0]),
        "masked": np.array([1.0, 99.0, 3.0]),
        "_masked": np.array([True, False, True]),
        "wide": adapter.from_numpy(np.array([[1.0, 3.0], [5.0, 7.0], [9.0, 11.0]])),
        "empty": np.array([1.0, 2.0, 3.0]),
        "_empty": np.zeros(3, dtype=bool),
        "_own": np.array([1, 2, 3]),  # the mask of nothing
        "other rows": np.arange(4.0),
        "text": "a",
        "objects": np.array([None, 1, 2], dtype=object),
        "ragged": [[1.0], [2.0, 3.0]],
        "nested": {"x": 1.0},
        "none": None,
        "nan": math.nan,
    }
    logged = dict(scalars(infos, 3, adapter))
    assert math.isnan(logged.pop("nan"))
    assert all(type(value) is float for value in logged.values())
    assert logged == {
        "float": 2.5,
        "int": 3.0,
        "bool": 1.0,
        "tensor": 4.0,
        "rows": 3.0,
        "masked": 2.0,
        "wide": 6.0,
        "_own": 2.0,
    }
