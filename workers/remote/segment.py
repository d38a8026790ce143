"""Memory shared by a driver and a worker on the same machine.

It has no name in any file system, and is freed with the last process that uses it, however that process ends.
"""

from __future__ import annotations

import mmap
import os
import secrets
import weakref
from typing import NamedTuple

__all__ = ["Offer", "OwnSegment", "Segment", "attach"]


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
    """

    def __init__(self, fd: int, slot_size: int) -> None:
        self.slot_size = slot_size
        self._memory = memoryview(mmap.mmap(fd, 0))

    def slot(self, index: int) -> memoryview:
        """Return the memory of one slot."""
        return self._memory[index * self.slot_size : (index + 1) * self.slot_size]


class OwnSegment(Segment):
    """A segment created by this process.

    Attributes:
        offer: How the other process finds it.
        slots: Number of slots.
    """

    def __init__(self, slot_size: int, slots: int) -> None:
        """Allocate the memory.

        Raises:
            OSError: There is not enough memory, or the system lacks memfd_create.
        """
        name = f"lockstep-{secrets.token_hex(16)}"
        if not hasattr(os, "memfd_create"):
            raise OSError("this system has no memfd_create")
        fd = os.memfd_create(name)
        try:
            os.posix_fallocate(fd, 0, slot_size * slots)  # fail now rather than with a SIGBUS on write
            super().__init__(fd, slot_size)
        except BaseException:
            os.close(fd)
            raise
        weakref.finalize(self, os.close, fd)
        self.slots = slots
        self.offer = Offer(os.getpid(), fd, name, slot_size)


def attach(offer: Offer) -> Segment | None:
    """Return the offered segment, or None if it cannot be found from here."""
    path = f"/proc/{offer.pid}/fd/{offer.fd}"
    try:
        if not os.readlink(path).startswith(f"/memfd:{offer.name} "):
            return None
        fd = os.open(path, os.O_RDWR)
        try:
            return Segment(fd, offer.slot_size)
        finally:
            os.close(fd)
    except OSError:
        return None
