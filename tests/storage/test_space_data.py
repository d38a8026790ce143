"""Spaces come back from JSON as they were; damage and unknown kinds are named."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple

from workers.errors import ConfigError
from workers.storage.space_data import from_data, to_data

SPACES = [
    Box(-np.inf, np.inf, (3,)),
    Box(np.array([[0.1, -np.inf]], np.float32), np.array([[0.3, 7.0]], np.float32)),
    Box(0, 255, (84, 84, 4), np.uint8),
    Box(-1.0, 1.0, (), np.float64),
    Box(0, 2**64 - 1, (2,), np.uint64),
    Discrete(3, start=-1),
    Discrete(2, dtype=np.int32),
    MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[0, 1], [2, 3]]), dtype="int32"),
    MultiBinary(4),
    MultiBinary((2, 3)),
    Tuple((Discrete(2), Dict({"z": Discrete(3), "a": Box(0, 1, (1,))}))),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_round_trip(space: Any):
    data = json.dumps(to_data({"observation_space": space, "state_space": None}))
    assert len(data) < 400
    back = from_data(json.loads(data))
    assert back == {"observation_space": space, "state_space": None}
    back = back["observation_space"]
    assert (back.dtype, back.shape) == (space.dtype, space.shape)
    space.seed(1)
    assert space.sample() in back
    if isinstance(space, Box):
        np.testing.assert_array_equal([back.low, back.high], [space.low, space.high])


def test_teams_and_the_order_of_members():
    members = Dict([("z", Discrete(2)), ("a", Discrete(3))])
    given = {"possible_agents": ["space", "Box"], "observation_spaces": {"space": members, "Box": Discrete(1)}}
    back = from_data(json.loads(json.dumps(to_data(given))))
    assert back == given
    assert list(back["observation_spaces"]["space"]) == list(members)


def test_other_kinds_are_named_when_they_are_needed():
    data = to_data({"action_space": Text(5)})
    with pytest.raises(ConfigError, match=r"the space Text\(1, 5.* is not of a kind that can be stored"):
        from_data(data)


@pytest.mark.parametrize(
    "data",
    [
        {"space": "Box", "low": 0, "high": 1, "shape": [-1], "dtype": "float32"},
        {"space": "Box", "low": [0, 1], "high": 1, "shape": [3], "dtype": "float32"},
        {"space": "Box", "low": 0, "high": 1, "shape": [3], "dtype": "object"},
        {"space": "Discrete", "n": 0, "start": 0, "dtype": "int64"},
        {"space": "Dict", "members": 3},
        {"space": "Tuple", "members": [{"space": "Box"}]},
    ],
)
def test_damaged_data(data: Any):
    with pytest.raises(ConfigError, match="the spaces are damaged"):
        from_data({"action_space": data})
