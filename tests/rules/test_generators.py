"""Python's generator, the generators of spaces, and environments that draw from global generators."""

from __future__ import annotations

import logging
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from random import gauss, getrandbits
from types import MappingProxyType, SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, OneOf, Sequence, Space, Text, Tuple
from gymnasium.utils import seeding
from numpy.random import PCG64
from numpy.random.mtrand import get_bit_generator, set_bit_generator

from workers import generators
from workers.frameworks import load_framework
from workers.generators import DrawWatch, PythonStream, find_spaces
from workers.seeding import RandomStream

TORCH, NUMPY = load_framework("torch"), load_framework("numpy")


@pytest.fixture(autouse=True)
def _global_generators() -> Iterator[None]:
    """Restore all global generators for the other tests."""
    python, tensor, bits, state = random.getstate(), torch.get_rng_state(), get_bit_generator(), np.random.get_state()
    yield
    random.setstate(python)
    torch.set_rng_state(tensor)
    set_bit_generator(bits)
    np.random.set_state(state)
    assert seeding.np_random.__module__ == "gymnasium.utils.seeding"


@pytest.fixture(params=["memory", "getstate"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    assert generators._KNOWN_LAYOUT or sys.implementation.name != "cpython"
    monkeypatch.setattr(generators, "_KNOWN_LAYOUT", request.param == "memory")


def draws() -> None:
    getrandbits(32 * 700)
    gauss()


def reseeds() -> None:
    random.seed(3)
    random.gauss()


def sets_a_state() -> None:
    random.setstate(random.Random(8).getstate())


def raises() -> None:
    draws()
    raise KeyError("body")


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("body", [draws, reseeds, sets_a_state, raises])
@pytest.mark.parametrize("gaussians", [0, 1, 2])  # one leaves the second of the pair in the cache
def test_pythons_generator_is_given_back_exactly(gaussians: int, body: Callable[[], None]):
    stream, oracle = RandomStream(5, NUMPY), random.Random(7)
    random.seed(7)
    for generator in (random, oracle):
        for _ in range(gaussians):
            generator.gauss()
    for _ in range(2):
        try:
            with stream:
                body()
        except KeyError:
            assert body is raises
        assert random.getstate() == oracle.getstate()
        assert [gauss(), random.random(), getrandbits(99)] == [
            oracle.gauss(),
            oracle.random(),
            oracle.getrandbits(99),
        ]


@pytest.mark.usefixtures("_way")
def test_the_agents_stream_is_that_of_its_seed_and_goes_on_where_it_stopped():
    streams = {seed: RandomStream(seed, NUMPY) for seed in (5, 6)}
    oracles = {seed: random.Random(seed) for seed in streams}
    for seed in (5, 6, 6, 5, 5, 6):
        with streams[seed]:
            given = [gauss(), *(random.randrange(1000) for _ in range(400)), random.sample(range(50), 5)]
        random.random()  # the user's
        random.gauss()
        oracle = oracles[seed]
        assert given == [
            oracle.gauss(),
            *(oracle.randrange(1000) for _ in range(400)),
            oracle.sample(range(50), 5),
        ]


@pytest.mark.usefixtures("_way")
def test_what_the_agent_seeds_stays_the_agents():
    stream, oracle = RandomStream(5, NUMPY), random.Random(3)
    with stream:
        random.seed(3)
    random.seed(4)
    with stream:
        assert random.random() == oracle.random()
    assert random.random() == random.Random(4).random()


@pytest.mark.usefixtures("_way")
def test_a_generator_that_replaces_pythons(monkeypatch: pytest.MonkeyPatch):
    """As after ``importlib.reload(random)``."""
    stream, users, oracle = RandomStream(5, NUMPY), random.Random(9), random.Random(9)
    with stream:
        first = random.random()
    monkeypatch.setattr(random, "_inst", users)
    monkeypatch.setattr(random, "random", users.random)
    with stream:
        second = random.random()
    expected = random.Random(5)
    assert [first, second] == [expected.random(), expected.random()]
    assert random.random() == oracle.random()


def test_another_layout_is_noticed(monkeypatch: pytest.MonkeyPatch):
    right = generators._state_memory
    assert generators._has_known_layout()
    monkeypatch.setattr(generators, "_STATE_BYTES", 10_000)  # larger than the object: its memory must not be read
    monkeypatch.setattr(generators, "_state_memory", None)
    assert not generators._has_known_layout()
    monkeypatch.undo()
    # the index behind the words
    monkeypatch.setattr(generators, "_state_memory", lambda one: right(one)[4:].tobytes() + right(one)[:4].tobytes())
    with pytest.raises(AttributeError):  # bytes have no tobytes()
        generators._has_known_layout()
    monkeypatch.undo()
    monkeypatch.setattr(generators, "_state_memory", lambda one: memoryview(bytearray(2500)))
    assert not generators._has_known_layout()
    monkeypatch.undo()
    monkeypatch.setattr(sys, "implementation", SimpleNamespace(name="pypy"))
    assert not generators._has_known_layout()


@dataclass(slots=True)
class Slotted:
    space: Any


class Holding:
    """An object with one attribute, and others that must not be looked at."""

    def __init__(self, held: Any) -> None:
        self.held = held

    @property
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


def test_environments_and_modules_are_not_entered():
    env = gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="sync")
    agent = SimpleNamespace(env=env, single=gymnasium.make("CartPole-v1"), module=sys.modules[__name__])
    assert find_spaces([agent]) == []
    assert env.single_action_space in find_spaces([env])
    env.close()


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


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (random.random, "Python's random"),
        (random.gauss, "Python's random"),
        (np.random.random_sample, "NumPy's np.random"),
        (np.random.standard_normal, "NumPy's np.random"),
        (lambda: np.random.seed(3), "NumPy's np.random"),
        (lambda: set_bit_generator(PCG64(1)), "NumPy's np.random"),
        (lambda: torch.rand(1), "torch's global generator"),
    ],
)
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("bits", [None, PCG64])
def test_a_draw_from_a_global_generator_is_noticed(
    draw: Any, name: str, cached: bool, bits: Any, caplog: pytest.LogCaptureFixture
):
    if bits is not None:
        set_bit_generator(bits(2))
    random.seed(1)
    if cached:
        random.gauss()
        np.random.standard_normal()
    watch = DrawWatch(TORCH)
    watch.start()
    assert watch.stop() is watch
    watch.start()
    draw()
    assert watch.stop() is None
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("lockstep", logging.WARNING)
    assert f"the environments draw from {name}. " in record.message


def test_a_watch_ends_by_itself_and_notices_no_other_generator(caplog: pytest.LogCaptureFixture):
    watch: DrawWatch | None = DrawWatch(TORCH)
    own, stream, calls = np.random.default_rng(1), PythonStream(3), 0
    while watch is not None:
        watch.start()
        own.random()
        seeding.np_random()
        Discrete(3).sample()
        np.random.default_rng().random()
        watch = watch.stop()
        stream.swap()  # an agent's
        random.random()
        stream.swap()
        calls += 1
    assert calls == 33
    assert caplog.records == []
