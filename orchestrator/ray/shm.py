"""Shared memory for the large replies of a worker on the driver's machine."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import NamedTuple

from workers.remote.layout import DamagedError
from workers.remote.segment import Offer, OwnSegment
from workers.remote.wire import Packed

__all__ = ["Place", "ReplyMemory"]

_logger = logging.getLogger("lockstep")

THRESHOLD = 64 * 1024
"""Bytes of a reply from which shared memory is worthwhile; measured, see ``benchmarks/RESULTS.md``."""

_PAGE = 4096


class Place(NamedTuple):
    """Where a reply may be stored: a slot of a segment. A negative slot means none."""

    segment: OwnSegment | None = None
    slot: int = -1


_NOWHERE = Place()


class ReplyMemory:
    """Shared memory for one worker's large replies; created after the first, and replaced if one does not fit."""

    def __init__(self, *, usable: bool) -> None:
        """Start without memory; the first large reply creates it.

        Args:
            usable: Whether the worker is on this machine.
        """
        self._usable = usable
        self._segment: OwnSegment | None = None
        self._is_offered = False
        self._most_at_once = 1

    def place(self, in_use: Collection[Place]) -> Place:
        """Return a place for the next reply, other than those of replies that are pending or unread."""
        segment = self._segment
        self._most_at_once = max(self._most_at_once, len(in_use) + 1)
        if segment is None:
            return _NOWHERE
        taken = {place.slot for place in in_use if place.segment is segment}
        return Place(segment, next((slot for slot in range(segment.slots) if slot not in taken), -1))

    @property
    def offer(self) -> Offer | None:
        """How the worker finds the memory; None if it was already told, or there is none."""
        return None if self._segment is None or self._is_offered else self._segment.offer

    def was_offered(self) -> None:
        """Record that the worker was told."""
        self._is_offered = True

    def read(self, packed: Packed, place: Place) -> Packed:
        """Return the reply with its data, which stay valid until the place is assigned again.

        Args:
            packed: The reply as received.
            place: The place assigned to it.

        Raises:
            DamagedError: The reply says that its data are in memory that it did not get.
        """
        if packed.data is None:
            if place.segment is None or place.slot < 0 or packed.size > place.segment.slot_size:
                raise DamagedError("a reply has neither its data nor memory for them")
            return packed._replace(data=place.segment.slot(place.slot))
        if packed.size >= THRESHOLD and self._usable and self._segment is place.segment:
            if place.segment is not None and place.slot >= 0 and packed.size <= place.segment.slot_size:
                self._give_up("the worker cannot find it")
            else:
                self._make(packed.size)
        return packed

    def _make(self, size: int) -> None:
        slot_size = -(-(size + size // 4) // _PAGE) * _PAGE
        try:
            self._segment, self._is_offered = OwnSegment(slot_size, self._most_at_once), False
        except OSError as error:
            self._give_up(str(error))

    def _give_up(self, reason: str) -> None:
        _logger.warning("large outputs of a worker go over its connection, not through shared memory: %s", reason)
        self._usable, self._segment = False, None
