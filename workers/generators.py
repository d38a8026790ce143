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
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from types import FrameType, FunctionType, ModuleType
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.utils import seeding
from numpy.random import BitGenerator, SeedSequence

from workers.frameworks import Framework

__all__ = [
    "DrawWatch",
    "PythonStream",
    "SpaceStreams",
    "bit_generator_of",
    "find_spaces",
    "python_state",
    "set_python_state",
]

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


def _known_memory(generator: Any) -> memoryview | None:
    """Return the memory of a generator's state; None if it is not known where that is."""
    return _state_memory(generator) if _KNOWN_LAYOUT and issubclass(type(generator), random.Random) else None


_global_memory = lru_cache(maxsize=1)(_known_memory)


def python_state(generator: random.Random) -> dict[str, Any]:
    """Return the state of a generator of Python's ``random`` as plain data; see `set_python_state`."""
    version, words, gauss_next = generator.getstate()
    return {"version": version, "words": np.array(words, np.uint32), "gauss_next": gauss_next}


def set_python_state(generator: random.Random, state: Mapping[str, Any]) -> None:
    """Set a result of `python_state`.

    Raises:
        TypeError, ValueError: It is something else.
    """
    generator.setstate((state["version"], tuple(state["words"].tolist()), state["gauss_next"]))


def bit_generator_of(state: Mapping[str, Any]) -> BitGenerator:
    """Return a new bit generator of NumPy with a state, the value of the attribute ``state`` of another one.

    Raises:
        TypeError, ValueError: It is something else.
    """
    kind = getattr(np.random, str(state["bit_generator"]), None)
    if not (isinstance(kind, type) and issubclass(kind, BitGenerator)):
        raise ValueError(f"{state['bit_generator']!r} is no bit generator of NumPy")
    bits = kind()
    bits.state = state
    return bits


class PythonStream:
    """A stream of Python's ``random``, which continues it between two calls of `swap`.

    The functions of ``random`` are bound methods of one hidden generator and may have been imported by name, so the
    state of this generator changes, not the generator. Copying its memory takes 0.1 µs; ``getstate`` and ``setstate``,
    which are used where the layout of the memory is unknown, take 9 µs.
    """

    def __init__(self, seed: int) -> None:
        self._generator: Any = random.Random(seed)  # the stubs lack gauss_next
        self._memory = _known_memory(self._generator)

    def swap(self) -> None:
        """Swap the state of this stream with that of ``random``, including the Gaussian that ``gauss`` caches."""
        mine, memory = self._generator, self._memory
        theirs: Any = random._inst
        global_memory = _global_memory(theirs)
        if memory is None or global_memory is None:
            state = mine.getstate()
            mine.setstate(theirs.getstate())
            theirs.setstate(state)
            return
        before = memory.tobytes()
        memory[:] = global_memory
        global_memory[:] = before
        mine.gauss_next, theirs.gauss_next = theirs.gauss_next, mine.gauss_next

    def state(self) -> dict[str, Any]:
        """Return the state between two calls of `swap`, as plain data."""
        return python_state(self._generator)

    def load(self, state: Mapping[str, Any]) -> None:
        """Set a result of `state`."""
        set_python_state(self._generator, state)


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
        self._spaces: dict[int, _HeldSpace] = {}
        self._streams: SpaceStreams | None = self
        self._np_random: Any = _np_random
        self._made: list[Any] | None = []

    def hold(self, *holders: Any) -> None:
        """Find the spaces that the user's objects refer to; their generators are the user's, the agent has none yet."""
        for held in self._found(holders):
            held.other = None

    def hold_built(self, agent: Any) -> None:
        """Find the spaces of an agent that was built since the last call of `swap`.

        Generators that Gymnasium made in this time are the agent's, others the user's.
        """
        made, self._made = {id(generator) for generator in self._made or ()}, None
        for held in self._found([agent]):
            if id(held.attributes["_np_random"]) not in made:
                held.other, held.attributes["_np_random"] = held.attributes["_np_random"], None

    def _found(self, holders: Iterable[Any]) -> Iterator[_HeldSpace]:
        """Yield the spaces that were not found before."""
        for space in find_spaces(holders):
            if id(space) not in self._spaces and "_np_random" in vars(space):
                self._spaces[id(space)] = held = _HeldSpace(space)
                yield held

    def swap(self) -> None:
        """Swap the agent's generators with those that the spaces have."""
        for held in self._spaces.values():
            held.attributes["_np_random"], held.other = held.other, held.attributes["_np_random"]
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

    def state(self, agent: Any) -> dict[str, Any]:
        """Return the state between two calls of `swap`, as plain data: of the spaces that `agent` refers to."""
        generators = [self._spaces[id(space)].other for space in self._of(agent)]
        states = [None if generator is None else generator.bit_generator.state for generator in generators]
        return {"spawned": self._seeds.n_children_spawned, "generators": states}

    def load(self, state: Mapping[str, Any], agent: Any) -> None:
        """Set a result of `state` for an agent that refers to as many spaces.

        Raises:
            TypeError, ValueError: It is something else, or the agent refers to others.
        """
        self.hold(agent)  # it may have brought spaces of its own
        spaces, states = self._of(agent), state["generators"]
        if len(spaces) != len(states):
            raise ValueError(f"it has the generators of {len(states)} spaces; expected those of {len(spaces)}")
        generators = [None if one is None else np.random.Generator(bit_generator_of(one)) for one in states]
        for space, generator in zip(spaces, generators, strict=True):
            self._spaces[id(space)].other = generator
        self._seeds = SeedSequence(self._seeds.entropy, n_children_spawned=state["spawned"])

    def _of(self, agent: Any) -> list[Space[Any]]:
        return [space for space in find_spaces([agent]) if id(space) in self._spaces]


class _HeldSpace:
    """A space, its attributes, and the generator that it has not at present: the agent's between two calls of `swap`.

    Attributes:
        space: The space, which lives as long as its id is known.
        attributes: Its attributes.
        other: The other generator.
    """

    __slots__ = ("attributes", "other", "space")

    def __init__(self, space: Space[Any]) -> None:
        self.space = space
        self.attributes = vars(space)
        self.other: Any = None


_MOST_OBJECTS = 50_000
_MOST_REFERENTS = 1_000
_CLOSED = (ModuleType, FrameType)


def find_spaces(holders: Iterable[Any]) -> list[Space[Any]]:
    """Return the spaces that objects refer to, directly or through other objects, nearest first.

    References are followed as the garbage collector does, which runs no code of the objects: attributes, slots, class
    attributes, items of containers, closures, arguments of partials, objects of bound methods. Modules and the globals
    of functions are not entered. Of an environment, only its own attributes count, and those of one that it wraps: it
    may consist of thousands of copies. The search ends after 50,000 objects, and follows the first 1,000 references of
    each.
    """
    found: list[Space[Any]] = []
    seen: set[int] = set()
    queue = deque(holders)
    first = {id(holder) for holder in queue}
    while queue and len(seen) < _MOST_OBJECTS:
        value = queue.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if issubclass(type(value), Space):
            found.append(value)
        is_environment = _is_environment(value) and id(value) not in first
        parts = _spaces_and_environments(value) if is_environment else _referents(value)[:_MOST_REFERENTS]
        queue.extend(part for part in parts if gc.is_tracked(part) and not issubclass(type(part), _CLOSED))
    return found


def _is_environment(value: Any) -> bool:
    kinds = type(value).__mro__
    return all(any(name in vars(kind) for kind in kinds) for name in ("reset", "step", "render", "close"))


def _spaces_and_environments(env: Any) -> list[Any]:
    """Return the spaces and environments among an environment's attributes."""
    try:
        attributes = object.__getattribute__(env, "__dict__").values()
    except AttributeError:  # it has only slots
        return []
    return [part for part in attributes if issubclass(type(part), Space) or _is_environment(part)]


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
                "the environments draw from %s, which the whole process shares: the numbers of this run cannot be "
                "repeated from its seed; draw from a generator of the environment that reset(seed=...) seeds, "
                "such as self.np_random",
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
