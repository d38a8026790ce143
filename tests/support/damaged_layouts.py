"""Fuzzer of layouts: damages them, checks them, and builds the trees of those that are accepted.

Run as a program with a number of layouts. It prints how many were refused, accepted with leaves that cannot be read,
and built. Any other error ends it.
"""

from __future__ import annotations

import os
import pickle
import random
import resource
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from workers.errors import EnvError
from workers.frameworks import load_framework
from workers.remote.layout import ARRAY, FRAMEWORK_ARRAY, SCALAR, DamagedError, Layout, check_layout
from workers.remote.wire import Packed, from_wire, read_outcome, to_wire
from workers.types import Mode, Outcome, Tick

__all__: list[str] = []

NUMPY = load_framework("numpy")
ROWS = np.arange(8, dtype=np.float32).reshape(4, 2)
FLAGS = np.array([[True], [False], [True], [False]])
STRUCTURE = np.zeros(4, [("a", "f4"), ("b", "i2", (2,)), ("c", "S3")])
TREES: list[Any] = [
    Outcome(ROWS, ROWS[:, :1], FLAGS, FLAGS, {}),
    Outcome(ROWS, ROWS[:, :1], FLAGS, FLAGS, {"a": ROWS, "_a": FLAGS[:, 0], "names": ("x", None), "list": [1, 2]}),
    Outcome(*({"one": rows, "two": rows} for rows in (ROWS, ROWS, FLAGS, FLAGS)), {1: 2.5, "_1": FLAGS}),  # type: ignore[call-arg]
    (Tick(Mode.TRAIN, 3, 9), {"deep": {"deeper": {("k", 1): ROWS[:0], frozenset({1}): "text"}}}),
    (STRUCTURE, np.array(["some", "text"]), np.array([b"b"]), ROWS.astype(">f8"), np.float64(5)),
]

MOST_BYTES = 2**20
"""Of memory, beyond what the arrays of a layout take several times."""


DTYPES = (
    *("|b1", "<f4", ">f4", "<f8", "<i2", "|S3", "<U3", "|V4", "<M8[ns]", "<m8[3D]", "<m8", "<f16", "<c32", "bfloat16"),
    *("", "f4", "O", "|O", "O,f4", "f4,f4", "|S0", "<U0", "|V-8", "|V2147483647", "|T16", "<M8[", "<m8[0D]"),
    *("<m8[D/0]", "|a5", "(2,)<f4", "<x9"),
)

PARTS: list[Any] = [
    *(None, True, False, -1, *range(8), 64, 128, 2**31, 2**62, 2**63, 10**400, 1.5, float("nan"), "a", "_a", b"b"),
    *((), (0,), (4, 1), (-1,), (2**62, 0), [], {}, set(), np.int64(1), np.float32(2), object(), "k" * 1000),
    *(*DTYPES, np.dtype, np.dtype("f4"), np.dtype("O"), np.float32),
    *(tuple, list, dict, int, Outcome, Tick, Mode, os.system, print, Mode.EVAL, ROWS, FLAGS),
    *((5, 0), (6, 0), (4, tuple, ()), (2, (), ()), (ARRAY, "<f4", (2,), 0)),
]
"""What takes the place of a part of a layout."""

LEAVES: list[Any] = [
    *(None, True, 1, 2.5, "a", b"", [], {}, ROWS, object(), np.int64(1)),
    *(pickle.dumps(value) for value in (1, "a", [ROWS], {"a": 1})),
    *(b"cos\nabort\n.", b"\x80\x05garbage", pickle.dumps(ROWS)[:-20]),
]


def damaged(node: Any, generator: random.Random) -> Any:
    """Return a layout with one part changed."""
    if type(node) is not tuple or not node or generator.random() < 0.1:
        return generator.choice(PARTS)
    parts, index = list(node), generator.randrange(len(node))
    if type(parts[index]) is str and generator.random() < 0.8:
        parts[index] = generator.choice(DTYPES)
        return tuple(parts)
    what = generator.random()
    if what < 0.75:
        parts[index] = damaged(parts[index], generator)
    elif what < 0.8:
        del parts[index]
    elif what < 0.85:
        parts.insert(index, generator.choice(PARTS))
    elif what < 0.9:
        other = generator.randrange(len(node))
        parts[index], parts[other] = parts[other], parts[index]
    elif what < 0.95:
        parts[index] = generator.choice(node)
    elif type(parts[index]) is int:
        parts[index] += generator.choice((-64, -1, 1, 3, 64))
    return tuple(parts)


def read(layout: Layout, generator: random.Random) -> bool:
    """Build a tree of random leaves and read all of it; return whether it can be read."""
    if layout.size > MOST_BYTES:  # the channel compares it with what has arrived
        return False
    others = [1 if kind == SCALAR else pickle.dumps("a") for kind in kinds_of_leaves(layout.spec)]
    assert len(others) == layout.others
    if others and generator.random() < 0.5:
        others[generator.randrange(len(others))] = generator.choice(LEAVES)
    packed = Packed(layout.spec, tuple(others), generator.randbytes(layout.size), layout.size)
    can_be_read = True
    try:
        touch(from_wire(packed, NUMPY))
    except (DamagedError, EnvError):
        can_be_read = False
    with suppress(DamagedError, EnvError):
        touch(read_outcome(packed, NUMPY, len(ROWS)))
    return can_be_read


def kinds_of_leaves(node: Any) -> Iterator[int]:
    if node[0] >= SCALAR:
        yield node[0]
    elif node[0] > FRAMEWORK_ARRAY:
        for child in node[2]:
            yield from kinds_of_leaves(child)


def touch(tree: Any) -> None:
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    if isinstance(tree, tuple):
        for value in tree:
            touch(value)
    elif isinstance(tree, np.ndarray) and not tree.dtype.hasobject:
        assert len(tree.copy().tobytes()) == tree.nbytes


def main(count: int) -> None:
    """Damage `count` layouts."""
    resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
    generator = random.Random(7)
    specs = [to_wire(tree, NUMPY).spec for tree in TREES]
    refused = unreadable = built = 0
    tracemalloc.start()
    for _ in range(count):
        spec = generator.choice(specs)
        for _ in range(generator.choice((1, 1, 1, 2, 3))):
            spec = damaged(spec, generator)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            layout = check_layout(spec)
        except DamagedError:
            refused += 1
            continue
        if read(layout, generator):
            built += 1
        else:
            unreadable += 1
        assert tracemalloc.get_traced_memory()[1] - before < MOST_BYTES + 4 * layout.size, "too much memory"
    print(refused, unreadable, built)


if __name__ == "__main__":
    main(int(sys.argv[1]))
