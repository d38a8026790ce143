"""Requests and replies as bytes, without their arrays. Messages of ordinary iterations are not pickled."""

from __future__ import annotations

import pickle
import struct
from typing import Any

from workers.remote.segment import Offer
from workers.remote.service import Reply
from workers.remote.wire import Packed
from workers.types import Mode, Tick

__all__ = ["dump_reply", "dump_request", "load_reply", "load_request"]

_TICK = struct.Struct("<B?qqq")
_NO_PICKLE = 0
"""First byte of an iteration request; pickles start with another."""


def dump_request(method: str, args: tuple[Any, ...], offer: Offer | None = None) -> bytes:
    """Encode a request.

    Args:
        method: Method of `workers.remote.service.Service`.
        args: Its arguments, except arrays.
        offer: Shared memory for this reply and later ones, if it is new.
    """
    if method == "tick" and offer is None:
        (mode, timestep, timesteps), count = args
        return _TICK.pack(_NO_PICKLE, mode is Mode.TRAIN, timestep, timesteps, count)
    return pickle.dumps((method, args, offer), pickle.HIGHEST_PROTOCOL)


def load_request(data: bytes) -> tuple[str, tuple[Any, ...], Offer | None]:
    """Decode what `dump_request` encoded, from an authenticated peer."""
    if data[0] == _NO_PICKLE:
        _, is_training, timestep, timesteps, count = _TICK.unpack(data)
        return "tick", (Tick(Mode.TRAIN if is_training else Mode.EVAL, timestep, timesteps), count), None
    method, args, offer = pickle.loads(data)
    return method, args, offer


def dump_reply(reply: Reply) -> tuple[bytes, Packed | None]:
    """Encode a reply; its packed arrays are returned separately."""
    status, _, payload, log = reply
    if isinstance(payload, Packed):
        return pickle.dumps(log, pickle.HIGHEST_PROTOCOL) if log else b"", payload
    return pickle.dumps((status, payload, log), pickle.HIGHEST_PROTOCOL), None


def load_reply(seq: int, data: bytes, packed: Packed | None) -> Reply:
    """Decode what `dump_reply` encoded, from an authenticated peer."""
    if packed is not None:
        return Reply("ok", seq, packed, pickle.loads(data) if data else ())
    status, payload, log = pickle.loads(data)
    return Reply(status, seq, payload, log)
