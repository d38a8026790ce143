"""Shared memory: what another process offers is checked after it is opened."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from workers.remote.layout import DamagedError
from workers.remote.segment import Offer, OwnSegment, attach

SIZE = 4096
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def open_files() -> int:
    """Return the number of file descriptors and mappings of segments in this process."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    return len(list(Path("/proc/self/fd").iterdir())) + maps.count("/memfd:lockstep-")


@contextmanager
def offered(*, name: str = "", size: int = 2 * SIZE, seals: int = SEALS, is_allocated: bool = True) -> Iterator[Offer]:
    """Offer memory, which by default is as `OwnSegment` makes it."""
    offer_name = f"lockstep-{secrets.token_hex(16)}"
    fd = os.memfd_create(name or offer_name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        if is_allocated and size:
            os.posix_fallocate(fd, 0, size)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        yield Offer(os.getpid(), fd, offer_name, SIZE)
    finally:
        os.close(fd)


def test_offered_memory_is_shared():
    mine = OwnSegment(SIZE, 3)
    theirs = attach(mine.offer)
    assert theirs is not None
    assert (theirs.slots, theirs.slot_size) == (mine.slots, mine.slot_size) == (3, SIZE)
    for slot in range(3):
        assert len(theirs.slot(slot)) == SIZE
        theirs.slot(slot)[:1] = bytes([slot + 1])
    assert [mine.slot(slot)[0] for slot in range(3)] == [1, 2, 3]
    with offered() as offer:
        assert attach(offer) is not None


def test_memory_cannot_change_its_size():
    """To use memory that is not there any more ends a process."""
    segment = OwnSegment(SIZE, 2)
    for size in (0, SIZE, 3 * SIZE):
        with pytest.raises(PermissionError):
            os.ftruncate(segment.offer.fd, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(segment.offer.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert not os.get_inheritable(segment.offer.fd)


@pytest.mark.parametrize("slot", [-1, 2, -(2**62), 2**62])
def test_slots_that_do_not_exist_are_named(slot: int):
    segment = OwnSegment(SIZE, 2)
    with pytest.raises(DamagedError, match=rf"^slot {slot} of the shared memory does not exist; it has 2 slots$"):
        segment.slot(slot)


@pytest.mark.parametrize(
    "wrong",
    [
        {"seals": 0},
        {"seals": fcntl.F_SEAL_GROW},
        {"name": "another"},
        {"name": "lockstep-" + 32 * "0"},
        {"size": 0},
        {"size": SIZE + 1},
        {"size": SIZE // 2},
        {"size": 2**40, "is_allocated": False},
    ],
    ids=str,
)
def test_other_memory_is_refused(wrong: dict[str, Any]):
    with offered(**wrong) as offer:
        before = open_files()
        assert attach(offer) is None
        assert open_files() == before


def test_memory_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch):
    user = os.geteuid()
    with offered() as offer:
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
        assert attach(offer) is None


def test_other_files_are_refused(tmp_path: Path):
    name = f"lockstep-{secrets.token_hex(16)}"
    (tmp_path / f"memfd:{name} ").write_bytes(bytes(SIZE))
    os.mkfifo(tmp_path / "fifo")
    reader, writer = os.pipe()
    fds = [reader, writer, os.open(tmp_path, os.O_RDONLY), os.open("/dev/zero", os.O_RDWR)]
    fds += [os.open(tmp_path / f"memfd:{name} ", os.O_RDWR), os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)]
    before = open_files()
    for fd in fds:
        assert attach(Offer(os.getpid(), fd, name, SIZE)) is None
    assert open_files() == before
    for fd in fds:
        os.close(fd)


class IntOfOurs(int):
    pass


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            {"pid": pid}
            for pid in (0, -1, str(os.getpid()), 1.0, None, IntOfOurs(os.getpid()), 2**31, 10**5000, "self")
        ),
        *({"fd": fd} for fd in (-1, "3", "../../../etc/passwd", None, False, 2**31, 10**5000)),
        *({"slot_size": size} for size in (0, -1, -SIZE, 4096.0, None, "1", True, IntOfOurs(SIZE), 10**5000)),
        *({"name": name} for name in ("", "lockstep-", "lockstep-" + 32 * "g", "/memfd:", None, b"", ["lockstep-"])),
    ],
)
def test_offers_with_something_wrong_are_refused(wrong: dict[str, Any]):
    assert attach(OwnSegment(SIZE, 1).offer._replace(**wrong)) is None


@pytest.mark.parametrize(
    "change", [tuple, list, str, lambda offer: None, lambda offer: tuple.__new__(Offer, offer[:3])]
)
def test_what_is_no_offer_is_refused(change: Callable[[Offer], Any]):
    segment = OwnSegment(SIZE, 1)
    assert attach(segment.offer) is not None
    assert attach(change(segment.offer)) is None


def test_a_file_that_is_exchanged_is_refused(monkeypatch: pytest.MonkeyPatch):
    """What is checked is the open file: the path may lead elsewhere a moment later."""
    opened = os.open
    with offered() as offer, offered(seals=0) as other:

        def exchange(path: str, *arguments: Any) -> int:
            return opened(path.replace(f"/fd/{offer.fd}", f"/fd/{other.fd}"), *arguments)

        monkeypatch.setattr(os, "open", exchange)
        assert attach(offer) is None


def test_a_process_that_is_gone_is_refused():
    with closing(os.popen("echo $$")) as shell:
        pid = int(shell.read())
    assert attach(OwnSegment(SIZE, 1).offer._replace(pid=pid)) is None
