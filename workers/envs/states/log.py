"""The log of actions since each copy's last reset, from which copies are played back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import gymnasium

from workers.copying import copy_containers
from workers.envs.sample_rows import take
from workers.envs.states.attributes import read_attributes
from workers.envs.states.generators import find_generators, raw_reader, raw_to_tree
from workers.envs.states.values import Unsuitable, is_record, join, stack
from workers.envs.statistics import layers
from workers.frameworks import load_framework

__all__ = ["DEFAULT_LIMIT", "ActionLog", "CopyLog", "Trace"]

DEFAULT_LIMIT = 10_000
_LEAST_ENTRIES = 1_024


class Trace(NamedTuple):
    """How a copy came from its last reset to where it is.

    Attributes:
        seed: The last seed with which it was reset; None if there was none.
        is_seeded: Whether this was its last reset.
        generators: States of the copy's generators just before the reset, by path; empty if it was seeded.
        carried: Attributes just before the reset of each layer that has objects of numbers only, such as running
            statistics and counters, which may outlive resets; by the layer's number.
        actions: Native actions since, each array with a row for each action; None without actions.
        rewards: Their rewards: ``(actions,)``, by name in a multi-agent environment; None without actions.
        length: Number of actions.
    """

    seed: int | None
    is_seeded: bool
    generators: dict[str, Any]
    carried: dict[str, dict[str, Any]]
    actions: Any
    rewards: Any
    length: int


class CopyLog:
    """What is known of one copy's last reset.

    Attributes:
        is_started: Whether the copy has ever been reset.
        start: Number of steps of the `ActionLog` before the reset; None if that is not known.
        before: What led from a reset to `start`, if the copy was played back.
        raw: States of its generators before the reset; see `raw_reader`.
        read: Reads the state of its only generator, if there is nothing else to note before an unseeded reset.
    """

    __slots__ = ("_carried", "_layers", "_names", "_readers", "_seed", "before", "is_started", "raw", "read", "start")

    def __init__(self, is_started: bool = False) -> None:
        self.is_started = is_started
        self.start: int | None = None
        self.before: Trace | None = None
        self._layers: dict[str, Any] | None = None
        self._names: list[str] = []
        self._readers: list[Any] | None = None
        self.raw: Sequence[Any] = ()
        self.read: Callable[[], Any] | None = None
        self._seed: int | None = None
        self._carried: dict[str, Any] = {}

    def __reduce__(self) -> Any:
        """Copy without the log: it refers to the memory of generators."""
        return CopyLog, (self.is_started,)

    def reset(self, env: Any, seed: int | None, start: int) -> None:
        """Note that the copy is about to be reset."""
        if self._layers is None:
            self._find_layers(env)
        self.is_started, self.start, self.before = True, start, None
        if self._layers:
            numpy = load_framework("numpy")
            self._carried = {
                number: read_attributes(layer, numpy, partly=True) for number, layer in self._layers.items()
            }
        if seed is not None:
            # the reset may make other generators
            self._seed, self._readers, self.raw, self.read = seed, None, (), None
            return
        readers = self._readers
        if readers is None:
            readers = self._find_generators(env)
            self.read = readers[0] if len(readers) == 1 and not self._layers else None
        self.raw = [read() for read in readers]

    def trace(self) -> Trace:
        """Return the trace of the last reset, without actions."""
        generators = {name: raw_to_tree(raw) for name, raw in zip(self._names, self.raw, strict=False)}
        return Trace(self._seed, self._readers is None, generators, self._carried, None, None, 0)

    def _find_layers(self, env: Any) -> None:
        found = {str(number): layer for number, layer in enumerate(layers(env))}
        self._layers = {number: layer for number, layer in found.items() if any(map(is_record, vars(layer).values()))}

    def _find_generators(self, env: Any) -> list[Any]:
        if isinstance(env, gymnasium.Env):
            with suppress(Exception):  # a property that the user may have replaced; a missing generator is noticed
                _ = env.unwrapped.np_random  # made on first access
        found = find_generators(env)
        self._names = list(found)
        self._readers = [raw_reader(generator) for generator in found.values()]
        return self._readers


class ActionLog:
    """The native actions and rewards of all copies since their last resets; one entry for each batched step.

    It must cost next to nothing, because it is kept from the start: states of generators are copied as bytes, and
    entries that no copy needs are dropped only when their number has doubled.

    Attributes:
        copies: The log of each copy.
        count: Number of steps so far.
        limit: A copy with more actions since its last reset cannot be played back.
    """

    def __init__(self, num_envs: int) -> None:
        self.copies = [CopyLog() for _ in range(num_envs)]
        self.count = 0
        self.limit = DEFAULT_LIMIT
        self._entries: list[tuple[Any, Any]] = []
        self._most_entries = _LEAST_ENTRIES

    def add(self, actions: Any, rewards: Any) -> None:
        """Add a step, before the copies take it.

        Args:
            actions: Native actions, in a vector environment's format; copied.
            rewards: The arrays that the step will fill, and that nobody else changes.
        """
        self.count += 1
        if self.limit:
            self._entries.append((copy_containers(actions), rewards))
            if len(self._entries) >= self._most_entries:
                self._drop()

    def set_limit(self, limit: int) -> None:
        """Set the limit; 0 keeps no log."""
        self.limit = limit
        if not limit:
            self._entries.clear()

    def reset(self, row: int, env: Any, seed: int | None) -> None:
        """Note that a copy is about to be reset; its actions before are not needed any more."""
        copy = self.copies[row]
        read = copy.read
        if read is not None and seed is None:  # the usual case, in half the time
            copy.start, copy.raw, copy.before = self.count, (read(),), None
        else:
            copy.reset(env, seed, self.count)

    def reader(self) -> Callable[[int], Trace]:
        """Return a function that gives the trace of a row; all rows share the work of joining the entries."""
        first, batch = self.count - len(self._entries), stack(self._entries) if self._entries else None

        def trace(row: int) -> Trace:
            copy = self.copies[row]
            if copy.start is None:
                raise Unsuitable("its last reset is not known")
            before = copy.trace() if copy.before is None else copy.before
            length = before.length + self.count - copy.start
            if length > self.limit or copy.start < first:
                raise Unsuitable(
                    f"it took more than {self.limit} actions since its last reset; see replay_limit of the orchestrator"
                )
            if copy.start == self.count:
                return before
            since = take(batch, (slice(copy.start - first, None), row))
            parts = [since] if not before.length else [(before.actions, before.rewards), since]
            actions, rewards = join(parts)
            return before._replace(actions=actions, rewards=rewards, length=length)

        return trace

    def played(self, row: int, trace: Trace | None) -> None:
        """Note that a copy was brought to where it is by a trace; None: in another way, until its next reset."""
        copy = self.copies[row]
        copy.is_started, copy.start, copy.before = True, None if trace is None else self.count, trace

    def _drop(self) -> None:
        """Drop the entries that no copy needs."""
        first, oldest = self.count - len(self._entries), self.count - self.limit
        needed = [copy.start for copy in self.copies if copy.start is not None and copy.start >= oldest]
        del self._entries[: min(needed, default=self.count - 1) - first]
        self._most_entries = max(_LEAST_ENTRIES, 2 * len(self._entries))
