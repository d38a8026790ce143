"""Memory shared by a driver and a worker on the same machine.

It has no name in any file system, and is freed with the last process that uses it, however that process ends.
"""

from __future__ import annotations

import mmap
import os
import re
import secrets
import stat
import sys
import weakref
from typing import Any, NamedTuple

if sys.platform == "linux":
    import fcntl

from workers.remote.layout import DamagedError

__all__ = ["Offer", "OwnSegment", "Segment", "attach"]

_BLOCK = 512
"""Bytes that `os.stat` counts as a block."""

_NAME = re.compile(r"lockstep-[0-9a-f]{32}")


class Offer(NamedTuple):
    """How another process of the same user on the same machine finds a segment.

    Attributes:
        pid: The process that created the segment.
        fd: Its file descriptor in that process.
        name: Random name, so that another file with the same descriptor is not mistaken for it.
        slot_size: Bytes of one slot.
    """

    pid: int
    fd: int
    name: str
    slot_size: int


class Segment:
    """Shared memory of equal slots.

    Attributes:
        slot_size: Bytes of one slot.
        slots: Number of slots.
    """

    def __init__(self, fd: int, slot_size: int) -> None:
        self.slot_size = slot_size
        self._memory = memoryview(mmap.mmap(fd, 0))
        self.slots = len(self._memory) // slot_size

    def slot(self, index: int) -> memoryview:
        """Return the memory of one slot.

        Raises:
            DamagedError: There is no such slot.
        """
        if not 0 <= index < self.slots:
            raise DamagedError(f"slot {index} of the shared memory does not exist; it has {self.slots} slots")
        return self._memory[index * self.slot_size : (index + 1) * self.slot_size]


class OwnSegment(Segment):
    """A segment created by this process.

    Attributes:
        offer: How the other process finds it.
    """

    def __init__(self, slot_size: int, slots: int) -> None:
        """Allocate the memory.

        Raises:
            OSError: There is not enough memory, or the system lacks memfd_create.
        """
        name = f"lockstep-{secrets.token_hex(16)}"
        if not hasattr(os, "memfd_create"):
            raise OSError("this system has no memfd_create")
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, slot_size * slots)  # fail now rather than with a SIGBUS on write
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            super().__init__(fd, slot_size)
        except BaseException:
            os.close(fd)
            raise
        weakref.finalize(self, os.close, fd)
        self.offer = Offer(os.getpid(), fd, name, slot_size)


def attach(offer: Any) -> Segment | None:
    """Return the offered segment; None if it cannot be found from here, or is not what `OwnSegment` makes.

    Args:
        offer: An `Offer`, as received.
    """
    if not (type(offer) is Offer and _is_possible(tuple(offer))):
        return None
    try:
        # without O_NONBLOCK, to open a pipe would take until somebody else opens it
        fd = os.open(f"/proc/{offer.pid}/fd/{offer.fd}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return Segment(fd, offer.slot_size) if _is_offered(fd, offer) else None
        finally:
            os.close(fd)
    except OSError:
        return None


def _is_possible(parts: tuple[Any, ...]) -> bool:
    """Return whether these can be the parts of an offer."""
    if list(map(type, parts)) != [int, int, str, int]:
        return False
    pid, fd, name, slot_size = parts
    are_in_range = 0 < pid <= sys.maxsize and 0 <= fd <= sys.maxsize and slot_size > 0
    return are_in_range and _NAME.fullmatch(name) is not None


def _is_offered(fd: int, offer: Offer) -> bool:
    """Return whether an open file is the offered memory.

    It must be allocated, and sealed so that it cannot shrink: to use what is missing would end this process.
    """
    if not os.readlink(f"/proc/self/fd/{fd}").startswith(f"/memfd:{offer.name} "):
        return False
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        return False
    if status.st_size == 0 or status.st_size % offer.slot_size or status.st_blocks * _BLOCK < status.st_size:
        return False
    return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
