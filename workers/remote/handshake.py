"""Handshake: a driver and a worker prove to each other that they know a key, before anything else is read.

Each side sends a greeting with its role and a random number, then, the driver first, a proof: an HMAC-SHA256 of both
greetings under the key and its side's label. A proof can therefore neither be sent back to its author nor used again.
The worker sends its proof even if that of the driver is wrong: such a driver learns at once that it has another key.
Both sides then derive a key for each direction from the greetings; `workers.remote.channel` signs messages with it.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Generator
from typing import NamedTuple

__all__ = ["CONTROL", "SERVE", "WORK", "AuthenticationError", "Session", "handshake"]

WORK, CONTROL, SERVE = b"w", b"c", b"s"
"""Roles: of a driver that sends requests, of one that asks beside them, and of the worker."""

_PROTOCOL = b"lockstep 3\n"
_NONCE = 32
_PROOF = 32
_FLAGS = (b"\0", b"\1")


class AuthenticationError(ConnectionError):
    """The peer does not know the key, or speaks another protocol."""


class Session(NamedTuple):
    """What both sides know after a handshake.

    Attributes:
        role: Role of the driver, `WORK` or `CONTROL`.
        send_key: Key for what this side sends.
        receive_key: Key for what it receives.
        signs_arrays: Whether the data of arrays are signed as well.
    """

    role: bytes
    send_key: bytes
    receive_key: bytes
    signs_arrays: bool = False


def handshake(key: bytes, role: bytes, *, signs_arrays: bool = False) -> Generator[tuple[bytes, int], bytes, Session]:
    """Go through a handshake without touching a socket.

    Args:
        key: The secret of both sides.
        role: Role of this side.
        signs_arrays: Whether the driver wants the data of arrays to be signed; only drivers say so.

    Yields:
        What to send, and how many bytes of the peer to answer with; there may be none.

    Returns:
        The session.

    Raises:
        AuthenticationError: The peer does not know the key, or speaks another protocol.
    """
    mine = _PROTOCOL + role + _FLAGS[signs_arrays] + secrets.token_bytes(_NONCE)
    theirs = yield mine, len(mine)
    if not theirs.startswith(_PROTOCOL):
        raise AuthenticationError("the peer speaks another protocol")
    is_worker = role == SERVE
    greeting, answer = (theirs, mine) if is_worker else (mine, theirs)
    driver_role, worker_role = (one[len(_PROTOCOL) : len(_PROTOCOL) + 1] for one in (greeting, answer))
    if driver_role not in (WORK, CONTROL) or worker_role != SERVE:
        raise AuthenticationError(f"the roles are {driver_role!r} and {worker_role!r}; expected a driver and a worker")

    def derived(label: bytes) -> bytes:
        return hmac.digest(key, label + greeting + answer, "sha256")

    sides = (b"worker", b"driver") if is_worker else (b"driver", b"worker")
    mine, expected = (derived(side) for side in sides)
    # the worker's comes last, so that a driver that has it was not sent away before
    proof = yield (b"" if is_worker else mine), _PROOF
    if is_worker:
        yield mine, 0
    if not hmac.compare_digest(proof, expected):
        raise AuthenticationError("the peer does not know the key")
    keys = [derived(b"key of the " + side) for side in sides]
    signs = greeting[len(_PROTOCOL) + 1 : len(_PROTOCOL) + 2] == _FLAGS[True]
    return Session(driver_role, keys[0], keys[1], signs)
