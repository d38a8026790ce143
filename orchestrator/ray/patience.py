"""StepPatience: which late workers are busy, and which are silent."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from time import monotonic

from orchestrator.ray.requests import UnreachableError
from workers.remote.replies import Busy

__all__ = ["StepPatience"]

_logger = logging.getLogger("lockstep")

_LOOK_INTERVAL = 5.0
"""Seconds between two pings of a late worker."""

_SHORT_INTERVAL = 0.5
"""The same where an answer is about to come."""

_SUSPECTED = 15.0
"""Seconds without an answer to a ping after which the log names a worker."""

_ASKING_TIMEOUT = 30.0
"""Seconds within which somebody can ask a worker what it is busy with."""

_LONGER_ITERATIONS = "if an iteration may take longer, increase RayOrchestrator(step_timeout=…)"


_LONGER_CALLS = "if a single call may hold Python's interpreter for longer, increase RayOrchestrator(hang_timeout=…)"


class StepPatience:
    """Patience with iterations and other requests whose time is limited; see `Patience`."""

    def __init__(
        self,
        timeout: float,
        *,
        hang_timeout: float = 60.0,
        nodes: Sequence[str] = (),
        remedy: str = _LONGER_ITERATIONS,
    ) -> None:
        """Prepare for one request.

        Args:
            timeout: Seconds to wait; for a request of several iterations, for each of them.
            hang_timeout: Seconds to wait for a worker that does not answer a ping, if it is less.
            nodes: Where the worker of each scope lives, for the log.
            remedy: What to do about a worker that takes longer, for its error.
        """
        self._timeout, self._hang_timeout, self._nodes, self._remedy = timeout, hang_timeout, nodes, remedy
        self._interval = min(_LOOK_INTERVAL, timeout / 2, hang_timeout / 2)
        self.deadline()

    def deadline(self) -> float:
        """Begin to wait, and return the time of the first look."""
        self._started = monotonic()
        self._idle: set[int] = set()
        self._silent_since: dict[int, float] = {}
        self._suspected: set[int] = set()
        return self._started + self._interval

    def extend(self, late: Sequence[int], busy: Mapping[int, Busy | None]) -> dict[int, float | UnreachableError]:
        """Extend the deadlines of workers whose current iteration is within the limit.

        A worker that is idle at the end of its time gets one short extension, because its reply may be on the way or
        it may be about to start.
        """
        return {
            index: self._of_silent(index, is_asked=index in busy)
            if (answer := busy.get(index)) is None
            else self._of_busy(index, answer)
            for index in late
        }

    def _of_busy(self, index: int, busy: Busy) -> float | UnreachableError:
        now = monotonic()
        self._silent_since.pop(index, None)
        if index in self._suspected:
            self._suspected.discard(index)
            _logger.warning("scope %d on %s answers again", index, self._nodes[index])
        left = (self._started + self._timeout - now) if busy.seq is None else self._timeout - busy.seconds
        if left > 0:
            return now + min(left, self._interval)
        if busy.seq is None and index not in self._idle:
            self._idle.add(index)
            return now + _SHORT_INTERVAL
        doing = "is not busy" if busy.seq is None else f"has been busy for {busy.seconds:.1f} s"
        state = f"it answers a ping and {doing}"
        return UnreachableError("TimeoutError", f"no reply within {self._timeout:g} s; {state}; {self._remedy}")

    def _of_silent(self, index: int, *, is_asked: bool) -> float | UnreachableError:
        now = monotonic()
        silence = now - self._silent_since.setdefault(index, now)
        limit = min(self._hang_timeout, self._timeout)
        if not is_asked:  # who asks may be starting
            limit = self._timeout + _ASKING_TIMEOUT
        if silence >= limit:
            return UnreachableError("WorkerHung", f"it has not answered a ping for {silence:.0f} s; {_LONGER_CALLS}")
        if silence >= _SUSPECTED and is_asked and index < len(self._nodes) and index not in self._suspected:
            self._suspected.add(index)
            _logger.warning(
                "scope %d on %s has not answered a ping for %.0f s; it is given up after %g s",
                *(index, self._nodes[index], silence, limit),
            )
        return now + min(self._interval, max(_SHORT_INTERVAL, limit - silence))
