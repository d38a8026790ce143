"""Requests and replies as bytes: what they say besides arrays. What crosses in every iteration is not pickled."""

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
"""First byte of an iteration; pickles begin with another."""


def dump_request(method: str, args: tuple[Any, ...], offer: Offer | None = None) -> bytes:
    """The bytes of a request.

    Args:
        method: Method of `workers.remote.service.Service`.
        args: Its arguments, but for arrays.
        offer: Shared memory for this reply and the next ones, if it is new.
    """
    if method == "tick" and offer is None:
        (mode, timestep, timesteps), count = args
        return _TICK.pack(_NO_PICKLE, mode is Mode.TRAIN, timestep, timesteps, count)
    return pickle.dumps((method, args, offer), pickle.HIGHEST_PROTOCOL)


def load_request(data: bytes) -> tuple[str, tuple[Any, ...], Offer | None]:
    """What `dump_request` was given, of a peer that is authenticated."""
    if data[0] == _NO_PICKLE:
        _, is_training, timestep, timesteps, count = _TICK.unpack(data)
        return "tick", (Tick(Mode.TRAIN if is_training else Mode.EVAL, timestep, timesteps), count), None
    method, args, offer = pickle.loads(data)
    return method, args, offer


def dump_reply(reply: Reply) -> tuple[bytes, Packed | None]:
    """The bytes of a reply, and what is packed besides."""
    if isinstance(reply.payload, Packed):
        return b"", reply.payload
    return pickle.dumps((reply.status, reply.payload), pickle.HIGHEST_PROTOCOL), None


def load_reply(seq: int, data: bytes, packed: Packed | None) -> Reply:
    """The reply that `dump_reply` was given, of a peer that is authenticated."""
    if packed is not None:
        return Reply("ok", seq, packed)
    status, payload = pickle.loads(data)
    return Reply(status, seq, payload)
