"""Python's generator as a part of an agent's stream, and environments that draw from global generators."""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable, Iterator
from random import gauss, getrandbits
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete
from gymnasium.utils import seeding
from numpy.random import PCG64
from numpy.random.mtrand import get_bit_generator, set_bit_generator

from workers import generators
from workers.frameworks import load_framework
from workers.generators import DrawWatch, PythonStream
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


@pytest.fixture(params=["memory", "getstate"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    assert generators._KNOWN_LAYOUT or sys.implementation.name != "cpython"
    monkeypatch.setattr(generators, "_KNOWN_LAYOUT", request.param == "memory")
    monkeypatch.setattr(generators, "_global_memory", generators._known_memory)  # not kept from the other way


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


class Subclass(random.Random):
    """Generator whose objects have a slot behind those of their base class."""

    __slots__ = ("note",)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("kind", ["Random", "subclass", "other class"])
def test_a_generator_that_replaces_pythons(kind: str, monkeypatch: pytest.MonkeyPatch):
    """As after ``importlib.reload(random)``."""
    stream, oracle = RandomStream(5, NUMPY), random.Random(9)
    users: Any = {"Random": random.Random, "subclass": Subclass, "other class": random.Random}[kind](9)
    if kind == "other class":
        users = SimpleNamespace(random=users.random, getstate=users.getstate, setstate=users.setstate)
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
    monkeypatch.setattr(
        generators, "_state_memory", lambda one: memoryview(bytearray(right(one)[4:]) + bytearray(right(one)[:4]))
    )
    assert not generators._has_known_layout()
    monkeypatch.undo()
    monkeypatch.setattr(generators, "_state_memory", lambda one: memoryview(bytearray(2500)))
    assert not generators._has_known_layout()
    monkeypatch.undo()
    monkeypatch.setattr(sys, "implementation", SimpleNamespace(name="pypy"))
    assert not generators._has_known_layout()


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
    assert f"the environments draw from {name}, which" in record.message


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
