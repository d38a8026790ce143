"""Trees that cross a wire: the same structure, dtypes and values, in fresh arrays on arrival."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp

from workers.frameworks import load_framework
from workers.types import Mode, Outcome, Tick, Transition
from workers.wire import from_wire, to_wire

TORCH, NUMPY = load_framework("torch"), load_framework("numpy")

DTYPES = ["bool", "uint8", "int32", "int64", "float32", "float64"]
ARRAYS = st.sampled_from(DTYPES).flatmap(lambda dtype: stnp.arrays(dtype, stnp.array_shapes(min_dims=0, min_side=0)))
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), ARRAYS)
LEAVES |= ARRAYS.map(torch.tensor)
TREES = st.recursive(
    LEAVES,
    lambda trees: (
        st.lists(trees, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=2) | st.integers(0, 3), trees, max_size=3)
        | st.tuples(trees, trees, trees, trees, st.just({})).map(Outcome._make)
    ),
    max_leaves=8,
)


def assert_same_tree(given_tree: Any, tree: Any) -> None:
    assert type(given_tree) is type(tree)
    if isinstance(tree, dict):
        assert list(given_tree) == list(tree)
        given_tree, tree = tuple(given_tree.values()), tuple(tree.values())
    if isinstance(tree, tuple):
        assert len(given_tree) == len(tree)
        for one, other in zip(given_tree, tree, strict=True):
            assert_same_tree(one, other)
    elif isinstance(tree, (np.ndarray, torch.Tensor)):
        assert given_tree.dtype == tree.dtype
        assert given_tree.shape == tree.shape
        assert np.asarray(given_tree).tobytes() == np.asarray(tree).tobytes()
    else:
        assert given_tree == tree or given_tree != given_tree


def leaves(tree: Any) -> list[Any]:
    values = list(tree.values()) if isinstance(tree, dict) else tree
    return [leaf for value in values for leaf in leaves(value)] if isinstance(values, (list, tuple)) else [values]


@given(TREES)
@settings(deadline=None)
def test_round_trip(tree: Any):
    wired = to_wire(tree, TORCH)
    assert not any(isinstance(leaf, torch.Tensor) for leaf in leaves(wired))
    assert_same_tree(from_wire(pickle.loads(pickle.dumps(wired)), TORCH), tree)
    assert_same_tree(from_wire(wired, TORCH), tree)  # also without a wire between


@pytest.mark.parametrize("framework", [TORCH, NUMPY], ids=["torch", "numpy"])
def test_nothing_is_shared_on_either_side(framework: Any):
    rows = np.arange(6.0).reshape(3, 2)
    tree = {"framework": framework.from_numpy(rows), "numpy": rows.copy(), "nested": (rows.copy(),)}
    wired = to_wire(tree, framework)
    for array in leaves(tree):
        array[:] = -1
    first = from_wire(wired, framework)
    for array in leaves(first):
        assert np.asarray(array).tolist() == rows.tolist()
        array[:] = -2
    for array in leaves(from_wire(wired, framework)):
        assert np.asarray(array).tolist() == rows.tolist()


def test_what_iterations_exchange():
    arrays = [torch.arange(2.0).reshape(2, 1) + 10 * i for i in range(5)]
    tick = Tick(Mode.EVAL, 3, 9)
    transition = Transition._make([*arrays, {"final_obs": arrays[0], "_final_obs": np.array([True, False])}, 1.5])
    received = from_wire(pickle.loads(pickle.dumps(to_wire((tick, transition), TORCH))), TORCH)
    assert_same_tree(received, (tick, transition))
    assert received[0].mode is Mode.EVAL
    without_states = transition._replace(next_states=None)
    assert from_wire(to_wire(without_states, TORCH), TORCH).next_states is None


def test_tensors_arrive_contiguous_and_without_gradients():
    weights = torch.arange(6.0).reshape(2, 3).requires_grad_()
    received = from_wire(to_wire({"transposed": weights.T * 2}, TORCH), TORCH)["transposed"]
    assert received.tolist() == [[0, 6], [2, 8], [4, 10]]
    assert received.is_contiguous()
    assert not received.requires_grad
