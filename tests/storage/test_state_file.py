"""States as bytes: they are restored bit for bit without pickle, and damaged ones are rejected."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import tracemalloc
from collections import deque
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from tests.support.parity import assert_same
from tests.support.schedule import examples
from workers.errors import AgentError
from workers.frameworks import load_framework
from workers.pickling import objects
from workers.storage.state_file import decode_state, encode_pieces, encode_state

TORCH = load_framework("torch")

DTYPES = ("bool", "int8", "int64", "uint8", "uint16", "float16", "float32", "float64", "complex64")
# held as bytes: safetensors lacks these
OTHER_DTYPES = ("complex128", "longdouble", ">f4", ">i2", "<U3", ">U2", "S2", "<M8[s]", "<m8[25us]")
TORCH_DTYPES = ("bool", "int64", "uint8", "float32", "float64")
# keys whose paths collide, and names that are reserved in the format
KEYS = st.one_of(
    st.sampled_from(["a", "b", "a/b", "/a", "a'", "", "/", "0", "a/0", "state", "__metadata__"]),
    st.integers(-3, 3),
    st.text(max_size=3),
    st.sampled_from([None, True, 0.5, (1, "a"), ((), -2.5), np.int64(7), b"a", frozenset([1])]),
)


@st.composite
def numpy_arrays(draw: st.DrawFn, dtypes: tuple[str, ...] = DTYPES) -> Any:
    """Draw arrays of any bits and shape: without dimensions, empty, transposed, reversed."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    array = draw(arrays_of.arrays(dtype, arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)))
    layout = draw(st.sampled_from(["as it is", "transposed", "backwards"]))
    if array.ndim and layout != "as it is":
        return array.T if layout == "transposed" else array[::-1]
    return array


def tensors() -> st.SearchStrategy[torch.Tensor]:
    def tensor(array: Any, transpose: bool) -> torch.Tensor:
        made = torch.tensor(array.copy())
        return made.movedim(0, -1) if transpose and made.ndim else made

    return st.builds(tensor, numpy_arrays(TORCH_DTYPES), st.booleans())


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**200), 2**200),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.complex_numbers(),
    st.sets(st.one_of(st.integers(), st.text(max_size=2), st.tuples(st.booleans()))),
    st.frozensets(st.floats(allow_nan=False)),
    numpy_arrays(),
    numpy_arrays(OTHER_DTYPES),
    numpy_arrays(OTHER_DTYPES).map(lambda array: array.reshape(-1)[0] if array.size else np.str_("text")),
    numpy_arrays().map(lambda array: array.reshape(-1)[0] if array.size else np.float32(2.5)),
    tensors(),
)
STATES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.dictionaries(KEYS, inner, max_size=4),
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.builds(deque, st.lists(inner, max_size=3), st.sampled_from([None, 3, 10])),
        st.lists(inner, min_size=6, max_size=6).map(lambda items: objects((3, 1, 2), items)),
    ),
    max_leaves=12,
)


def bits(tree: Any) -> Any:
    """Return the tree in a form for `assert_same` that includes the types of keys, numbers and arrays."""
    if isinstance(tree, dict):
        return {"dict": [(type(key).__name__, key, bits(value)) for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        return type(tree)(bits(value) for value in tree)
    if isinstance(tree, deque):
        return {"longest": tree.maxlen, "items": [bits(value) for value in tree]}
    if isinstance(tree, (set, frozenset)):
        return {type(tree).__name__: sorted((type(value).__name__, repr(value)) for value in tree)}
    if isinstance(tree, np.ndarray) and tree.dtype == object:
        return {"shape": tree.shape, "items": [bits(value) for value in tree.flat]}
    if isinstance(tree, torch.Tensor):
        return {"tensor": str(tree.dtype), "values": tree.numpy()}
    if isinstance(tree, np.generic):
        return {"scalar": tree.dtype.str, "values": np.asarray(tree)}
    if isinstance(tree, complex):
        return {"complex": [bits(tree.real), bits(tree.imag)]}
    if isinstance(tree, float):  # the sign of zero counts
        return {"float": "nan" if tree != tree else struct.pack("d", tree)}
    return tree


def leaves_by_path(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[str, Any]]:
    if isinstance(tree, np.ndarray) and tree.dtype == object:
        tree = list(tree.flat)
    if isinstance(tree, (dict, list, tuple, deque)):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        keys = [("", key) for key in tree if isinstance(key, (np.generic, bytes))] if isinstance(tree, dict) else []
        return keys + [leaf for key, value in items for leaf in leaves_by_path(value, (*path, str(key)))]
    return [("/".join(path), tree)] if isinstance(tree, (np.ndarray, np.generic, torch.Tensor, bytes)) else []


@given(STATES)
@settings(deadline=None, max_examples=examples(100, long=300))
def test_any_state_comes_back_to_the_bit(state: Any):
    data = encode_state(state, TORCH)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert safetensors.numpy.save(safetensors.numpy.load(data), header["__metadata__"]) == data
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((pickle, "loads"), (pickle, "load"), (pickle, "Unpickler"), (torch, "load")):
            patch.setattr(module, name, None)
        back = decode_state(data, TORCH)
    assert_same(bits(back), bits(state))
    read = safetensors.numpy.load(data)
    leaves = leaves_by_path(state)
    assert len(read) == len(leaves)
    assert sorted(value.tobytes() for value in read.values()) == sorted(
        value if type(value) is bytes else np.ascontiguousarray(value).tobytes() for _, value in leaves
    )


def test_other_readers_give_the_arrays_by_their_path():
    state = {
        "models": {"policy.network.0.weight": torch.arange(6.0).reshape(2, 3).T, "steps": np.array(7, np.uint8)},
        "optimizer": [{0: {"step": torch.tensor(2.0)}}, ({"betas": (0.9, 0.999)}, np.float64(0.5))],
        "name": "mine",
    }
    data = encode_state(state, TORCH)
    assert b"pickle" not in data
    read = safetensors.numpy.load(data)
    assert {name: array.tolist() for name, array in read.items()} == {
        "models/policy.network.0.weight": [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]],
        "models/steps": 7,
        "optimizer/0/0/step": 2.0,
        "optimizer/1/1": 0.5,
    }


def test_paths_that_meet():
    state = {"a/b": np.array(1), "a": {"b": np.array(2)}, "a/b'": np.array(3), "__metadata__": np.array(4)}
    data = encode_state(state, TORCH)
    assert {name: int(array) for name, array in safetensors.numpy.load(data).items()} == {
        "a/b": 1,
        "a/b'": 2,
        "a/b''": 3,
        "__metadata__'": 4,
    }
    assert_same(decode_state(data, TORCH), state)
    assert safetensors.numpy.load(encode_state(np.array(5), TORCH))["state"] == 5


def test_what_comes_back_belongs_to_nobody_else():
    state = {"numpy": np.arange(3), "torch": torch.arange(3)}
    data = encode_state(state, TORCH)
    back = decode_state(data, TORCH)
    for array in back.values():
        array += 1  # an agent may write to its arrays
    assert_same(bits(decode_state(data, TORCH)), bits(state))


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else []


WITHIN_ITSELF: dict[str, Any] = {}
WITHIN_ITSELF["me"] = WITHIN_ITSELF


@pytest.mark.parametrize(
    ("state", "place"),
    [
        ({"a": [1, {2: object()}]}, r"holds a value of type object at /a/1/2; expected arrays"),
        (bytearray(1), r"holds a value of type bytearray at /; expected"),
        ({"a": {(1, object()): 3}}, r"a value of type object at /a/.*/1; expected"),
        ({"a": [np.array([None, {0: object()}])]}, r"a value of type object at /a/0/1/0;"),
        ({"a": deque([{1}, print])}, r"a value of type builtin_function_or_method at /a/1;"),
        ({"a": np.zeros(2, [("field", int)])}, r"a ndarray of dtype \[.* at /a;"),
        ({"a": np.ma.masked_array([1, 2], [True, False])}, r"a MaskedArray of dtype int64 at /a;"),
        ({"a": np.array(["text"], np.dtypes.StringDType())}, r"a ndarray of dtype StringDType\(\) at /a;"),
        ({"a": torch.zeros(2, dtype=torch.float8_e5m2)}, r"an array that NumPy cannot hold \(.*Float8_e5m2\) at /a;"),
        ({"a": torch.eye(2).to_sparse()}, r"an array that NumPy cannot hold \((?s:.*)Sparse(?s:.*)\) at /a;"),
        ({"a": torch.ones(2, dtype=torch.complex64).conj()}, r"an array that NumPy cannot hold \(.*conj.*\) at /a;"),
        ({"\ud800": np.zeros(2)}, r"cannot be written: UnicodeEncodeError"),
        ({"a": 10**5000}, r"cannot be written: ValueError: Exceeds the limit"),
        (WITHIN_ITSELF, r"cannot be written: RecursionError"),
    ],
)
def test_what_cannot_be_written_is_refused_by_its_place(state: Any, place: str):
    with pytest.raises(AgentError, match=place):
        encode_state(state, TORCH)


def test_what_is_not_plain_is_handed_out_in_order():
    first, second, pickled = object(), np.zeros(2, [("field", int)]), list[Any]()
    state = {"a": [1, first, np.arange(2)], "b": {second.dtype: {1, 2}}, "c": np.array([None, second], object)[:1]}
    data = encode_state(state, TORCH, pickled)
    assert pickled[0] is first
    assert pickled[1] is second.dtype
    back = decode_state(data, TORCH, pickled)
    assert_same(back, state)
    assert back["a"][1] is first
    with pytest.raises(AgentError, match="damaged: KeyError"):
        decode_state(data, TORCH, pickled[:1])
    with pytest.raises(AgentError, match="damaged: KeyError"):
        decode_state(data, TORCH)
    with pytest.raises(AgentError, match="damaged: KeyError: 0"):
        decode_state(file_with('["list", [["pickle", 0], ["pickle", 0]]]'), TORCH, [first])


def test_a_header_that_could_not_be_read_is_not_written():
    state = [np.zeros(1)] * 1000
    size = int.from_bytes(encode_state(state, TORCH)[:8], "little")
    with pytest.raises(
        AgentError, match=f"so many arrays or values that its header has {size} bytes; expected at most"
    ):
        encode_state(state, TORCH, largest_header=size - 1)
    data = encode_state(state, TORCH, largest_header=size)
    assert_same(decode_state(data, TORCH, largest_header=size), state)
    with pytest.raises(AgentError, match=f"its header has {size} bytes; expected at most {size - 1}"):
        decode_state(data, TORCH, largest_header=size - 1)
    with pytest.raises(AgentError, match=f"header has [0-9]+ bytes; expected at most {2**22}"):
        encode_state("x" * 2**22, TORCH)


GOOD = encode_state({"a": torch.arange(4.0), "b": [np.arange(3), "text", 2**70]}, TORCH)


def file_with(tree: str) -> bytes:
    return safetensors.numpy.save({"x": np.zeros(2)}, metadata={"state": tree})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04K\x01.",
        pickle.dumps({"a": 1}),
        GOOD + b"\0",
        GOOD[1:],
        GOOD.replace(b"array", b"arrow"),
        file_with('["set", [["value", 1], ["value", true]]]'),
        file_with('["set", [["numpy", "x"]]]'),
        file_with('["deque", [-1, []]]'),
        file_with('["objects", [[3], [["value", 1]]]]'),
        file_with('["objects", [[1000000000000], []]]'),
        file_with('["complex", ["1", 2]]'),
        file_with('["pickle", 0]'),
        file_with('["tagged", ["bfloat17", "x"]]'),
        file_with('["numpy", ["x", "|O", [2]]]'),
        file_with('["numpy", ["x", "O,O", [1]]]'),
        file_with('["numpy", ["x", "f8,f8", [1]]]'),
        file_with('["numpy", ["x", null, [2]]]'),
        file_with('["numpy", ["x", "<U2", [2]]]').replace(bytes(16), b"\0\0\x11\0" * 4),
        file_with('["numpy", ["x", ">U2", [2]]]').replace(bytes(16), b"\1\0\0\0" * 4),
        file_with('["numpy", ["x", "<U0", [2]]]'),
        file_with('["numpy", ["x", "<U1000000000", [1]]]'),
        file_with('["numpy", ["x", "<M8[s]", [1000000000000]]]'),
        file_with('["items", [[["dict", []], ["value", 1]]]]'),
        GOOD.replace(b'"F32"', b'"F33"'),
        safetensors.numpy.save({"a": np.arange(3)}),
        safetensors.numpy.save({"a": np.arange(3)}, metadata={"format": "pt"}),
        file_with(""),
        file_with("3"),
        file_with("[]"),
        file_with('["numpy", "missing"]'),
        file_with('["numpy", ["x"]]'),
        file_with('["pickle", "x"]'),
        file_with('["dict", [[{}, ["value", 1]]]]'),
        file_with('["dict", 3]'),
        file_with('["list", ' * 20_000),
        file_with(json.dumps(["value"])),
    ],
)
def test_damaged_files_are_refused(data: bytes):
    with pytest.raises(AgentError, match="not a stored state, or is damaged"):
        decode_state(data, TORCH)


def test_every_cut_is_noticed():
    for length in range(len(GOOD)):
        with pytest.raises(AgentError, match="damaged"):
            decode_state(GOOD[:length], TORCH)


@given(st.one_of(st.binary(), st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255))))
@settings(deadline=None, max_examples=examples(150, long=500))
def test_random_bytes_give_nothing_but_our_error(damage: Any):
    data = damage
    if isinstance(damage, tuple):
        place, byte = damage
        data = GOOD[:place] + bytes([byte]) + GOOD[place + 1 :]
    try:
        decode_state(data, TORCH)  # a changed byte within a number gives another number
    except AgentError as error:
        assert "damaged" in str(error)  # noqa: PT017 - it need not be raised


def test_large_arrays_are_encoded_in_their_own_memory():
    large = torch.arange(2**22, dtype=torch.float32).reshape(2, -1)
    tracemalloc.start()
    try:
        pieces = encode_pieces({"memory": large, "optimised": torch.nn.Parameter(large)}, TORCH)
        sizes = [hashlib.sha256(piece).digest_size for piece in pieces]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(sizes) == 3
    assert peak < 2**17
    large[0, 0] = 7
    for piece in pieces[1:]:
        assert np.frombuffer(piece, np.float32)[0] == 7
