"""The global random generators of a process, and the generators of Gymnasium's spaces.

`PythonStream` and `SpaceStreams` are parts of an agent's `workers.seeding.RandomStream`. `DrawWatch` notices
environments that draw from a global generator.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import random
import struct
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache
from types import FrameType, FunctionType, ModuleType
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.utils import seeding
from numpy.random import SeedSequence

from workers.frameworks import Framework

__all__ = ["DrawWatch", "PythonStream", "SpaceStreams", "find_spaces"]

_logger = logging.getLogger("lockstep")

_STATE_BYTES = 4 * 625
"""Size of the state of Python's generator: its index and 624 words."""


def _state_memory(generator: random.Random) -> memoryview:
    """Return the memory of a generator's state, which CPython puts right behind the head of the object."""
    address = id(generator) + object.__basicsize__
    return memoryview((ctypes.c_char * _STATE_BYTES).from_address(address)).cast("B")


def _has_known_layout() -> bool:
    """Return whether the state of Python's generator lies where `_state_memory` looks for it."""
    if sys.implementation.name != "cpython" or random.Random.__basicsize__ < object.__basicsize__ + _STATE_BYTES:
        return False
    one, other = random.Random(1), random.Random(2)
    *words, index = one.getstate()[1]
    if _state_memory(one).tobytes() != struct.pack("=625I", index, *words):
        return False
    _state_memory(one)[:] = _state_memory(other)
    return one.getstate() == other.getstate()


_KNOWN_LAYOUT = _has_known_layout()
_global_memory = lru_cache(maxsize=1)(_state_memory)


class PythonStream:
    """A stream of Python's ``random``, which continues it between two calls of `swap`.

    The functions of ``random`` are bound methods of one hidden generator and may have been imported by name, so the
    state of this generator changes, not the generator. Copying its memory takes 0.1 µs; ``getstate`` and ``setstate``,
    which are used where the layout of the memory is unknown, take 9 µs.
    """

    def __init__(self, seed: int) -> None:
        self._generator = random.Random(seed)
        self._memory = _state_memory(self._generator) if _KNOWN_LAYOUT else None

    def swap(self) -> None:
        """Swap the state of this stream with that of ``random``, including the Gaussian that ``gauss`` caches."""
        mine, theirs, memory = self._generator, random._inst, self._memory
        if memory is None:
            state = mine.getstate()
            mine.setstate(theirs.getstate())
            theirs.setstate(state)
            return
        global_memory = _global_memory(theirs)
        before = memory.tobytes()
        memory[:] = global_memory
        global_memory[:] = before
        mine.gauss_next, theirs.gauss_next = theirs.gauss_next, mine.gauss_next


class _NpRandom:
    """Gymnasium's ``seeding.np_random`` while an agent runs: a generator without a given seed gets one of the agent.

    Attributes:
        streams: The streams of the agent that runs; None if none does.
    """

    streams: SpaceStreams | None = None
    original = staticmethod(seeding.np_random)

    def __call__(self, seed: int | None = None) -> tuple[np.random.Generator, int]:
        return self.original(seed) if self.streams is None else self.streams.make(seed)


_np_random = _NpRandom()  # one for all agents: a module that is imported while an agent runs may keep it


class SpaceStreams:
    """An agent's own generators of Gymnasium's spaces, which the spaces have between two calls of `swap`.

    A space makes its generator when it is first sampled. Between two calls of `swap`, this generator gets a seed of the
    agent in place of fresh entropy, also in a space that the agent makes there.
    """

    def __init__(self, seed: int) -> None:
        self._seeds = SeedSequence(seed)
        self._spaces: dict[int, Space[Any]] = {}
        self._generators: list[tuple[dict[str, Any], list[Any]]] = []  # attributes of a space, and its other generator
        self._streams: SpaceStreams | None = self
        self._np_random: Any = _np_random
        self._made: list[Any] | None = []

    def hold(self, *holders: Any) -> None:
        """Find the spaces that the user's objects refer to; their generators are the user's, the agent has none yet."""
        for attributes in self._found(holders):
            self._generators.append((attributes, [None]))

    def hold_built(self, agent: Any) -> None:
        """Find the spaces of an agent that was built since the last call of `swap`.

        Generators that Gymnasium made in this time are the agent's, others the user's.
        """
        made, self._made = {id(generator) for generator in self._made or ()}, None
        for attributes in self._found([agent]):
            users = None
            if id(attributes["_np_random"]) not in made:
                users, attributes["_np_random"] = attributes["_np_random"], None
            self._generators.append((attributes, [users]))

    def _found(self, holders: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """Yield the attributes of spaces that were not found before."""
        for space in find_spaces(holders):
            if id(space) not in self._spaces and "_np_random" in vars(space):
                self._spaces[id(space)] = space
                yield vars(space)

    def swap(self) -> None:
        """Swap the agent's generators with those that the spaces have."""
        for attributes, other in self._generators:
            attributes["_np_random"], other[0] = other[0], attributes["_np_random"]
        _np_random.streams, self._streams = self._streams, _np_random.streams
        seeding.np_random, self._np_random = self._np_random, seeding.np_random

    def make(self, seed: int | None) -> tuple[np.random.Generator, int]:
        """Make a generator like Gymnasium, with a seed of the agent if none is given."""
        if seed is None:
            seed = int(self._seeds.spawn(1)[0].generate_state(1, np.uint64)[0])
        made = _NpRandom.original(seed)
        if self._made is not None:
            self._made.append(made[0])
        return made


_MOST_OBJECTS = 50_000
_MOST_REFERENTS = 1_000


def find_spaces(holders: Iterable[Any]) -> list[Space[Any]]:
    """Return the spaces that objects refer to, directly or through other objects, nearest first.

    References are followed as the garbage collector does, which runs no code of the objects: attributes, slots, class
    attributes, items of containers, closures, arguments of partials, objects of bound methods. Modules, the globals of
    functions, and environments are not entered, but a holder always is. The search ends after 50,000 objects, and
    follows the first 1,000 references of each.
    """
    found: list[Space[Any]] = []
    seen: set[int] = set()
    queue = deque(holders)
    while queue and len(seen) < _MOST_OBJECTS:
        value = queue.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if issubclass(type(value), Space):
            found.append(value)
        queue.extend(part for part in _referents(value)[:_MOST_REFERENTS] if _is_entered(part))
    return found


def _is_entered(value: Any) -> bool:
    kind = type(value)
    if not gc.is_tracked(value) or issubclass(kind, (ModuleType, FrameType)):
        return False
    return not all(any(name in vars(base) for base in kind.__mro__) for name in ("reset", "step", "render", "close"))


def _referents(value: Any) -> list[Any]:
    kind = type(value)
    if issubclass(kind, FunctionType):
        return [value.__closure__, value.__defaults__, value.__kwdefaults__]
    if issubclass(kind, type):
        return [*value.__bases__, *(part for part in vars(value).values() if not hasattr(type(part), "__get__"))]
    return gc.get_referents(value)


_WATCHED_CALLS = 33
"""The first reset and 32 steps."""


class DrawWatch:
    """Notices whether environments draw from a global generator, and logs it once.

    Only draws in this process are seen: not those of copies that Gymnasium's ``AsyncVectorEnv`` steps in others.
    """

    def __init__(self, framework: Framework) -> None:
        self._framework = framework
        self._calls = _WATCHED_CALLS
        self._before: dict[str, Any] = {}

    def start(self) -> None:
        """Note the states of the generators before a call of the environments."""
        self._before = self._states()

    def stop(self) -> DrawWatch | None:
        """Compare the states after the call; return this watch if it goes on, else None."""
        after = self._states()
        drawn = [name for name, state in self._before.items() if state != after[name]]
        if drawn:
            _logger.warning(
                "the environments draw from %s. The trainer's seed does not set it, so the numbers of this run cannot "
                "be repeated; draw from a generator of the environment that reset(seed=...) seeds: self.np_random",
                " and ".join(drawn),
            )
        self._calls -= 1
        return self if self._calls and not drawn else None

    def _states(self) -> dict[str, Any]:
        framework = self._framework
        state = framework.rng_state()
        return {
            "Python's random": random.getstate(),
            "NumPy's np.random": _comparable(np.random.get_state(legacy=False)),
            f"{framework.name}'s global generator": None if state is None else framework.to_numpy(state).tobytes(),
        }


def _comparable(state: Any) -> Any:
    """Return the state of a bit generator without arrays, which cannot be compared by ``==``."""
    if isinstance(state, dict):
        return {key: _comparable(value) for key, value in state.items()}
    return state.tobytes() if isinstance(state, np.ndarray) else state
