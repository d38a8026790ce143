"""Seeds of environments and agents, derived from the seed of a run.

Environment ``i``, by its index in the full batch, is seeded with ``seed + i``. The agent of scope ``k`` has the seed
``SeedSequence(seed, spawn_key=(1, k))`` and its own random stream, a `RandomStream`. The global generators and those of
the spaces of the agent hold this stream while the agent runs. Without a seed, none of this is used.
"""

from __future__ import annotations

import ctypes
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from numpy.random import MT19937, BitGenerator, SeedSequence
from numpy.random.mtrand import get_bit_generator, set_bit_generator

from workers.frameworks import Framework, RandomNumbers
from workers.generators import PythonStream, SpaceStreams, bit_generator_of, python_state, set_python_state

__all__ = ["GlobalStream", "RandomStream", "agent_seed", "skrl_key"]


def agent_seed(seed: int, index: int) -> int:
    """Return the seed of the agent of scope `index`, in ``[0, 2**32)``."""
    return int(SeedSequence(seed, spawn_key=(1, index)).generate_state(1)[0])


@contextmanager
def skrl_key(framework: str, key: int | None) -> Iterator[None]:
    """Set skrl's ``config.<framework>.key`` while skrl objects are built, if skrl has been imported.

    skrl's wrappers seed their environments with this key; its JAX and Warp agents seed their weights and noise. The
    default is 0, which would make slices of one batch identical. If `key` is None, nothing changes.
    """
    config = getattr(getattr(sys.modules.get("skrl"), "config", None), framework, None)
    if config is None or key is None:
        yield
        return
    previous = config.key
    config.key = key
    try:
        yield
    finally:
        config.key = previous


class RandomStream:
    """Random stream of one agent, held by the global generators inside ``with stream:``.

    Inside, the global generators of Python, of NumPy's legacy interface and of the framework, on every device, continue
    the agent's stream, and so do the generators of the spaces that it holds. On exit their previous states are
    restored. NumPy's legacy generator caches the second Gaussian of a pair for its next call: the user's is preserved,
    the agent's is not. Python's ``random.gauss`` does the same: both are preserved.
    """

    def __init__(self, seed: int, framework: Framework, *holders: Any) -> None:
        """Make the stream of a seed.

        Args:
            seed: Seed of the stream.
            framework: The framework.
            holders: Objects of the user that refer to spaces which the agent may sample: its factory, for example.
        """
        self._python = PythonStream(seed)
        self._bits: BitGenerator = MT19937(seed)
        self._framework = framework.random_stream(seed)
        self._spaces = SpaceStreams(seed)
        self._spaces.hold(*holders)
        self._lent: tuple[Any, dict[str, Any] | None] | None = None

    def hold_spaces(self, agent: Any) -> None:
        """Hold the generators of the spaces of an agent that was built inside; call it before leaving."""
        self._spaces.hold_built(agent)

    def __enter__(self) -> None:
        self._framework.swap()
        outer_bits = get_bit_generator()
        outer_numpy = _state_if_gaussian_cached(outer_bits)
        set_bit_generator(self._bits)
        self._python.swap()
        self._spaces.swap()
        self._lent = (outer_bits, outer_numpy)

    def __exit__(self, *_: object) -> None:
        assert self._lent is not None
        outer_bits, outer_numpy = self._lent
        self._spaces.swap()
        self._python.swap()
        self._framework.swap()
        self._bits = get_bit_generator()
        set_bit_generator(outer_bits)
        if outer_numpy is not None:
            np.random.set_state(outer_numpy)

    def state(self, agent: Any) -> dict[str, Any]:
        """Return the state outside of ``with stream:``, as plain data, with the generators of the agent's spaces."""
        return {
            "python": self._python.state(),
            "numpy": self._bits.state,
            "spaces": self._spaces.state(agent),
            **_state_of(self._framework),
        }

    def load(self, state: Mapping[str, Any], agent: Any) -> None:
        """Set a result of `state`.

        Raises:
            LookupError, TypeError, ValueError: It is something else, or the agent refers to other spaces.
        """
        self._spaces.load(state["spaces"], agent)
        self._python.load(state["python"])
        self._bits = bit_generator_of(state["numpy"])
        _load(self._framework, state)


class GlobalStream(nullcontext[None]):
    """The streams of an agent without a seed: those of the process, with the interface of `RandomStream`."""

    def __init__(self, framework: Framework) -> None:
        super().__init__()
        self._framework = framework.random_stream(None)

    def state(self, agent: Any) -> dict[str, Any]:
        """Return the state of the global generators, as plain data."""
        return {
            "python": python_state(random._inst),
            "numpy": np.random.get_state(legacy=False),
            **_state_of(self._framework),
        }

    def load(self, state: Mapping[str, Any], agent: Any) -> None:
        """Set a result of `state`.

        Raises:
            LookupError, TypeError, ValueError: It is something else.
        """
        numpy = state["numpy"]
        bits = bit_generator_of({name: numpy[name] for name in numpy if name not in _GAUSSIAN})
        set_bit_generator(bits)
        if type(bits) is MT19937:  # others have no cached Gaussian that can be set
            np.random.set_state(numpy)
        set_python_state(random._inst, state["python"])
        _load(self._framework, state)


def _state_of(numbers: RandomNumbers) -> dict[str, Any]:
    """Return the state of a framework's random numbers: that of the host's generator, and those of the devices'."""
    states = numbers.state()
    return {"framework": states[0] if states else None, "devices": states[1:]}


def _load(numbers: RandomNumbers, state: Mapping[str, Any]) -> None:
    host = state["framework"]
    numbers.load([] if host is None else [host, *state["devices"]])


_GAUSSIAN = ("has_gauss", "gauss")
_MT19937_BYTES = 4 * 624 + 4  # uint32 key[624]; int pos


def _state_if_gaussian_cached(bits: Any) -> dict[str, Any] | None:
    """Return the full state of NumPy's global generator if it holds a cached Gaussian, else None.

    ``set_bit_generator`` takes 0.2 µs but drops the cached Gaussian (the second of a pair, kept for the next call); the
    full state takes 30 µs. Drawing a Gaussian shows which is needed: a cached one uses no bits.
    """
    if type(bits) is not MT19937:
        state: dict[str, Any] = np.random.get_state(legacy=False)
        return state if state["has_gauss"] else None
    address = bits.ctypes.state_address
    before = ctypes.string_at(address, _MT19937_BYTES)
    gaussian = np.random.standard_normal()
    if ctypes.string_at(address, _MT19937_BYTES) == before:
        return {**np.random.get_state(legacy=False), "has_gauss": 1, "gauss": gaussian}
    ctypes.memmove(address, before, _MT19937_BYTES)
    return None
