"""Random numbers of agents on GPUs, with generators that only take notes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.parity import assert_same
from workers.frameworks import load_framework
from workers.seeding import GlobalStream, RandomStream

TORCH = load_framework("torch")


class State:
    """The state of a GPU's generator, which graphs refer to."""

    def __init__(self, seed: int) -> None:
        self.seed, self.offset = seed, 0


class Generator:
    """A GPU's generator: `draw` returns its seed and the number of draws."""

    def __init__(self, device: torch.device, state: State | None = None) -> None:
        self.device, self.state = device, state or State(0)

    def manual_seed(self, seed: int) -> Generator:
        self.state.seed, self.state.offset = seed, 0
        return self

    def graphsafe_get_state(self) -> Generator:
        return Generator(self.device, self.state)

    def graphsafe_set_state(self, other: Generator) -> None:
        self.state = other.state

    def get_state(self) -> torch.Tensor:
        return torch.tensor([self.state.seed, self.state.offset], dtype=torch.int64).view(torch.uint8)

    def set_state(self, state: torch.Tensor) -> None:
        self.state.seed, self.state.offset = state.view(torch.int64).tolist()

    def draw(self) -> tuple[int, int]:
        self.state.offset += 1
        return self.state.seed, self.state.offset


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[Generator]:
    """The default generators of two GPUs, seeded with 77 and 78."""
    defaults = [Generator(torch.device("cuda", index), State(77 + index)) for index in range(2)]
    host = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device=None: host() if device is None else Generator(device))
    monkeypatch.setattr(torch.cuda, "default_generators", tuple(defaults))
    return defaults


def draw(stream: Any, gpus: list[Generator]) -> list[tuple[int, int]]:
    with stream:
        return [gpu.draw() for gpu in gpus]


def test_an_agent_has_its_own_numbers_on_every_gpu(gpus):
    five, six = RandomStream(5, TORCH), RandomStream(6, TORCH)
    assert [gpu.draw() for gpu in gpus] == [(77, 1), (78, 1)]
    assert draw(five, gpus) == [(5, 1), (5, 1)]
    assert draw(six, gpus) == [(6, 1), (6, 1)]
    assert draw(five, gpus) == [(5, 2), (5, 2)]
    assert [gpu.draw() for gpu in gpus] == [(77, 2), (78, 2)]  # the user's


def test_a_graph_goes_on_with_the_numbers_of_its_agent(gpus):
    """A captured graph refers to the state in the generator at that time: it must stay the agent's."""
    five, six = RandomStream(5, TORCH), RandomStream(6, TORCH)
    with five:
        captured = gpus[0].state
    kept = five.state(None)
    draw(six, gpus)
    for _ in range(2):
        with five:
            assert gpus[0].state is captured
            gpus[0].draw()
    assert captured.offset == 2
    five.load(kept, None)
    with five:
        assert gpus[0].state is captured
        assert gpus[0].draw() == (5, 1)


@pytest.mark.parametrize("number", [0, 1, 3])
def test_numbers_carry_over_to_other_gpus(gpus, monkeypatch, number):
    five = RandomStream(5, TORCH)
    draw(five, gpus)
    kept = five.state(None)
    others = tuple(Generator(torch.device("cuda", index), State(9)) for index in range(number))
    monkeypatch.setattr(torch.cuda, "default_generators", others)
    seven = RandomStream(7, TORCH)
    seven.load(kept, None)
    assert draw(seven, list(others)) == [(5, 2), (5, 2), (7, 1)][:number]
    assert_same(seven.state(None)["framework"], kept["framework"])


class Cuda:
    """CUDA that has not started: calls wait until it does, first those of `_lazy_call`, and then the user's seed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gpus: list[Generator]) -> None:
        self.monkeypatch, self.gpus = monkeypatch, gpus
        self.calls: list[Any] = []
        monkeypatch.setattr(torch.cuda, "default_generators", ())
        monkeypatch.setattr(torch.cuda, "_is_compiled", lambda: True)
        monkeypatch.setattr(torch.cuda, "_queued_calls", self.calls)
        monkeypatch.setattr(torch.cuda, "_lazy_call", lambda call: self.calls.append((call, [])))

    def start(self) -> None:
        self.monkeypatch.setattr(torch.cuda, "default_generators", tuple(self.gpus))
        self.calls += [(lambda: [gpu.manual_seed(88) for gpu in self.gpus], [])]
        for call, _ in self.calls:
            call()


def test_an_agent_that_starts_cuda_has_its_numbers_from_then_on(gpus, monkeypatch):
    cuda = Cuda(monkeypatch, gpus)
    five, six, gone = (RandomStream(seed, TORCH) for seed in (5, 6, 7))
    del gone
    with six:
        pass
    with five:
        cuda.start()
        assert [gpu.draw() for gpu in gpus] == [(5, 1), (5, 1)]
    assert [gpu.draw() for gpu in gpus] == [(88, 1), (88, 1)]
    assert draw(six, gpus) == [(6, 1), (6, 1)]
    assert draw(five, gpus) == [(5, 2), (5, 2)]
    assert [gpu.draw() for gpu in gpus] == [(88, 2), (88, 2)]


def test_states_of_gpus_that_are_used_only_later(gpus, monkeypatch):
    used = RandomStream(5, TORCH)
    draw(used, gpus)
    cuda = Cuda(monkeypatch, gpus)
    five = RandomStream(5, TORCH)
    unused = five.state(None)
    assert unused["devices"] == []
    five.load(used.state(None), None)
    assert_same(five.state(None)["devices"], used.state(None)["devices"])
    cuda.start()
    assert draw(five, gpus) == [(5, 2), (5, 2)]
    five.load(unused, None)
    assert draw(five, gpus) == [(5, 1), (5, 1)]


def test_numbers_of_an_agent_without_a_seed(gpus):
    stream = GlobalStream(TORCH)
    kept = stream.state(None)
    first = draw(stream, gpus)
    stream.load(kept, None)
    assert draw(stream, gpus) == first == [(77, 1), (78, 1)]
