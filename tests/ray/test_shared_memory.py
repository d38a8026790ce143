"""Shared memory: found only by the process it is offered to, sized by the replies, and freed with its users."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from orchestrator.ray.shm import THRESHOLD, Place, ReplyMemory
from tests.support.processes import PATIENCE, ROOT
from workers.frameworks import load_framework
from workers.remote.segment import Offer, OwnSegment, attach
from workers.remote.wire import Packed, from_wire, to_wire

NUMPY = load_framework("numpy")


def own_memory() -> int:
    """Return the number of file descriptors and mappings of segments in this process."""
    gc.collect()
    fds = [path for path in Path("/proc/self/fd").iterdir() if "memfd:lockstep" in _target(path)]
    return len(fds) + Path("/proc/self/maps").read_text().count("memfd:lockstep")


def _target(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def test_slots_are_apart_and_seen_by_both_sides():
    own = OwnSegment(4096, 3)
    other = attach(own.offer)
    assert other is not None
    for index in range(3):
        other.slot(index)[:] = bytes([index + 1]) * 4096
    assert [set(own.slot(index)) for index in range(3)] == [{1}, {2}, {3}]
    assert len(own.slot(2)) == 4096


def test_what_was_not_offered_is_not_attached(tmp_path: Path):
    own, another = OwnSegment(4096, 1), OwnSegment(4096, 1)
    assert attach(own.offer._replace(fd=another.offer.fd)) is None
    assert attach(own.offer._replace(fd=99_999)) is None
    assert attach(own.offer._replace(pid=2**22 + 1)) is None
    with (tmp_path / "file").open("wb") as file:
        assert attach(own.offer._replace(fd=file.fileno())) is None


def test_memory_is_freed_with_its_last_user():
    before = own_memory()
    own = OwnSegment(4096, 1)
    other = attach(own.offer)
    assert own_memory() > before
    del own
    assert own_memory() > before
    del other
    assert own_memory() == before


CRASH = """
import os, sys
from workers.remote.segment import OwnSegment, attach
own = OwnSegment(1 << 20, 1)
print(*own.offer, flush=True)
sys.stdin.read(1)
os.kill(os.getpid(), 9)
"""


def test_memory_outlives_a_crash_only_where_it_is_still_used():
    """The memory has no name, so nothing is left in a file system."""
    maker = subprocess.Popen([sys.executable, "-c", CRASH], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert maker.stdin is not None
    assert maker.stdout is not None
    pid, fd, name, size = maker.stdout.readline().split()
    offer = Offer(int(pid), int(fd), name.decode(), int(size))
    segment = attach(offer)
    assert segment is not None
    maker.communicate(b"x", timeout=PATIENCE)
    segment.slot(0)[:3] = b"abc"  # no SIGBUS
    assert bytes(segment.slot(0)[:4]) == b"abc\0"
    assert attach(offer) is None
    assert not [entry for entry in os.listdir("/dev/shm") if "lockstep" in entry]


def test_memory_that_is_not_there_is_an_error_that_leaves_nothing(monkeypatch):
    def none_left(*_: object) -> None:
        raise OSError("no memory left")

    before = own_memory()
    monkeypatch.setattr(os, "posix_fallocate", none_left)
    with pytest.raises(OSError, match="no memory left"):
        OwnSegment(4096, 1)
    assert own_memory() == before


LARGE = THRESHOLD // 8
"""Count of 8-byte numbers in a large reply."""


class Worker:
    """Imitates a worker: replies into its place if it finds the memory and the reply fits."""

    def __init__(self, memory: ReplyMemory, *, finds: bool = True) -> None:
        self.memory, self.finds = memory, finds
        self.segment = None
        self.waiting: list[tuple[Packed, Place]] = []
        self.count = 0.0

    def ask(self, numbers: int) -> Place:
        place = self.memory.place([place for _, place in self.waiting])
        offer = self.memory.offer
        if offer is not None:
            self.memory.was_offered()
            self.segment = attach(offer) if self.finds else None  # type: ignore[assignment]
        into = None if self.segment is None or place.slot < 0 else self.segment.slot(place.slot)
        self.count += 1
        self.waiting.append((to_wire(np.full(numbers, self.count), NUMPY, into), place))
        return place

    def read(self, expected: float) -> bool:
        """Return whether the reply came through shared memory."""
        packed, place = self.waiting.pop(0)
        received = self.memory.read(packed, place)
        assert set(from_wire(received, NUMPY)) == {expected}
        return packed.data is None


def test_it_is_sized_from_the_first_large_reply_and_again_when_one_outgrows_it():
    worker = Worker(ReplyMemory(usable=True))
    shared = []
    for count, numbers in enumerate((10, LARGE, LARGE, LARGE + 10, 10, 3 * LARGE, 3 * LARGE, LARGE), 1):
        worker.ask(numbers)
        shared.append(worker.read(count))
    assert shared == [False, False, True, True, True, False, True, True]


def test_a_place_is_not_given_again_before_it_was_read():
    worker = Worker(ReplyMemory(usable=True))
    worker.ask(LARGE)
    assert not worker.read(1)
    places = [worker.ask(LARGE) for _ in range(3)]
    assert [place.slot for place in places] == [0, -1, -1]
    assert [worker.read(count) for count in (2, 3, 4)] == [True, False, False]
    # as many slots as were in flight at once
    for _ in range(3):
        worker.ask(LARGE)
    for count in range(5, 50):
        assert worker.read(count)
        worker.ask(LARGE)
        assert len({place.slot for _, place in worker.waiting}) == 3


def test_replies_into_memory_that_was_replaced_can_still_be_read():
    worker = Worker(ReplyMemory(usable=True))
    worker.ask(LARGE)
    worker.read(1)
    for numbers in (2 * LARGE, LARGE, LARGE):
        worker.ask(numbers)
    assert not worker.read(2)  # outgrown: replaced while two are in flight
    worker.ask(2 * LARGE)
    worker.read(3)
    worker.read(4)
    assert worker.read(5)


def test_a_worker_that_does_not_find_it_is_not_offered_more(caplog):
    worker = Worker(ReplyMemory(usable=True), finds=False)
    for count in range(1, 6):
        worker.ask(LARGE)
        assert not worker.read(count)
    assert caplog.text.count("not through shared memory: the worker cannot find it") == 1
    assert own_memory() == 0


def test_a_worker_on_another_machine_is_offered_none():
    worker = Worker(ReplyMemory(usable=False))
    for count in range(1, 4):
        worker.ask(LARGE)
        assert not worker.read(count)
    assert worker.segment is None


def test_without_enough_memory_replies_go_over_the_connection(caplog, monkeypatch):
    def none_left(*_: object) -> None:
        raise OSError("no memory left")

    monkeypatch.setattr("orchestrator.ray.shm.OwnSegment", none_left)
    worker = Worker(ReplyMemory(usable=True))
    for count in range(1, 4):
        worker.ask(LARGE)
        assert not worker.read(count)
    assert caplog.text.count("no memory left") == 1
