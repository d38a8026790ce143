"""One end of an authenticated connection between a driver and a worker: whole messages, in order.

A small message takes one system call to send and one to receive. (`multiprocessing.connection` takes three to receive
it, which is most of its cost.)
"""

from __future__ import annotations

import hmac
import pickle
import secrets
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any, NamedTuple

from workers.errors import ends_process, message_of
from workers.remote.wire import Packed

__all__ = [
    "CONTROL",
    "WORK",
    "Address",
    "AuthenticationError",
    "Channel",
    "Message",
    "UnreadableError",
    "authenticate",
    "dial",
    "prepare",
]

WORK, CONTROL = b"w", b"c"
"""What a connection is for, told by the driver after the handshake: requests, or what is answered beside them."""

_HEADER = struct.Struct("<QQiiQQQQ?7x")
"""seq, ack, slot, number of the layout, lengths of the plain part, the spec, the other leaves and the data, and whether
the data are in the message."""

_BUFFER = 64 * 1024
_JOINED = 16 * 1024
"""Largest data, in bytes, that are sent in one piece with the rest of the message."""

_MAX_LAYOUTS = 64

_GREETING = b"lockstep 2\n"
_NONCE = 32
_PROOF = 32
_SHORTEST_WAIT = 1e-3


class Address(NamedTuple):
    """Where a worker listens.

    Attributes:
        host: Host, for TCP.
        port: Port, for TCP.
        name: Name of a Unix socket on the worker's machine; empty if there is none.
    """

    host: str
    port: int
    name: bytes = b""


class AuthenticationError(ConnectionError):
    """The peer does not know the key, or speaks another protocol."""


class UnreadableError(Exception):
    """A message is complete, but cannot be unpickled.

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
        slot: Slot of shared memory that the reply may use, -1 for none.
        plain: Content without arrays; see `workers.remote.messages`.
        packed: Its arrays, or None.
    """

    seq: int
    ack: int
    slot: int
    plain: bytes
    packed: Packed | None


def prepare(sock: socket.socket, *, timeout: float) -> None:
    """Configure a connected socket, with a time limit for the handshake in seconds."""
    sock.settimeout(timeout)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def authenticate(sock: socket.socket, key: bytes, *, as_worker: bool) -> None:
    """Prove to the peer that this side knows the key, and verify that the peer does, before anything is unpickled.

    Each side sends a random number and answers the other's with an HMAC-SHA256 that includes its role, so that an
    answer cannot be sent back to its author.

    Raises:
        AuthenticationError: The peer does not know the key, or closes the connection.
        OSError: It does not answer in time, or the connection is lost.
    """
    deadline = monotonic() + (sock.gettimeout() or 0.0)
    mine, other = (b"worker", b"driver") if as_worker else (b"driver", b"worker")
    nonce = secrets.token_bytes(_NONCE)
    sock.sendall(_GREETING + nonce)
    greeting = _exactly(sock, len(_GREETING) + _NONCE, deadline)
    if not greeting.startswith(_GREETING):
        raise AuthenticationError("the peer speaks another protocol")
    theirs = greeting[len(_GREETING) :]
    sock.sendall(hmac.digest(key, mine + theirs + nonce, "sha256"))
    proof = _exactly(sock, _PROOF, deadline)
    if not hmac.compare_digest(proof, hmac.digest(key, other + nonce + theirs, "sha256")):
        raise AuthenticationError("the peer does not know the key")


def dial(address: Address, key: bytes, role: bytes, *, timeout: float) -> socket.socket:
    """Return an authenticated connection to a worker: on its machine over a Unix socket, which takes half the time.

    Args:
        address: Where the worker listens.
        key: Secret that only this worker knows.
        role: `WORK` or `CONTROL`.
        timeout: Time for each step, in seconds.

    Raises:
        OSError: The worker cannot be connected to, or does not know the key.
    """
    sock = _connected(address, timeout)
    try:
        prepare(sock, timeout=timeout)
        authenticate(sock, key, as_worker=False)
        sock.sendall(role)
    except BaseException:
        sock.close()
        raise
    return sock


def _connected(address: Address, timeout: float) -> socket.socket:
    if address.name:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(timeout)
            sock.connect(address.name)
            return sock
        except OSError:  # the worker is on another machine
            sock.close()
    return socket.create_connection((address.host, address.port), timeout=timeout)


def _exactly(sock: socket.socket, count: int, deadline: float) -> bytes:
    """Return exactly `count` bytes, received before the deadline."""
    received = b""
    while len(received) < count:
        sock.settimeout(max(_SHORTEST_WAIT, deadline - monotonic()))
        part = sock.recv(count - len(received))
        if not part:
            raise AuthenticationError("the peer closed the connection")
        received += part
    return received


class Channel:
    """One end of an authenticated connection.

    The layout of a packed tree is sent once, and by number after that.
    """

    def __init__(
        self,
        sock: socket.socket,
        dumps: Callable[[Any], bytes],
        *,
        stall_timeout: float = 0,
        catches: type[BaseException] = Exception,
    ) -> None:
        """Use an authenticated connection.

        Args:
            sock: The connection.
            dumps: Pickles layouts, including keys of classes that the peer cannot import.
            stall_timeout: Seconds for which the peer may neither send nor receive anything in the middle of a message;
                0 for no limit.
            catches: What a class that cannot be unpickled may raise. `Exception`: an interrupt belongs to this program.
        """
        sock.settimeout(None)  # the system keeps the time, which saves a call
        self._sock = sock
        self._dumps = dumps
        self._stall_timeout = stall_timeout
        self._catches = catches
        self._timeout = -1.0
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(stall_timeout))
        self._buffer = memoryview(bytearray(_BUFFER))
        self._start = self._stop = 0
        self._sent: dict[Any, int] = {}
        self._new: tuple[Any, int] | None = None  # a layout that the next message describes
        self._received: dict[int, Any] = {}

    def send(self, seq: int, plain: bytes, packed: Packed | None = None, *, ack: int = 0, slot: int = -1) -> None:
        """Send a message; see `Message`, `encode` and `write`."""
        self.write(self.encode(seq, plain, packed, ack=ack, slot=slot))

    def encode(
        self, seq: int, plain: bytes, packed: Packed | None = None, *, ack: int = 0, slot: int = -1
    ) -> tuple[bytes, ...]:
        """Return a message in the parts that `write` sends next; see `Message`.

        Raises:
            Exception: The layout cannot be pickled; nothing needs to be sent.
        """
        self._new = None
        if packed is None:
            return (_HEADER.pack(seq, ack, slot, -1, len(plain), 0, 0, 0, True) + plain,)
        spec, others, data, size = packed
        pickled_others = pickle.dumps(others, pickle.HIGHEST_PROTOCOL) if others else b""
        number, pickled_spec = self._sent.get(spec, -1), b""
        if number < 0:
            pickled_spec = self._dumps(spec)
            if len(self._sent) == _MAX_LAYOUTS:
                self._sent.clear()
            number = len(self._sent)
            self._new = spec, number
        lengths = len(plain), len(pickled_spec), len(pickled_others), size
        head = _HEADER.pack(seq, ack, slot, number, *lengths, data is not None)
        if data is None:
            return (b"".join((head, plain, pickled_spec, pickled_others)),)
        if size <= _JOINED:
            return (b"".join((head, plain, pickled_spec, pickled_others, data)),)
        return b"".join((head, plain, pickled_spec, pickled_others)), data

    def write(self, parts: tuple[bytes, ...]) -> None:
        """Send what `encode` returned.

        Raises:
            OSError: The connection is lost, or stalled.
        """
        for part in parts:
            self._sock.sendall(part)
        if self._new is not None:
            spec, number = self._new
            self._sent[spec] = number
            self._new = None

    def receive(self, timeout: float | None = None) -> Message | None:
        """Return the next message, or None if none starts to arrive within `timeout` seconds; None waits forever.

        The data of a packed tree are None if they are in shared memory.

        Raises:
            OSError: The connection is lost, or stalled in the middle of a message.
            EOFError: The peer closed the connection.
            UnreadableError: The message cannot be unpickled; it is consumed.
        """
        if self._start == self._stop:
            self._start = self._stop = 0
            if len(self._buffer) > _BUFFER:  # it grew for a long message
                self._buffer = memoryview(bytearray(_BUFFER))
            self._set_timeout(0 if timeout is None else max(timeout, _SHORTEST_WAIT))
            try:
                self._read_some()
            except BlockingIOError:
                return None
        self._have(_HEADER.size)
        start = self._start
        seq, ack, slot, number, plain_size, spec_size, others_size, size, is_here = _HEADER.unpack_from(
            self._buffer, start
        )
        self._have(_HEADER.size + plain_size + spec_size + others_size)
        start = self._start + _HEADER.size
        plain = bytes(self._buffer[start : start + plain_size])
        if number < 0:
            self._start = start + plain_size
            return Message(seq, ack, slot, plain, None)
        middle, end = start + plain_size + spec_size, start + plain_size + spec_size + others_size
        pickled_spec, pickled_others = self._buffer[start + plain_size : middle], self._buffer[middle:end]
        self._start = end
        data = self._take(size) if is_here else None
        try:
            if spec_size:
                self._received[number] = pickle.loads(pickled_spec)
            others = pickle.loads(pickled_others) if others_size else ()
            return Message(seq, ack, slot, plain, Packed(self._received[number], others, data, size))
        except self._catches as error:
            if ends_process(error):
                raise
            raise UnreadableError(seq, f"{type(error).__name__}: {message_of(error)}") from error

    def close(self) -> None:
        """Close the connection, even if a forked process also holds the socket."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def _read_some(self) -> None:
        """Read at least one byte into the buffer."""
        self._stop += self._read_into(self._buffer[self._stop :])

    def _read_into(self, memory: memoryview) -> int:
        """Read at least one byte into the memory and return how many."""
        count = self._sock.recv_into(memory)
        if not count:
            raise EOFError("the peer closed the connection")
        return count

    def _have(self, count: int) -> None:
        """Wait until `count` bytes are in the buffer."""
        if self._stop - self._start >= count:
            return
        self._set_timeout(self._stall_timeout)
        if self._start + count > len(self._buffer):
            rest = self._buffer[self._start : self._stop]
            self._buffer = memoryview(bytearray(max(_BUFFER, count)))
            self._buffer[: len(rest)] = rest
            self._start, self._stop = 0, len(rest)
        while self._stop - self._start < count:
            self._read_some()

    def _take(self, count: int) -> bytearray:
        """Return `count` bytes in memory of their own."""
        have = min(count, self._stop - self._start)
        if have == count:
            data = bytearray(self._buffer[self._start : self._start + have])
            self._start += have
        else:
            self._set_timeout(self._stall_timeout)
            data = bytearray(count)
            data[:have] = self._buffer[self._start : self._stop]
            self._start = self._stop
            rest = memoryview(data)[have:]
            while rest:
                rest = rest[self._read_into(rest) :]
        return data

    def _set_timeout(self, seconds: float) -> None:
        """Set the time limit of single reads, in seconds; 0 for none."""
        if seconds != self._timeout:
            self._timeout = seconds
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(seconds))


def _timeval(seconds: float) -> bytes:
    whole, rest = divmod(seconds, 1)
    return struct.pack("ll", int(whole), int(rest * 1e6))
