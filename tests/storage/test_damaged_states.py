"""Damaged files of agents and statistics: an error that says so, or a state, in little time and memory."""

from __future__ import annotations

import json
import os
import random
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.run_dir import RunDirectory
from tests.support.damage import Within, damaged_state, state_with
from tests.support.ppo import make
from tests.support.schedule import examples
from workers.errors import AgentError
from workers.frameworks import load_framework
from workers.storage.agent_file import dump_agent, load_agent
from workers.storage.state_file import decode_state, encode_state, nonfinite_values

NUMPY, TORCH = load_framework("numpy"), load_framework("torch")
ROW = {"mean": np.zeros(4), "var": np.ones(4), "count": np.array(5.0)}
FILES: dict[str, bytes] = {
    "agent": dump_agent(make("torch"), TORCH)[1],
    "statistics": encode_state([{"NormalizeObservation.obs_rms": ROW}, {}], NUMPY),
    "all kinds": encode_state(
        {"a": torch.arange(4.0), 3: [np.arange(3), "text", 2**70, None, True, (np.float16(1.5), 0.5)], "b": {}}, TORCH
    ),
    "more kinds": encode_state(
        {
            "a": [b"bytes", 1j, {1, 2}, frozenset("ab"), deque([{0.5: 3}], 4), np.array(["a", "bc"])],
            "b": [torch.ones(2, dtype=torch.bfloat16), np.array([None, 3]), np.complex128(2), np.array([1.5], ">f4")],
        },
        TORCH,
    ),
}


@pytest.mark.fuzz
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused_or_gives_a_state(name: str, tmp_path: Path):
    run, agent, measured = RunDirectory(str(tmp_path)), make("torch"), Within()
    refused = 0
    for seed in range(examples(40, long=700)):
        data = damaged_state(FILES[name], random.Random(seed))
        run.write("agents/0/statistics.safetensors", data)
        for read in (
            lambda data=data: decode_state(data, TORCH),
            lambda data=data: nonfinite_values(data),
            lambda: run.statistics(0),
            lambda data=data: load_agent(agent, "state.safetensors", data, TORCH),
        ):
            told = ""
            with measured.limits(len(data)):
                try:
                    read()
                except AgentError as error:
                    told = str(error)
            assert len(told) < 1000, seed
            refused += bool(told)
    assert refused > 40  # most damage matters
    print(f"{name}: {refused} refused, slowest {measured.seconds:.2f} s, {measured.memory / 2**20:.1f} MiB")


X = {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def with_tree(tree: Any, arrays: dict[str, Any] = X, data: bytes = bytes(8)) -> bytes:
    text = tree if isinstance(tree, str) else json.dumps(tree)
    return state_with({"__metadata__": {"state": text}, **arrays}, data)


def with_array(dtype: str, shape: list[int], size: int) -> bytes:
    array = {"x": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}
    return with_tree(["array", "x"], array, bytes(size))


HOSTILE = {
    "a header of 2**63 bytes": (2**63).to_bytes(8, "little") + b"{}",
    "a header of 2**64 - 1 bytes": bytes([255]) * 8 + b"{}",
    "a deep header": state_with(b'{"a":' * 100_000),
    "a deep header in metadata": state_with(b'{"__metadata__":{"state":"x"},"a":' + b"[" * 100_000),
    "no header": state_with(b""),
    "a list as header": state_with([]),
    "no metadata": state_with({"__metadata__": None}),
    "a deep tree": with_tree('["list",[' * 100_000),
    "a deep value": with_tree('["value",' + "[" * 900 + "]" * 900 + "]"),
    "one array in many places": with_tree(["list", [["array", "x"]] * 10_000]),
    "one large array in many places": with_tree(
        ["list", [["array", "x"]] * 10_000],
        {"x": {"dtype": "U8", "shape": [2**20], "data_offsets": [0, 2**20]}},
        bytes(2**20),
    ),
    "a list as a value": with_tree(["value", [1]]),
    "a dictionary as a value": with_tree(["value", {"a": 1}]),
    "a list as a key": with_tree(["dict", [[[1], ["value", 1]]]]),
    "None as a key": with_tree(["dict", [[None, ["value", 1]]]]),
    "True as a key": with_tree(["dict", [[True, ["value", 1]]]]),
    "a node of three": with_tree(["value", 1, 2]),
    "an integer of 5,000 digits": with_tree('["value",' + "9" * 5000 + "]"),
    "a name of 1 MB": with_tree(["array", "y" * 2**20]),
    "a kind of 1 MB": with_tree(["y" * 2**20, 1]),
    "an empty array of great shape": with_array("F32", [0, 2**62], 0),
    "an empty array of greater shape": with_array("F32", [0, 2**40, 2**40], 0),
    "a shape beyond 64 bits": with_array("F32", [2**32, 2**32], 8),
    "100 dimensions": with_array("F32", [1] * 100, 4),
    "bfloat16": with_array("BF16", [2], 4),
    "float8": with_array("F8_E4M3", [4], 4),
    "float4": with_array("F4", [8], 4),
    "overlapping arrays": with_tree(["array", "x"], X | {"y": X["x"]}),
    "two arrays of one name": state_with(b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
                                         b'"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused(name: str, tmp_path: Path):
    run = RunDirectory(str(tmp_path))
    run.write("agents/0/statistics.safetensors", HOSTILE[name])
    for read in (
        lambda: decode_state(HOSTILE[name], TORCH),
        lambda: nonfinite_values(HOSTILE[name]),
        lambda: run.statistics(0),
        lambda: load_agent(make("torch"), "state.safetensors", HOSTILE[name], TORCH),
    ):
        with Within().limits(len(HOSTILE[name])), pytest.raises(AgentError, match="is damaged") as caught:
            read()
        assert len(str(caught.value)) < 600


def test_a_state_that_does_not_fit_is_told_briefly():
    many = encode_state({f"key {i}": "x" * 1000 for i in range(1000)}, TORCH)
    for data in (many, encode_state(["x" * 100_000], TORCH)):
        with pytest.raises(AgentError, match="the state does not fit this agent") as caught:
            load_agent(make("torch"), "state.safetensors", data, TORCH)
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize("size", [0, 2**22 + 1, 2**63, 2**64 - 1])
def test_a_header_that_is_empty_or_too_large_is_refused_before_the_file_is_read(size: int, tmp_path: Path):
    """The file is a hole of ten gigabytes."""
    (tmp_path / "agents" / "0").mkdir(parents=True)
    for name in ("state.safetensors", "statistics.safetensors"):
        path = tmp_path / "agents" / "0" / name
        path.write_bytes(size.to_bytes(8, "little"))
        os.truncate(path, 10 * 2**30)
    directory = RunDirectory(str(tmp_path))
    for read in (directory.digest, directory.statistics):
        with pytest.raises(AgentError, match=f"safetensors: .* its header has {size} bytes"):
            read(0)


def test_a_damaged_state_adds_no_line():
    header = json.dumps({"a": {"dtype": "F32\nscope 0: fine", "shape": [0], "data_offsets": [0, 0]}}).encode()
    with pytest.raises(AgentError, match="damaged") as caught:
        decode_state(len(header).to_bytes(8, "little") + header, load_framework("numpy"))
    assert "\n" not in str(caught.value)
