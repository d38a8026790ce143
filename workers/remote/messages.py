"""Requests and replies as bytes, without their arrays. Messages of ordinary iterations are not pickled."""

from __future__ import annotations

import struct
from collections.abc import Callable
from numbers import Real
from reprlib import repr as short
from types import NoneType
from typing import Any

from workers.errors import Failure, type_name
from workers.pickling import dumps, loads
from workers.remote.layout import DamagedError
from workers.remote.log import LogEntry
from workers.remote.replies import PAYLOADS, Reply
from workers.remote.segment import Offer
from workers.remote.wire import Packed
from workers.storage.snapshot import Part
from workers.types import Mode, Tick

__all__ = ["check_reply", "dump_reply", "dump_request", "load_reply", "load_request"]

_TICK = struct.Struct("<B?qqq")
_NO_PICKLE = 0
"""First byte of an iteration request; pickles start with another."""


_FAILURE = [
    *((name, (int, NoneType)) for name in ("scope", "timestep")),
    *((name, (str,)) for name in ("phase", "node", "kind", "message", "traceback")),
    ("rows", (tuple,)),
]
"""Fields of a failure and their types."""

_CONTENT: dict[str, Callable[[Any], bool]] = {
    "build": lambda worker: (
        [*map(type, worker)] == [str, str, int, tuple, tuple, str, str]
        and all(type(text) is str for text in (*worker.team, *worker.notes))
    ),
    "collect": lambda scalars: _are_numbers(scalars),
    "hyperparameters": lambda values: _are_numbers(values),
    "store": lambda file: file is None or [*map(type, file)] == [str, bytes],
    "export": lambda agent: [*map(type, agent)] == [str, bytes],
    "snapshot": lambda snapshot: _are_parts(snapshot.agents) and _are_rows(snapshot.envs),
}
"""Whether a payload of the right type has the right content."""


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
    return dumps((method, args, offer))


def load_request(data: bytes | memoryview) -> tuple[str, tuple[Any, ...], Offer | None]:
    """Decode what `dump_request` encoded, from an authenticated peer.

    Raises:
        DamagedError: It is something else.
        Exception: It cannot be unpickled.
    """
    if len(data) == _TICK.size and data[0] == _NO_PICKLE:
        _, is_training, timestep, timesteps, count = _TICK.unpack(data)
        return "tick", (Tick(Mode.TRAIN if is_training else Mode.EVAL, timestep, timesteps), count), None
    request = loads(data)
    if type(request) is not tuple or [*map(type, request[:2])] != [str, tuple] or len(request) != 3:
        raise DamagedError(f"a request is a {type_name(type(request))}; expected its method, arguments and offer")
    method, args, offer = request
    return method, args, offer


def dump_reply(reply: Reply) -> tuple[bytes, Packed | None]:
    """Encode a reply; its packed arrays are returned separately."""
    status, _, payload, log = reply
    if isinstance(payload, Packed):
        return dumps(log) if log else b"", payload
    return dumps((status, payload, log)), None


def load_reply(seq: int, data: bytes | memoryview, packed: Packed | None) -> Reply:
    """Decode what `dump_reply` encoded, from an authenticated peer; see `check_reply`.

    Raises:
        Exception: It cannot be unpickled.
    """
    if packed is not None:
        return Reply("ok", seq, packed, loads(data) if data else ())
    status, payload, log = loads(data)
    if isinstance(payload, Packed):
        raise DamagedError("a reply has arrays that were pickled")
    return Reply(status, seq, payload, log)


def check_reply(reply: Reply, method: str) -> None:
    """Check that a reply is one to a request with this method.

    Raises:
        DamagedError: It is not.
    """
    status, _, payload, log = reply
    if status == "ok":
        is_valid = type(payload) in PAYLOADS[method] and (method not in _CONTENT or _CONTENT[method](payload))
    else:
        is_valid = status == "error" and type(payload) is tuple and bool(payload) and all(map(_is_failure, payload))
    if not is_valid or type(log) is not tuple or (log and not all(map(_is_entry, log))):
        said = short(status) if type(status) is str else f"a {type_name(type(status))}"
        raise DamagedError(f"the reply to {method!r} is {said} with a {type_name(type(payload))}")


def _are_numbers(values: dict[Any, Any]) -> bool:
    return all(type(name) is str and isinstance(value, Real) for name, value in values.items())


def _are_parts(values: Any) -> bool:
    return type(values) is tuple and all(type(part) is Part and [*map(type, part)] == [bytes, bytes] for part in values)


def _are_rows(envs: Any) -> bool:
    are_rows = type(envs) is dict and all(type(rows) is tuple and [*map(type, rows)] == [int, int] for rows in envs)
    return are_rows and _are_parts(tuple(envs.values()))


def _is_failure(value: Any) -> bool:
    if type(value) is not Failure or any(type(getattr(value, name, ...)) not in kinds for name, kinds in _FAILURE):
        return False
    return [*map(type, value.rows)] == [int, int]


def _is_entry(value: Any) -> bool:
    return type(value) is LogEntry and [*map(type, value)] == [int, str]
