"""Parts of snapshots: plain where they can be, pickled where they may be, and errors that say whose and where."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray import cloudpickle

from tests.support.damage import Bomb
from tests.support.parity import assert_same
from tests.support.schedule import FRAMEWORKS
from workers.errors import CheckpointError
from workers.frameworks import load_framework
from workers.storage.snapshot import Part, decode_part, encode_part

TORCH = load_framework("torch")


def encode(tree: Any, **changes: Any) -> Part:
    return encode_part(tree, TORCH, **{"allow_pickle": False, "what": "the agent of scope 1", **changes})


def decode(part: Part) -> Any:
    return decode_part(part, TORCH, what="the agent of scope 1")


def test_a_plain_state_needs_no_pickle(monkeypatch: pytest.MonkeyPatch):
    tree = {"weights": torch.arange(4.0), "seen": {1, 2}, "names": np.array(["a", "bc"])}
    monkeypatch.setattr(type(TORCH), "load", None)
    for allow_pickle in (False, True):
        part = encode(tree, allow_pickle=allow_pickle, pickler=None)
        assert part.pickled == b""
        assert_same(decode(part)["names"], tree["names"])
        assert decode(part)["weights"].tolist() == [0, 1, 2, 3]
        assert decode(part)["seen"] == {1, 2}


def test_what_only_pickle_can_keep_is_named_or_pickled():
    tree: Any = {"env": [1, {"rng": bytearray(b"ab"), "weights": torch.arange(3.0)}], "half": np.zeros(2, [("a", int)])}
    with pytest.raises(
        CheckpointError,
        match=r"^the agent of scope 1 holds a value of type bytearray at /env/1/rng, which only pickle can keep; pass "
        r"allow_pickle=True to save\(\)",
    ):
        encode(tree)
    with pytest.raises(
        CheckpointError, match=r"holds a ndarray of dtype \[\('a', '<i8'\)\] at /half, which only pickle"
    ):
        encode({"half": tree["half"]})
    part = encode(tree, allow_pickle=True)
    assert len(TORCH.load(part.pickled)) == 2  # the tensor is not in it
    back = decode(part)
    assert back["env"][1]["rng"] == bytearray(b"ab")
    assert back["half"].dtype == tree["half"].dtype


def test_the_caller_may_pickle_in_its_own_way():
    with pytest.raises(CheckpointError, match=r"scope 1 cannot be stored: .* pickle cannot keep, either: .*lambda"):
        encode({"a": lambda: 3}, allow_pickle=True)
    part = encode({"a": lambda: 3}, allow_pickle=True, pickler=cloudpickle.Pickler)
    assert decode(part)["a"]() == 3


class Holder:
    """An object that only pickle can keep, with a tensor and a view of it."""

    def __init__(self) -> None:
        self.whole = torch.arange(6.0)
        self.view = self.whole.view(2, 3)


def test_tensors_that_share_memory_do_so_again():
    back = decode(encode(Holder(), allow_pickle=True))
    back.whole[4] = 40
    assert back.view.tolist() == [[0, 1, 2], [3, 40, 5]]


def test_objects_in_two_places_of_one_part_stay_one():
    shared = bytearray(b"ab")
    back = decode(encode({"a": shared, "b": [shared]}, allow_pickle=True))
    assert back["a"] is back["b"][0]


def test_what_nothing_can_keep_is_refused():
    for tree in ({"lock": threading.Lock()}, {"ten": [Bomb(Path("x")), threading.Lock()]}):
        with pytest.raises(
            CheckpointError, match=r"of scope 1 cannot be stored: .*cannot pickle '_thread.lock' object"
        ):
            encode(tree, allow_pickle=True)
    within_itself: list[Any] = []
    within_itself.append(within_itself)
    for allow_pickle in (False, True):
        with pytest.raises(
            CheckpointError, match="of scope 1 cannot be stored: the state cannot be written: Recursion"
        ):
            encode(within_itself, allow_pickle=allow_pickle)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_damaged_part_is_refused(framework: str):
    adapter = load_framework(framework)

    def decode(part: Part) -> Any:
        return decode_part(part, adapter, what="the agent of scope 1")

    what: Any = {"allow_pickle": True, "what": "the agent of scope 1"}
    part = encode_part({"a": bytearray(b"ab")}, adapter, **what)
    for pickled, told in (
        (b"", "is damaged: KeyError: 0"),
        (adapter.dump([], pickle.Pickler), "is damaged: KeyError: 0"),
        (adapter.dump({0: 1}, pickle.Pickler), "its pickle holds a dict"),
        (part.pickled[: len(part.pickled) // 2], "its pickle cannot be loaded"),
        (b"nonsense", "its pickle cannot be loaded"),
    ):
        with pytest.raises(CheckpointError, match=f"^the agent of scope 1 cannot be restored: .*{told}"):
            decode(part._replace(pickled=pickled))
    with pytest.raises(CheckpointError, match=r"^the agent of scope 1 cannot be restored: .* or is damaged"):
        decode(part._replace(state=part.state[:-1]))


def test_thousands_of_environments_fit():
    rows = [{"state": np.full(3, row), "steps": row} for row in range(30_000)]
    part = encode(rows)
    assert int.from_bytes(part.pieces[0][:8], "little") > 2**22  # more than an agent's file may have
    back = decode(part)
    assert [row["state"][2] for row in back] == [row["steps"] for row in back] == list(range(30_000))
