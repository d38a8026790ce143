"""The generators of spaces as a part of an agent's stream."""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, OneOf, Sequence, Space, Text, Tuple
from gymnasium.utils import seeding

from workers import generators
from workers.frameworks import load_framework
from workers.generators import find_spaces
from workers.seeding import RandomStream

NUMPY = load_framework("numpy")
NP_RANDOM = seeding.np_random


@pytest.fixture(autouse=True)
def _gymnasiums_function() -> Iterator[None]:
    yield
    assert seeding.np_random is NP_RANDOM


@dataclass(slots=True)
class Slotted:
    space: Any


class Holding:
    """An object with one attribute, and others that must not be looked at."""

    def __init__(self, held: Any) -> None:
        self.held = held

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # isinstance looks at it
        raise AssertionError("the search ran a property")

    @property
    def space(self) -> Any:
        raise AssertionError("the search ran a property")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the search asked for {name!r}")

    def __len__(self) -> int:
        raise AssertionError("the search ran a method")

    __iter__ = __hash__ = __bool__ = __eq__ = __len__  # type: ignore[assignment]


def class_attribute(space: Any) -> Any:
    return type("Agent", (type("Base", (), {"action_space": space}),), {})()


def local_function(space: Any) -> Any:
    return lambda scope: space


HOLDERS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda space: space,
    "attribute": Holding,
    "attribute of an attribute": lambda space: Holding(Holding(space)),
    "slot": Slotted,
    "class": class_attribute,
    "dict": lambda space: {"models": {"policy": space}},
    "read-only dict": lambda space: MappingProxyType({"a": space}),
    "others": lambda space: [(space,), deque([space]), OrderedDict(a=space), {1: [space]}],
    "closure": local_function,
    "default": lambda space: eval("lambda scope, space=space: 0", {"space": space}),
    "partial": lambda space: partial(dict, action_space=space),
    "bound method": lambda space: Holding(space.sample),
    "torch's modules": lambda space: torch.nn.ModuleDict({"policy": _module(space)}),
    "a circle": lambda space: _circle(space),
}


def _module(space: Any) -> Any:
    module = torch.nn.Linear(1, 1)
    module.action_space = space
    return module


def _circle(space: Any) -> Any:
    one, other = Holding(None), Holding(space)
    one.held, other.held = other, [one, space]
    return one


@pytest.mark.parametrize("holder", HOLDERS)
def test_spaces_are_found(holder: str):
    space = Discrete(3)
    found = find_spaces([HOLDERS[holder](space)])
    assert [id(one) for one in found] == [id(space)]


def nested_spaces() -> list[Space[Any]]:
    """One space of every kind, with members of every kind."""
    return [
        Box(-1, 1, (2,)),
        Discrete(1000),
        MultiDiscrete([50, 60]),
        MultiBinary(20),
        Text(20),
        Dict({"a": Discrete(1000), "b": Tuple([Box(0, 1), Dict(c=MultiBinary(9))])}),
        Sequence(Box(0, 1)),
        Graph(Box(0, 1), Discrete(9)),
        OneOf([Discrete(1000), Box(0, 1)]),
    ]


def test_members_of_spaces_are_found():
    boxes = [Box(0, 1, (width,)) for width in range(8)]
    members = {"a": Tuple([boxes[0], Dict(b=boxes[1])]), "c": Sequence(boxes[2]), "d": Graph(boxes[3], Discrete(9))}
    space = Dict(members, e=OneOf([boxes[4], boxes[5]]))
    found = {id(one) for one in find_spaces([SimpleNamespace(space=space)])}
    assert found >= {id(one) for one in (space, *space.spaces.values(), *boxes[:6])}
    assert not found & {id(one) for one in boxes[6:]}


def test_modules_and_the_copies_of_environments_are_not_entered():
    vector = gymnasium.make_vec("CartPole-v1", 3, vectorization_mode="sync")
    single = gymnasium.make("Pendulum-v1")
    assert isinstance(vector, gymnasium.vector.SyncVectorEnv)
    wrapped = gymnasium.wrappers.vector.RecordEpisodeStatistics(vector)
    found = {id(space) for space in find_spaces([SimpleNamespace(env=wrapped, single=single, module=sys)])}
    own = [vector.single_action_space, vector.action_space, single.action_space, single.observation_space]
    assert found >= {id(space) for space in own}
    assert not found & {id(env.action_space) for env in vector.envs[1:]}
    assert find_spaces([SimpleNamespace(module=sys.modules[__name__])]) == []
    vector.close()


def test_an_agent_that_looks_like_an_environment_is_entered():
    methods = dict.fromkeys(("reset", "step", "render", "close"))
    agent, slots = type("Agent", (), methods)(), type("Slots", (), {**methods, "__slots__": ()})()
    agent.spaces, space = {"a": [Discrete(3)]}, Discrete(4)
    assert find_spaces([agent, slots]) == agent.spaces["a"]
    assert find_spaces([[agent, slots], space]) == [space]


def test_the_search_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(generators, "_MOST_OBJECTS", 500)
    monkeypatch.setattr(generators, "_MOST_REFERENTS", 20)
    space = Discrete(3)

    def chain(length: int) -> Any:
        return [chain(length - 1)] if length else [space]

    assert find_spaces([[[number] for number in range(10_000)], [space]]) == [space]
    assert find_spaces([[[[]] * 19 for _ in range(10_000)], chain(9)]) == [space]
    assert (find_spaces([chain(400)]), find_spaces([chain(600)])) == ([space], [])


def sampled(space: Space[Any], count: int = 4) -> str:
    return repr([space.sample() for _ in range(count)])


@pytest.mark.parametrize("number", range(len(nested_spaces())))
def test_a_space_samples_the_agents_numbers_inside_and_the_users_outside(number: int):
    space, alone, oracle = (nested_spaces()[number] for _ in range(3))
    one, other, single = (RandomStream(seed, NUMPY, held) for seed, held in ((5, [space]), (6, space), (5, alone)))
    space.seed(1)
    oracle.seed(1)
    given: dict[RandomStream, list[str]] = {one: [], other: []}
    for stream in (one, other, other, one):
        with stream:
            given[stream].append(sampled(space))
        assert sampled(space) == sampled(oracle)
    with single:
        expected = [sampled(alone)]
    with single:
        expected.append(sampled(alone))
    assert given[one] == expected
    assert len({*given[one], *given[other]}) == 4


def test_the_users_generator_comes_back_as_the_same_object():
    never, sampled_once, given = Discrete(9), Discrete(9), Discrete(9, seed=np.random.default_rng(3))
    sampled_once.sample()
    spaces = [never, sampled_once, given]
    before = [space._np_random for space in spaces]
    stream = RandomStream(5, NUMPY, spaces)
    with pytest.raises(KeyError), stream:  # noqa: PT012
        assert [space._np_random for space in spaces] == [None] * 3
        sampled(Tuple(spaces))
        raise KeyError
    assert all(space._np_random is generator for space, generator in zip(spaces, before, strict=True))
    assert before[0] is None


def test_seeds_last_on_their_side():
    space = Dict(a=Discrete(1000), b=Box(0, 1))
    stream = RandomStream(5, NUMPY, space)
    users, agents = Dict(a=Discrete(1000), b=Box(0, 1)), Dict(a=Discrete(1000), b=Box(0, 1))
    users.seed(1)
    agents.seed(2)
    space.seed(1)
    with stream:
        space.seed(2)
    assert sampled(space) == sampled(users)
    with stream:
        assert sampled(space) == sampled(agents)
    users.seed(3)
    space.seed(3)
    with stream:
        assert sampled(space) == sampled(agents)
    assert sampled(space) == sampled(users)


def test_spaces_that_the_agent_makes_sample_its_numbers():
    def numbers(seed: int) -> list[str]:
        stream = RandomStream(seed, NUMPY)
        with stream:
            built, seeded = SimpleNamespace(space=Discrete(10**6)), SimpleNamespace(space=Discrete(10**6, seed=4))
            drawn = [sampled(built.space), sampled(seeded.space)]
            stream.hold_spaces([built, seeded])
        assert built.space._np_random is seeded.space._np_random is None
        sampled(built.space)  # the user's
        with stream:
            later = Discrete(10**6)
            drawn += [sampled(built.space), sampled(seeded.space), sampled(later)]
        return drawn

    first = numbers(5)
    assert first == numbers(5)
    assert len({*first, *numbers(6)}) == 8  # the agent's own seed gives the same numbers in both
    oracle = Discrete(10**6, seed=4)
    assert [first[1], first[3]] == [sampled(oracle), sampled(oracle)]


def test_the_users_space_that_a_factory_brings_in_stays_the_users():
    space, oracle, drawn = Discrete(10**6, seed=4), Discrete(10**6, seed=4), []
    for seed in (5, 6):
        stream = RandomStream(seed, NUMPY)
        with stream:
            stream.hold_spaces(SimpleNamespace(space=space))
            drawn.append(sampled(space))
        with stream:
            drawn.append(sampled(space))
    assert sampled(space) == sampled(oracle)
    oracle = Discrete(10**6, seed=4)
    assert len({*drawn, sampled(oracle), sampled(oracle)}) == 6


def test_a_module_that_an_agent_imports_may_keep_the_function():
    streams = [RandomStream(seed, NUMPY) for seed in (5, 6, 5)]
    with streams[0]:
        kept = seeding.np_random
    drawn = []
    for stream in streams:
        with stream:
            drawn.append(kept()[0].random())
    assert drawn[0] == drawn[2] != drawn[1]
    assert kept()[0].random() != kept()[0].random()
    assert kept(3)[0].random() == seeding.np_random(3)[0].random()
