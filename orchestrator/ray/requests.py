"""The words of requests to workers, and of how long their replies are waited for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from workers.errors import Failure, WorkerError, message_of
from workers.remote.dialing import Address
from workers.remote.replies import Busy, Reply

__all__ = [
    "ITERATIONS",
    "NODE_LOSSES",
    "PING_TIMEOUT",
    "Door",
    "NoReplyError",
    "Patience",
    "Request",
    "Rescue",
    "UnreachableError",
    "is_loss",
    "payloads",
    "unreadable",
]

PING_TIMEOUT = 2.0
"""Seconds within which a worker answers a ping."""

ITERATIONS = frozenset({"tick", "act", "learn"})
"""The methods of requests that are iterations, or parts of them. Their first argument is the `Tick`."""

NODE_LOSSES = frozenset({"NodeDied", "NodeUnreachable"})
"""Kinds of failures of workers whose node is gone."""

_LOST = NODE_LOSSES | {"WorkerDied", "WorkerHung", "ConnectionLost", "UnreadableError"}
"""Kinds of failures that are not what environments or agents raise. Their worker can be rebuilt."""


class NoReplyError(Exception):
    """A worker's reply is not available.

    Attributes:
        kind: Name of the error.
    """

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


class UnreachableError(NoReplyError):
    """A worker will not reply to any further request."""


class Request(NamedTuple):
    """A request to workers.

    Attributes:
        seq: Number of the request.
        method: Method of `workers.remote.service.Service`.
        common: Arguments that are the same for all workers.
        each: Last argument of each worker, in scope order; None if there is none.
    """

    seq: int
    method: str
    common: tuple[Any, ...]
    each: Sequence[Any] | None


class Door(NamedTuple):
    """How a worker can be connected to.

    Attributes:
        address: Where it listens.
        key: Secret that only this worker knows.
        node: Ray's id of its node.
    """

    address: Address
    key: bytes
    node: str


class Patience(Protocol):
    """How long replies to one request are waited for."""

    def deadline(self) -> float:
        """Begin to wait; return the time of the first look at workers that have not replied, as from `monotonic`."""

    def extend(self, late: Sequence[int], busy: Mapping[int, Busy | None]) -> dict[int, float | UnreachableError]:
        """Return when to look again at late workers, or why they are not waited for any longer.

        Args:
            late: The late workers.
            busy: What they are busy with; None for those that do not answer, nothing for those that nobody can ask.
        """


class Rescue(Protocol):
    """What becomes of the requests to workers that are lost; see `orchestrator.ray.recovery`."""

    def is_loss(self, failure: Failure, method: str) -> bool:
        """Return whether a worker is rebuilt that failed so in a request with this method."""

    def note(self, request: Request) -> None:
        """Take note of a request that was sent to all workers that are there."""

    def forget(self, seq: int) -> None:
        """Forget a request that failed."""

    def recover(self, lost: Mapping[int, Failure]) -> None:
        """Rebuild workers, so that they reply to the requests that are under way.

        Raises:
            WorkerError: One of them cannot be rebuilt.
        """


def is_loss(failure: Failure) -> bool:
    """Return whether a failure is none of what environments or agents raised."""
    return failure.kind in _LOST or failure.phase == "request"


def unreadable(error: BaseException) -> NoReplyError:
    """Return the error for a reply that cannot be read."""
    return NoReplyError("UnreadableError", f"the reply cannot be read: {type(error).__name__}: {message_of(error)}")


def payloads(replies: Sequence[Reply]) -> list[Any]:
    """Return the payloads of replies.

    Raises:
        WorkerError: Some replies are errors; all of them are reported.
    """
    failures = [failure for reply in replies if reply.status == "error" for failure in reply.payload]
    if failures:
        raise WorkerError(failures)
    return [reply.payload for reply in replies]
