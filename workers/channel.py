"""One end of an authenticated connection between a driver and a worker: whole messages, in order."""

from __future__ import annotations

import hmac
import pickle
import secrets
import select
import socket
import struct
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from workers.wire import Packed

__all__ = [
    "AuthenticationError",
    "Channel",
    "Message",
    "UnreadableError",
    "as_connection",
    "authenticate",
    "set_timeout",
]

_HEADER = struct.Struct("<QQiiQIIQQ8x")
"""seq, ack, slot, number of the layout, length of the plain part, of the spec, place of the data, length of the other
leaves, of the data; 64 bytes, so that what follows is aligned."""

_HERE, _APART, _SHARED = range(3)
"""Where the data are: in the message, in a message of their own after it, in shared memory."""

_APART_FROM = 16384
"""Bytes from which data are not copied into one message with the rest."""

_MAX_LAYOUTS = 64
_SCALARS = {bool, int, float, str, bytes, type(None)}

_GREETING = b"lockstep 1\n"
_NONCE = 32
_LONGEST_GREETING = 256


class AuthenticationError(ConnectionError):
    """The peer does not know the key, or speaks another language."""


class UnreadableError(Exception):
    """A message came whole, but cannot be unpickled.

    Attributes:
        seq: Number of its request.
    """

    def __init__(self, seq: int, reason: str) -> None:
        self.seq = seq
        super().__init__(reason)


class Message(NamedTuple):
    """A request or a reply.

    Attributes:
        seq: Number of the request.
        ack: Requests before this one will not be sent again.
        slot: Slot of shared memory that a reply may use, -1 for none.
        plain: What it says, besides arrays.
        packed: Its arrays, or None.
    """

    seq: int
    ack: int
    slot: int
    plain: Any
    packed: Packed | None


def as_connection(sock: socket.socket, *, timeout: float) -> Connection[Any, Any]:
    """A connection over a connected TCP socket, whose single reads and writes wait for `timeout` seconds at most."""
    sock.setblocking(True)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection: Connection[Any, Any] = Connection(sock.detach())
    set_timeout(connection, timeout)
    return connection


def set_timeout(connection: Connection[Any, Any], timeout: float) -> None:
    """Let single reads and writes fail after so many seconds; 0 for never."""
    seconds, rest = divmod(timeout, 1)
    with socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as sock:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(seconds), int(rest * 1e6)))


def authenticate(connection: Connection[Any, Any], key: bytes, *, as_worker: bool) -> None:
    """Prove to the peer that this side knows the key, and let it prove the same, before anything is unpickled.

    Each side sends a random number and answers the other's with HMAC-SHA256, in which it names its role, so that an
    answer cannot be sent back to where it came from. (Python's own handshake uses MD5 before 3.12.)

    Raises:
        AuthenticationError: The peer does not know the key.
        OSError: It does not answer in time, or hangs up.
    """
    mine, other = (b"worker", b"driver") if as_worker else (b"driver", b"worker")
    nonce = secrets.token_bytes(_NONCE)
    connection.send_bytes(_GREETING + nonce)
    try:
        greeting = connection.recv_bytes(_LONGEST_GREETING)
        if not greeting.startswith(_GREETING) or len(greeting) != len(_GREETING) + _NONCE:
            raise AuthenticationError("the peer speaks another language")
        theirs = greeting[len(_GREETING) :]
        connection.send_bytes(hmac.digest(key, mine + theirs + nonce, "sha256"))
        proof = connection.recv_bytes(_LONGEST_GREETING)
    except EOFError as error:
        raise AuthenticationError("the peer hung up") from error
    if not hmac.compare_digest(proof, hmac.digest(key, other + nonce + theirs, "sha256")):
        raise AuthenticationError("the peer does not know the key")


class Channel:
    """One end of a connection that is authenticated.

    Layouts of packed trees are sent once, and by number after that.
    """

    def __init__(self, connection: Connection[Any, Any], dumps: Callable[[Any], bytes]) -> None:
        """Use an authenticated connection.

        Args:
            connection: The connection.
            dumps: Pickles leaves that are no arrays, also of classes that the other side cannot import.
        """
        self._connection = connection
        self._dumps = dumps
        self._poller = select.poll()
        self._poller.register(connection.fileno(), select.POLLIN)
        self._sent: dict[Any, int] = {}
        self._received: dict[int, Any] = {}

    def send(self, seq: int, plain: bytes, packed: Packed | None = None, *, ack: int = 0, slot: int = -1) -> None:
        """Send a message; see `Message`. `plain` is pickled.

        Raises:
            OSError: The connection is lost.
            Exception: A leaf cannot be pickled; nothing was sent then.
        """
        if packed is None:
            self._connection.send_bytes(_HEADER.pack(seq, ack, slot, -1, len(plain), 0, 0, 0, 0) + plain)
            return
        spec, others, data, size = packed
        pickled_others = self._pickle_others(others) if others else b""
        number, pickled_spec = self._sent.get(spec, -1), b""
        if number < 0:
            pickled_spec = self._dumps(spec)
            if len(self._sent) == _MAX_LAYOUTS:
                self._sent.clear()
            number = len(self._sent)
        place = _SHARED if data is None else _APART if size >= _APART_FROM else _HERE
        header = _HEADER.pack(seq, ack, slot, number, len(plain), len(pickled_spec), place, len(pickled_others), size)
        here = data if place == _HERE else b""
        self._connection.send_bytes(b"".join((header, here, plain, pickled_spec, pickled_others)))
        if place == _APART:
            self._connection.send_bytes(data)
        self._sent[spec] = number

    def _pickle_others(self, others: tuple[Any, ...]) -> bytes:
        if _SCALARS.issuperset(map(type, others)):
            return pickle.dumps(others, pickle.HIGHEST_PROTOCOL)
        return self._dumps(others)

    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message; None if none has begun to come in after `timeout` seconds.

        The data of a packed tree that lie in shared memory are None.

        Raises:
            OSError: The connection is lost, or stalled in the middle of a message.
            EOFError: The other side has hung up.
            UnreadableError: Something cannot be unpickled; the message is used up then.
        """
        if timeout is not None and not self._poller.poll(min(max(0.0, timeout), 1e6) * 1e3):
            return None
        frame = memoryview(self._connection.recv_bytes())
        seq, ack, slot, number, plain_size, spec_size, place, others_size, size = _HEADER.unpack_from(frame)
        start = _HEADER.size + (size if place == _HERE else 0)
        data: Any = None
        if place == _APART:
            data = bytearray(size)
            self._connection.recv_bytes_into(data)
        elif place == _HERE:
            data = bytearray(frame[_HEADER.size : start])
        parts = frame[start:]
        packed = None
        try:
            if number >= 0:
                if spec_size:
                    self._received[number] = pickle.loads(parts[plain_size : plain_size + spec_size])
                others = pickle.loads(parts[plain_size + spec_size :]) if others_size else ()
                packed = Packed(self._received[number], others, data, size)
            return Message(seq, ack, slot, pickle.loads(parts[:plain_size]), packed)
        except Exception as error:
            raise UnreadableError(seq, f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Hang up."""
        self._connection.close()
