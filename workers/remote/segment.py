"""Memory that a driver and a worker on the same machine share.

It has no name in any file system: it is gone with the last process that uses it, however that process ends.
"""

from __future__ import annotations

import mmap
import os
import secrets
import weakref
from typing import NamedTuple

__all__ = ["Offer", "OwnSegment", "Segment", "attach"]


class Offer(NamedTuple):
    """How another process of the same user and machine finds a segment.

    Attributes:
        pid: The process that made it.
        fd: Its file descriptor there.
        name: Random, so that another file with this number is not taken for it.
        slot_size: Bytes of one slot.
    """

    pid: int
    fd: int
    name: str
    slot_size: int


class Segment:
    """Equal slots of shared memory.

    Attributes:
        slot_size: Bytes of one slot.
    """

    def __init__(self, fd: int, slot_size: int) -> None:
        self.slot_size = slot_size
        self._memory = memoryview(mmap.mmap(fd, 0))

    def slot(self, index: int) -> memoryview:
        """The memory of one slot."""
        return self._memory[index * self.slot_size : (index + 1) * self.slot_size]


class OwnSegment(Segment):
    """A segment made here.

    Attributes:
        offer: How the other process finds it.
        slots: Number of slots.
    """

    def __init__(self, slot_size: int, slots: int) -> None:
        """Take the memory.

        Raises:
            OSError: There is not enough, or the system knows no memory without a name.
        """
        name = f"lockstep-{secrets.token_hex(16)}"
        if not hasattr(os, "memfd_create"):
            raise OSError("this system has no memfd_create")
        fd = os.memfd_create(name)
        try:
            os.posix_fallocate(fd, 0, slot_size * slots)  # now, rather than a SIGBUS when it is written to
            super().__init__(fd, slot_size)
        except BaseException:
            os.close(fd)
            raise
        weakref.finalize(self, os.close, fd)
        self.slots = slots
        self.offer = Offer(os.getpid(), fd, name, slot_size)


def attach(offer: Offer) -> Segment | None:
    """The segment that was offered; None if it cannot be found from here."""
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
