"""Random streams of agents affect neither each other nor the user's generators."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import MT19937, PCG64, Philox, RandomState, SeedSequence
from numpy.random.mtrand import get_bit_generator, set_bit_generator

from workers.frameworks import load_framework
from workers.seeding import RandomStream, agent_seed, skrl_key

TORCH, NUMPY = load_framework("torch"), load_framework("numpy")


@pytest.fixture(autouse=True)
def _global_generators() -> Iterator[None]:
    """Restore the global generators for the other tests."""
    tensor, bits, state, python = torch.get_rng_state(), get_bit_generator(), np.random.get_state(), random.getstate()
    yield
    random.setstate(python)
    torch.set_rng_state(tensor)
    set_bit_generator(bits)
    np.random.set_state(state)


def draw(count: int = 1) -> list[float]:
    """Draw from torch, NumPy and Python in turn: the numbers show the state of all, including odd Gaussians."""
    return [
        number
        for _ in range(count)
        for number in (float(torch.randn(())), float(np.random.random_sample()), random.gauss())
    ]


def draws_many() -> None:
    torch.randn(1000)
    np.random.standard_normal(999)


def reseeds() -> None:
    np.random.seed(3)
    torch.manual_seed(3)
    draws_many()


def sets_a_cached_gaussian() -> None:
    np.random.set_state(("MT19937", np.arange(624, dtype=np.uint32), 5, 1, 0.25))


def replaces_the_generator() -> None:
    set_bit_generator(PCG64(9))
    np.random.standard_normal()


def raises() -> None:
    draws_many()
    raise KeyError("body")


@pytest.mark.parametrize("body", [draws_many, reseeds, sets_a_cached_gaussian, replaces_the_generator, raises])
@pytest.mark.parametrize("gaussians", [0, 1, 2])  # one leaves the second of the pair in NumPy's cache
@pytest.mark.parametrize("bits", [MT19937, PCG64, Philox])
def test_global_generators_are_given_back_exactly(bits: Any, gaussians: int, body: Callable[[], None]):
    def after(interrupt: Callable[[], None]) -> Any:
        torch.manual_seed(7)
        user = bits(7)
        set_bit_generator(user)
        np.random.standard_normal(gaussians)
        interrupt()
        assert get_bit_generator() is user
        state: Any = np.random.get_state(legacy=False)
        drawn = torch.randn(3).tolist(), np.random.standard_normal(5).tolist(), np.random.bytes(3000)
        return state["has_gauss"], state["gauss"], drawn

    stream = RandomStream(1, TORCH)

    def run_in_stream() -> None:
        for _ in range(2):
            try:
                with stream:
                    body()
            except KeyError:
                assert body is raises

    expected = after(lambda: None)
    assert expected[0] == gaussians % 2
    assert after(run_in_stream) == expected


@given(position=st.integers(0, 1300), gaussians=st.integers(0, 3))
@settings(deadline=None, max_examples=50)
def test_given_back_at_every_position(position: int, gaussians: int):
    # the cached Gaussian is found by drawing, which generates a new block at the end of the last one
    oracle = RandomState(MT19937(11))
    set_bit_generator(MT19937(11))
    for generator in (oracle, np.random):
        generator.bytes(4 * position)
        generator.standard_normal(gaussians)
    with RandomStream(1, NUMPY):
        draws_many()
    assert np.random.standard_normal(3).tolist() == oracle.standard_normal(3).tolist()
    assert np.random.bytes(5000) == oracle.bytes(5000)


def test_a_stream_is_that_of_its_seed_and_goes_on_where_it_stopped():
    stream = RandomStream(5, TORCH)
    drawn = []
    for _ in range(4):
        with stream:
            drawn += draw(3)
        draw(2)  # the user's
    torch_alone, numpy_alone, python_alone = torch.Generator().manual_seed(5), RandomState(MT19937(5)), random.Random(5)
    expected = [
        number
        for _ in range(12)
        for number in (
            float(torch.randn((), generator=torch_alone)),
            numpy_alone.random_sample(),
            python_alone.gauss(),
        )
    ]
    assert drawn == expected


@pytest.mark.parametrize("gaussians", [0, 1])
def test_the_users_cached_gaussian_does_not_reach_the_agent(gaussians: int):
    np.random.seed(0)
    np.random.standard_normal(gaussians)
    with RandomStream(5, TORCH):
        assert np.random.standard_normal() == RandomState(MT19937(5)).standard_normal()


def test_a_stream_goes_on_after_an_exception():
    plain, broken = RandomStream(5, TORCH), RandomStream(5, TORCH)
    with plain:
        expected = draw(4)
    with pytest.raises(KeyError) as caught, broken:
        raise KeyError(*draw(1))
    with broken:
        assert [*caught.value.args, *draw(3)] == expected


def test_a_generator_that_the_agent_puts_in_stays_the_agents():
    stream, oracle = RandomStream(5, TORCH), RandomState(PCG64(9))
    with stream:
        replaces_the_generator()
    oracle.standard_normal()
    with stream:
        assert np.random.random_sample() == oracle.random_sample()


def test_neighbours_do_not_change_each_others_numbers():
    def numbers(order: list[int]) -> dict[int, list[float]]:
        streams = {seed: RandomStream(seed, TORCH) for seed in (1, 2, 3)}
        drawn: dict[int, list[float]] = {seed: [] for seed in streams}
        for seed in order:
            with streams[seed]:
                drawn[seed] += draw(1)
                if seed == 2:
                    np.random.standard_normal(2)
        return drawn

    alone = {seed: numbers([seed] * 3)[seed] for seed in (1, 2, 3)}
    assert numbers([1, 2, 3] * 3) == numbers([3, 3, 1, 2, 2, 1, 3, 1, 2]) == alone
    assert len({number for numbers in alone.values() for number in numbers}) == 27  # no two streams share a number


def test_agent_seed():
    assert agent_seed(0, 0) == SeedSequence(0, spawn_key=(1, 0)).generate_state(1)[0]
    assert len({agent_seed(seed, index) for seed in range(20) for index in range(20)}) == 400
    with pytest.raises(ValueError, match="non-negative"):
        agent_seed(-1, 0)


def test_skrl_key():
    import skrl

    before = skrl.config.torch.key
    with skrl_key("torch", before + 17):
        assert skrl.config.torch.key == before + 17
    assert skrl.config.torch.key == before
    with pytest.raises(KeyError), skrl_key("torch", before + 18):
        raise KeyError
    assert skrl.config.torch.key == before


def test_skrl_key_of_its_framework_only(monkeypatch: pytest.MonkeyPatch):
    config = SimpleNamespace(torch=SimpleNamespace(key=1), jax=SimpleNamespace(key=2))
    monkeypatch.setitem(sys.modules, "skrl", SimpleNamespace(config=config))
    with skrl_key("jax", 9):
        assert (config.torch.key, config.jax.key) == (1, 9)
    for framework, key in (("torch", None), ("numpy", 9)):
        with skrl_key(framework, key):
            assert (config.torch.key, config.jax.key) == (1, 2)
    assert (config.torch.key, config.jax.key) == (1, 2)


def test_skrl_key_does_not_import_skrl(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "skrl", raising=False)
    with skrl_key("torch", 9):
        assert "skrl" not in sys.modules
    assert "skrl" not in sys.modules
