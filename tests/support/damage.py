"""Damage to files, made at random from a seed, and a pickle that shows that it was loaded."""

from __future__ import annotations

import copy
import json
import random
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["JUNK", "Bomb", "Within", "damaged_bytes", "damaged_data", "damaged_state", "state_with"]

JUNK: list[Any] = [
    None, True, 0, -1, 3, 2**31, 2**63, 2**64 - 1, 10**400, 0.5, float("nan"), float("inf"), "", "x", "0", "\x1b[31m",
    "\ud800", "\0", "a\nb", "x" * 5000, [], {}, [[]], [None], [1, 2, 3], {"a": 1}, {"": {"": []}}, [[[[[[[[1]]]]]]]],
]  # fmt: skip
"""Plain values in the place of which something else is expected."""


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return data with one to three faults: changed, lost, added, repeated or emptied bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 3])):
        start = rng.randrange(len(changed) + 1)
        # much of what can go wrong is at the front
        start = rng.choice([start, start, min(start, rng.randrange(16)), min(start, rng.randrange(400))])
        stop = min(len(changed), start + rng.choice([1, 1, 2, 8, 100]))
        kind = rng.choice(["flip", "flip", "cut", "insert", "repeat", "zero", "truncate"])
        if kind == "flip" and start < len(changed):
            changed[start] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del changed[start:stop]
        elif kind == "insert":
            changed[start:start] = rng.randbytes(stop - start)
        elif kind == "repeat":
            changed[start:start] = changed[start:stop] * rng.choice([1, 3, 200])
        elif kind == "zero":
            changed[start:stop] = bytes(stop - start)
        elif kind == "truncate":
            del changed[start:]
    return bytes(changed)


def damaged_data(data: Any, rng: random.Random) -> Any:
    """Return plain data with one to three values replaced, removed, repeated, moved, or given another key."""
    data = copy.deepcopy(data)
    for _ in range(rng.choice([1, 1, 2, 3])):
        places = list(_places(data))
        if not places:
            return copy.deepcopy(rng.choice(JUNK))
        parent, key = rng.choice(places)
        kind = rng.choice(["replace", "remove", "repeat", "swap", "wrap", "rename"])
        if kind == "remove":
            del parent[key]
        elif kind == "swap":
            other, place = rng.choice(places)
            parent[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(parent[key])
        elif kind == "wrap":
            parent[key] = rng.choice([[parent[key]], {"a": parent[key]}])
        elif kind == "repeat" and isinstance(parent, list):
            parent[key:key] = [copy.deepcopy(parent[key]) for _ in range(rng.choice([1, 5, 50]))]
        elif kind == "rename" and isinstance(parent, dict):
            parent[rng.choice(["", "x", "__metadata__", "\x1b", f"{key}'", "<<"])] = parent.pop(key)
        else:
            parent[key] = copy.deepcopy(rng.choice(JUNK))
    return data


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the container and the key of every value."""
    for key in list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield data, key
        yield from _places(data[key])


def damaged_state(data: bytes, rng: random.Random) -> bytes:
    """Return a file of `workers.storage.state_file` with damaged bytes, a damaged header, or a damaged tree."""
    kind = rng.choice(["bytes", "header", "tree"])
    if kind == "bytes":
        return damaged_bytes(data, rng)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if kind == "header":
        header = damaged_data(header, rng)
    else:
        header["__metadata__"]["state"] = json.dumps(damaged_data(json.loads(header["__metadata__"]["state"]), rng))
    return state_with(header, data[8 + size :])


def state_with(header: Any, arrays: bytes = b"") -> bytes:
    """Return a safetensors file with this header, which may be text already."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + arrays


class Within:
    """Measurement of what reading damaged files takes.

    Attributes:
        seconds: The longest time of one.
        memory: The most memory of one that Python and NumPy took, in bytes.
    """

    def __init__(self) -> None:
        self.seconds, self.memory = 0.0, 0

    @contextmanager
    def limits(self, size: int, *, seconds: float = 10) -> Iterator[None]:
        """Check the time and the memory of the body, which reads a file of `size` bytes.

        Both are usually far less: a machine may be slow, and Python's objects are larger than their text.
        """
        tracemalloc.start()
        start = time.perf_counter()
        try:
            yield
            taken, most = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        self.seconds, self.memory = max(self.seconds, taken), max(self.memory, most)
        assert taken < seconds
        assert most < 2**24 + 50 * size


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)
