"""What a remote worker replies to its requests."""

from __future__ import annotations

from types import NoneType
from typing import Any, Literal, NamedTuple

from workers.remote.log import LogEntry
from workers.remote.wire import Packed
from workers.storage.export import ExportedAgent
from workers.storage.snapshot import Snapshot
from workers.types import Description

__all__ = ["PAYLOADS", "Busy", "Reply"]

PAYLOADS: dict[str, tuple[type, ...]] = {
    "build": (Description,),
    "tick": (Packed, NoneType),
    "act": (Packed,),
    "learn": (NoneType,),
    "collect": (dict,),
    "store": (tuple, NoneType),
    "load": (NoneType,),
    "hyperparameters": (dict,),
    "set_hyperparameters": (NoneType,),
    "statistics": (Packed,),
    "restart": (NoneType,),
    "export": (ExportedAgent,),
    "snapshot": (Snapshot,),
    "stage": (NoneType,),
    "restore": (bool,),
    "lose": (NoneType,),
    "close": (NoneType,),
}
"""The methods of requests, and of which types the payloads of their replies are."""


class Reply(NamedTuple):
    """The reply to request `seq`.

    Attributes:
        status: Whether the request was handled.
        seq: Number of the request.
        payload: Its result, or a tuple of `Failure`.
        log: What the worker logged since its last reply.
    """

    status: Literal["ok", "error"]
    seq: int
    payload: Any
    log: tuple[LogEntry, ...] = ()


class Busy(NamedTuple):
    """What a worker is busy with.

    Attributes:
        seq: The request that it is handling; None if it is idle.
        seconds: For how long; of several iterations, the current one.
        doing: What it does while it is built, such as ``"building its agent"``; else empty.
    """

    seq: int | None
    seconds: float
    doing: str = ""
