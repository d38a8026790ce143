"""Trees on the wire: the same structure, dtypes and values, in new arrays on arrival."""

from __future__ import annotations

import enum
import pickle
import threading
from typing import Any

import numpy as np
import pytest
import torch
import warp as wp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp

from tests.support.agents import to_numpy
from tests.support.odd_infos import Unreadable
from tests.support.schedule import FRAMEWORKS
from workers.errors import EnvError
from workers.frameworks import Framework, load_framework
from workers.info_rows import mask_name
from workers.remote.layout import DICT, FRAMEWORK_ARRAY, PICKLED, SCALAR, TUPLE, DamagedError, check_layout
from workers.remote.wire import Packed, from_wire, read_outcome, to_wire
from workers.types import Mode, Outcome, Tick, Transition

DTYPES = ["bool", "uint8", "int32", "int64", "float32", "float64"]


def arrays_of(dtypes: list[str]) -> st.SearchStrategy[Any]:
    shapes = stnp.array_shapes(min_dims=0, min_side=0)
    return st.sampled_from(dtypes).flatmap(lambda dtype: stnp.arrays(dtype, shapes))


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), arrays_of(DTYPES))


def trees_of(framework: Framework) -> st.SearchStrategy[Any]:
    """Trees whose leaves include NumPy and framework arrays."""
    # JAX has no 64-bit numbers by default
    dtypes = [dtype for dtype in DTYPES if framework.name != "jax" or not dtype.endswith("64")]
    return st.recursive(
        LEAVES | arrays_of(dtypes).map(framework.from_numpy),
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
    elif hasattr(tree, "shape"):
        assert given_tree.dtype == tree.dtype
        assert given_tree.shape == tree.shape
        assert to_numpy(given_tree).tobytes() == to_numpy(tree).tobytes()
    else:
        assert given_tree == tree or given_tree != given_tree


def leaves(tree: Any) -> list[Any]:
    values = list(tree.values()) if isinstance(tree, dict) else tree
    return [leaf for value in values for leaf in leaves(value)] if isinstance(values, (list, tuple)) else [values]


@pytest.mark.parametrize("name", FRAMEWORKS)
@given(data=st.data())
@settings(deadline=None)
def test_round_trip(name: str, data: st.DataObject):
    framework = load_framework(name)
    tree = data.draw(trees_of(framework))
    wired = to_wire(tree, framework)
    assert len(wired.others) == sum(not hasattr(leaf, "shape") for leaf in leaves(tree))  # arrays are not among them
    arrived = pickle.loads(pickle.dumps(wired))
    assert check_layout(arrived.spec) == (wired.spec, wired.size, len(wired.others))
    assert_same_tree(from_wire(arrived, framework), tree)
    assert_same_tree(from_wire(wired, framework), tree)  # also without pickling


def overwrite(array: Any, number: float) -> None:
    if hasattr(array, "fill_"):
        array.fill_(number)
    elif isinstance(array, np.ndarray):  # JAX arrays are read-only
        array.fill(number)


@pytest.mark.parametrize("name", ["numpy", *FRAMEWORKS])
def test_nothing_is_shared_on_either_side(name: str):
    framework, rows = load_framework(name), np.arange(6, dtype=np.float32).reshape(3, 2)
    tree = {"framework": framework.from_numpy(rows), "numpy": rows.copy(), "nested": (rows.copy(),)}
    wired = to_wire(tree, framework)
    for array in leaves(tree):
        overwrite(array, -1)
    first = from_wire(wired, framework)
    for array in leaves(first):
        assert to_numpy(array).tolist() == rows.tolist()
        overwrite(array, -2)
    for array in leaves(from_wire(wired, framework)):
        assert to_numpy(array).tolist() == rows.tolist()


def test_what_iterations_exchange(framework: str):
    adapter = load_framework(framework)
    arrays = [adapter.from_numpy(np.array([[10 * i], [10 * i + 1]], np.float32)) for i in range(5)]
    tick = Tick(Mode.EVAL, 3, 9)
    transition = Transition._make([*arrays, {"final_obs": arrays[0], "_final_obs": np.array([True, False])}, 1.5])
    received = from_wire(pickle.loads(pickle.dumps(to_wire((tick, transition), adapter))), adapter)
    assert_same_tree(received, (tick, transition))
    assert received[0].mode is Mode.EVAL
    without_states = transition._replace(next_states=None)
    assert from_wire(to_wire(without_states, adapter), adapter).next_states is None


def test_arrays_arrive_contiguous_and_without_gradients():
    weights = torch.arange(6.0).reshape(2, 3).requires_grad_()
    received = from_wire(to_wire(weights.T * 2, load_framework("torch")), load_framework("torch"))
    assert received.tolist() == [[0, 6], [2, 8], [4, 10]]
    assert received.is_contiguous()
    assert not received.requires_grad
    weights = wp.array([[0.0, 2, 4], [6, 8, 10]], requires_grad=True)
    received = from_wire(to_wire(weights.transpose(), load_framework("warp")), load_framework("warp"))
    assert received.numpy().tolist() == [[0, 6], [2, 8], [4, 10]]
    assert received.is_contiguous
    assert not received.requires_grad


class Colour(enum.Enum):
    RED = 1


KEYS: list[Any] = [1, True, 2.5, None, b"b", ("a", (1, None)), Colour.RED, frozenset({"some", "strings"}), np.int64(3)]


def test_keys_of_any_type_arrive_and_name_their_masks(framework: str):
    """The names of the masks of some objects depend on the process."""
    adapter, mask = load_framework(framework), np.array([True])
    for key in KEYS:
        tree = {"first": 1, key: np.array([2]), "_of another process": mask}
        packed = to_wire({**tree, mask_name(key): mask}, adapter)
        received = from_wire(packed, adapter)
        assert list(received) == ["first", key, "_of another process", mask_name(key)]
        assert type(list(received)[1]) is type(key)
        kind, keys, *rest = packed.spec
        elsewhere = packed._replace(spec=(kind, (*keys[:3], "_another name"), *rest))
        assert list(from_wire(elsewhere, adapter)) == ["first", key, "_of another process", mask_name(key)]


def test_layouts_of_equal_keys_differ():
    adapter = load_framework("numpy")
    assert len({to_wire({key: 5, "_x": 6}, adapter).spec for key in (1, True, 1.0, np.int64(1))}) == 4


LOCK = threading.Lock()


@pytest.mark.parametrize(
    ("tree", "place"),
    [
        ({"a": LOCK}, "infos['a'] is"),
        ({"a": {"lock": LOCK}}, "infos['a']['lock'] is"),
        ((1, {"x": 5, 3: {"l": [0, {"deep": (LOCK, 1)}]}}), "infos[3]['l'][1]['deep'][0] is"),
        ({"o": np.array([None, LOCK, 1])}, "infos['o'][1] is"),
    ],
)
def test_what_cannot_be_pickled_is_named(tree: Any, place: str):
    with pytest.raises(EnvError) as caught:
        to_wire(tree, load_framework("numpy"))
    assert str(caught.value) == (
        f"{place} of type _thread.lock, which cannot be sent to another process: TypeError: cannot pickle "
        "'_thread.lock' object; remove it, for example in a wrapper of the environment, or train with "
        "orchestrator='local'"
    )


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (object(), "what arrives is not equal to it"),
        (float("nan"), "what arrives is not equal to it"),
        (("t", float("nan")), "what arrives is not equal to it"),
        (Unreadable(), "LookupError: no licence"),
        (LOCK, "TypeError: cannot pickle '_thread.lock' object"),
    ],
)
def test_keys_that_would_not_arrive_are_named(key: Any, reason: str):
    with pytest.raises(
        EnvError, match=r"^the key .* of infos\['a'\], of type .*, cannot be sent.*; use a string"
    ) as caught:
        to_wire({"a": {key: 1}}, load_framework("numpy"))
    assert reason in str(caught.value)


class Custom(BaseException):
    pass


class Leaving:
    """Raises `kind` when it is unpickled."""

    kind: type[BaseException] = Exception

    def __getstate__(self) -> int:
        return 1

    def __setstate__(self, _: int) -> None:
        raise self.kind("gone")


def test_what_cannot_be_unpickled_is_named():
    adapter = load_framework("numpy")
    packed = to_wire((1, {"a": {2: [Unreadable()]}, "b": 1}), adapter)
    with pytest.raises(
        EnvError, match=r"^infos\['a'\]\[2\] has arrived .* cannot be unpickled: LookupError: no licence"
    ):
        from_wire(packed, adapter)


def test_what_ends_a_program_on_arrival_is_named(monkeypatch: pytest.MonkeyPatch):
    adapter = load_framework("numpy")
    packed = to_wire({"a": Leaving()}, adapter)
    for kind in (SystemExit, GeneratorExit, Custom):
        monkeypatch.setattr(Leaving, "kind", kind)
        with pytest.raises(EnvError, match=rf"^infos\['a'\] has arrived .* cannot be unpickled: {kind.__name__}: gone"):
            from_wire(packed, adapter)
    monkeypatch.setattr(Leaving, "kind", KeyboardInterrupt)  # may be the user's
    with pytest.raises(KeyboardInterrupt):
        from_wire(packed, adapter)


ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)
F4 = ROWS.dtype.str


@pytest.mark.parametrize(
    ("spec", "others", "data", "reason"),
    [
        ((SCALAR, 0), ([1],), b"", "a scalar is of type list"),
        ((SCALAR, 0), (np.int64(1),), b"", "a scalar is of type numpy.int64"),
        ((PICKLED, 0), (5,), b"", "a pickle is of type int"),
        ((PICKLED, 0), (bytearray(b"N."),), b"", "a pickle is of type bytearray"),
        ((TUPLE, tuple, ((SCALAR, 0), (SCALAR, 1))), (1,), b"", "tuple index out of range"),
        ((FRAMEWORK_ARRAY, F4, (3, 2), 0), (), b"short", "buffer is too small"),
        ((FRAMEWORK_ARRAY, F4, (3, 2), 0), (), None, "has no data"),
        ((DICT, ("a",), ((FRAMEWORK_ARRAY, F4, (3, 2), 0),)), (), "text", "TypeError"),
    ],
)
def test_leaves_that_do_not_fit_the_layout_are_named(spec: Any, others: Any, data: Any, reason: str):
    layout = check_layout(spec)
    packed = Packed(spec, others, data, layout.size)
    with pytest.raises(DamagedError, match=rf"^a message .*{reason}"):
        from_wire(packed, load_framework("numpy"))


@pytest.mark.parametrize("dtype", ["<U3", "|S3", ">f4", "<M8[s]", "<f16"])
def test_arrays_that_the_framework_lacks_are_named(framework: str, dtype: Any):
    layout = check_layout((FRAMEWORK_ARRAY, dtype, (2,), 0))
    packed = Packed(layout.spec, (), bytearray(layout.size), layout.size)
    with pytest.raises(DamagedError, match=r"^a message cannot be read: (Type|Value|Runtime)Error: "):
        from_wire(packed, load_framework(framework))


@pytest.mark.parametrize(
    "tree",
    [
        5,
        {"a": ROWS},
        (ROWS, ROWS, ROWS, ROWS, {}),
        Tick(Mode.TRAIN, 1, 2),
        Outcome(ROWS, ROWS, ROWS, ROWS, ROWS),  # type: ignore[arg-type]
        Outcome(ROWS, ROWS, ROWS, ROWS, ()),  # type: ignore[arg-type]
        Outcome(ROWS, ROWS, ROWS, ROWS[:2], {}),
        Outcome(ROWS, ROWS, ROWS, 5, {}),
        Outcome(ROWS, ROWS, ROWS, np.float32(5), {}),
        Outcome(ROWS, ROWS, ROWS, (ROWS,), {}),
        Outcome._make([*[np.array(5.0)] * 4, {}]),
        Outcome({"one": ROWS, "two": ROWS[:2]}, {}, {}, {}, {}),
        Outcome({"one": {"two": ROWS}}, {}, {}, {}, {}),
    ],
    ids=str,
)
def test_what_is_no_outcome_is_named(tree: Any):
    adapter = load_framework("numpy")
    packed = to_wire(tree, adapter)
    assert_same_tree(from_wire(packed, adapter), tree)
    with pytest.raises(DamagedError, match="something else than the outcome of 3 rows"):
        read_outcome(packed, adapter, 3)


def test_outcomes_arrive():
    adapter = load_framework("numpy")
    by_agent = {"one": ROWS, 2: ROWS + 1}
    for rows, outcome in (
        (3, Outcome(ROWS, ROWS[:, :1], ROWS > 1, ROWS > 2, {})),
        (3, Outcome(by_agent, by_agent, by_agent, by_agent, {1: 5, "a": {"b": ROWS}})),  # type: ignore[dict-item]
        (3, Outcome({}, {}, {}, {}, {})),
        (0, Outcome(ROWS[:0], ROWS[:0], ROWS[:0], ROWS[:0], {})),
    ):
        assert_same_tree(read_outcome(to_wire(outcome, adapter), adapter, rows), outcome)
