"""Damaged messages: a named error or a lost connection, on either side, and never more memory than they bring.

Some are damaged on their way; others come from a peer with the key, which signs what it has damaged.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from orchestrator.ray import outage
from orchestrator.ray.connection import Link
from orchestrator.ray.requests import NoReplyError
from tests.support.agents import NullAgent
from tests.support.connections import HEADER, KEY, Bounded, BuiltWorker
from tests.support.parity import assert_same
from tests.support.processes import PATIENCE
from tests.support.schedule import examples
from tests.support.service import spec, tick
from workers.errors import EnvError, Failure
from workers.frameworks import load_framework
from workers.pickling import dumps
from workers.remote.channel import Channel
from workers.remote.control import Controls
from workers.remote.dialing import dial
from workers.remote.handshake import CONTROL, WORK
from workers.remote.layout import DamagedError
from workers.remote.listener import Listener
from workers.remote.log import LogEntry
from workers.remote.messages import check_reply, dump_reply, dump_request, load_reply
from workers.remote.replies import Reply
from workers.remote.segment import Offer
from workers.remote.wire import Packed, read_outcome, to_wire
from workers.types import Outcome

TORCH = load_framework("torch")
EXTREMES = (0, 1, 63, 64, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


class Damaging(Channel):
    """Channel that signs what it has damaged."""

    damage: Callable[[bytes], bytes] | None = None

    def write(self, encoded: tuple[bytes, Any]) -> None:
        if self.damage is not None:
            encoded = self.damage(encoded[0]), encoded[1]
        super().write(encoded)


class Garbling:
    """Socket that damages what it sends after it was signed."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def send(self, data: bytes) -> int:
        changed = some_bytes_changed(data)
        while changed.startswith(data):  # it only has something behind it
            changed = some_bytes_changed(data)
        self._sock.sendall(changed)
        return len(data)


def some_bytes_changed(data: bytes) -> bytes:
    changed = bytearray(data)
    how = random.randrange(4)
    place = random.randrange(len(data))
    if how == 0:
        del changed[place : place + random.randrange(1, 9)]
    elif how == 1:
        changed[place:place] = random.randbytes(random.randrange(1, 9))
    else:
        for _ in range(random.randrange(1, 4)):
            changed[random.randrange(len(data))] = random.randrange(256)
    return bytes(changed) if changed != data else some_bytes_changed(data)


def header_changed(message: bytes) -> bytes:
    fields = list(HEADER.unpack_from(message))
    place = random.randrange(len(fields))
    value = random.choice((*EXTREMES, fields[place] + 1, random.getrandbits(8)))
    for name in "QQiiQQQQB"[place]:
        bits = 8 * struct.calcsize(f"<{name}")
        value %= 2**bits
        fields[place] = value - 2**bits if name == "i" and value >= 2 ** (bits - 1) else value
    return HEADER.pack(*fields) + message[HEADER.size :]


def content_changed(message: bytes) -> bytes:
    return message[: HEADER.size] + some_bytes_changed(message[HEADER.size :])


DAMAGES = (some_bytes_changed, header_changed, content_changed)


@pytest.fixture
def worker() -> Iterator[BuiltWorker]:
    one = BuiltWorker()
    yield one
    one.close()


@pytest.fixture
def _measured() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
REQUESTS: tuple[tuple[str, tuple[Any, ...], Packed | None, Offer | None], ...] = (
    ("tick", (tick(5), 1), None, None),
    ("collect", (), None, None),
    ("statistics", (), None, None),
    ("export", (), None, None),
    ("build", (spec(NullAgent),), None, None),
    ("act", (tick(5),), to_wire((TORCH.from_numpy(ROWS), None, {"a": {1: "text"}, "b": ROWS}), TORCH), None),
    ("tick", (tick(6), 1), None, Offer(1, 5, "lockstep-" + "0" * 32, 4096)),
)


@pytest.mark.fuzz
@pytest.mark.usefixtures("_measured")
def test_a_worker_survives_damaged_messages(worker: BuiltWorker):
    random.seed(3)
    answers = {"ok": 0, "error": 0, "hung up": 0}
    for number in range(examples(400, long=5000)):
        method, args, packed, offer = random.choice(REQUESTS)
        sock, session = dial(worker.address, KEY, WORK, timeout=PATIENCE, signs_arrays=True)
        channel = Damaging(sock, session, dumps)
        if number % 3:
            channel.damage = random.choice(DAMAGES)
        else:
            channel._sock = Garbling(sock)  # type: ignore[assignment]
        seq = worker.service._last + 1
        worker.service.halt(seq)  # it may ask for any number of iterations
        with Bounded(10_000):
            with suppress(OSError):  # it hung up already
                channel.send(seq, dump_request(method, args, offer), packed, ack=seq)
                sock.shutdown(socket.SHUT_WR)  # else it may wait for more
            try:
                message = channel.receive(PATIENCE)
                assert message is not None
                reply = load_reply(message.seq, message.plain, message.packed)
                assert number % 3, "a message that was damaged on its way was answered"
                if reply.status == "error":
                    check_reply(reply, method)
                answers[reply.status] += 1
            except (EOFError, OSError):
                answers["hung up"] += 1
        channel.close()
    assert all(answers.values()), answers
    assert worker.ask("collect").status == "ok"


@pytest.mark.fuzz
def test_control_survives_damaged_messages(worker: BuiltWorker):
    random.seed(4)
    for number in range(examples(100, long=1000)):
        sock, session = dial(worker.address, KEY, CONTROL, timeout=PATIENCE)
        channel = Damaging(sock, session, dumps)
        if number % 2:
            channel.damage = random.choice(DAMAGES)
        else:
            channel._sock = Garbling(sock)  # type: ignore[assignment]
        packed = REQUESTS[5][2] if number % 5 == 0 else None
        with suppress(OSError, EOFError):
            channel.send(number, struct.pack("<q", 0), packed)
            sock.shutdown(socket.SHUT_WR)
            channel.receive(PATIENCE)
        channel.close()
    controls = Controls({0: (worker.address, KEY)})
    assert controls.ping([0], PATIENCE)[0] is not None
    controls.close()
    assert worker.ask("tick", tick(9), 3).status == "ok"


OUTCOME = Outcome(
    TORCH.from_numpy(ROWS),
    TORCH.from_numpy(ROWS + 1),
    TORCH.from_numpy(ROWS + 2),
    TORCH.from_numpy(ROWS + 3),
    {
        "a": ROWS + 4,
        "_a": np.array([True, False, True]),
        "text": np.array(["x", None, 3], object),
        "fields": np.array([(1.5, b"x"), (2.5, b"yz"), (3.5, b"")], [("number", "f4"), ("text", "S2")]),
        "b": {5: 2.5},
    },
)
FAILURE = Failure(scope=1, rows=(3, 5), phase="act", timestep=7, node="here", kind="ValueError", message="oh no")
REPLIES: tuple[tuple[str, Any], ...] = (
    ("tick", OUTCOME),
    ("tick", (FAILURE, FAILURE)),
    ("collect", {"a": 1.5, "b": 2.0}),
    ("restart", None),
)


class FalseWorker:
    """A worker that damages its reply the first time, and the second time not.

    Attributes:
        damage: How it damages the next reply before it signs it; None for after.
        hangs_up: Whether it closes the connection after a damaged reply.
    """

    def __init__(self) -> None:
        self.damage: Callable[[bytes], bytes] | None = None
        self.to_send: Any = None
        self._sent_damaged = 0
        self.hangs_up = True
        self._listener = Listener(KEY, self._let_in)
        self.address = self._listener.open(None)

    def _let_in(self, sock: socket.socket, session: Any) -> None:
        threading.Thread(target=self._serve, args=(sock, session), daemon=True).start()

    def _serve(self, sock: socket.socket, session: Any) -> None:
        channel = Damaging(sock, session, dumps)
        with suppress(OSError, EOFError):
            while (message := channel.receive()) is not None:
                is_first = message.seq > self._sent_damaged
                self._sent_damaged = max(self._sent_damaged, message.seq)
                channel.damage = self.damage if is_first else None
                channel._sock = sock if not is_first or self.damage else Garbling(sock)  # type: ignore[assignment]
                status = "error" if isinstance(self.to_send, tuple) and self.to_send[0] is FAILURE else "ok"
                payload = to_wire(OUTCOME, TORCH) if self.to_send is OUTCOME else self.to_send
                log = (LogEntry(30, "a warning"),) if message.seq % 4 == 0 else ()
                channel.send(message.seq, *dump_reply(Reply(status, message.seq, payload, log)))  # type: ignore[arg-type]
                if is_first and self.hangs_up:
                    sock.shutdown(socket.SHUT_WR)  # else the driver may wait for more
        channel.close()

    def close(self) -> None:
        self._listener.shut()


@pytest.mark.fuzz
@pytest.mark.usefixtures("_measured")
def test_a_driver_survives_damaged_messages(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(outage, "_PAUSE", 0)
    monkeypatch.setattr(outage.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(outage, "death_of", lambda _: None)
    random.seed(5)
    worker = FalseWorker()
    link = Link(worker.address, KEY, sign_arrays=True)
    read = 0
    for number in range(1, examples(400, long=5000) + 1):
        method, worker.to_send = random.choice(REPLIES)
        worker.damage = random.choice(DAMAGES) if number % 3 else None
        with Bounded(10_000):
            link.send(number, method, (tick(1), 1) if method == "tick" else (), ack=number)
            try:
                reply = link.receive(number, PATIENCE)
                assert reply is not None
                check_reply(reply, method)
                read += 1
                if isinstance(reply.payload, Packed):
                    outcome = read_outcome(reply.payload, TORCH, 3)
                    if number % 3 == 0:
                        assert_same(outcome, read_outcome(to_wire(OUTCOME, TORCH), TORCH, 3))
                elif number % 3 == 0:
                    assert reply.payload == worker.to_send
            except (NoReplyError, DamagedError, EnvError):
                assert number % 3, "what was damaged on its way is sent again"
    assert read > number // 3
    link.close()
    worker.close()


@pytest.mark.parametrize("seq", [0, 2, 7, 2**62])
def test_a_reply_that_nobody_asked_for_drops_the_connection(seq: int):
    """The number of the next reply is 1."""
    worker = FalseWorker()
    worker.to_send, worker.hangs_up = {"a": 1.0}, False
    worker.damage = lambda message: HEADER.pack(seq, *HEADER.unpack_from(message)[1:]) + message[HEADER.size :]
    link = Link(worker.address, KEY)
    link.send(1, "collect", (), ack=1)
    first = link._channel
    reply = link.receive(1, PATIENCE)
    assert reply is not None
    assert reply.payload == {"a": 1.0}
    assert link._channel is not first
    link.close()
    worker.close()
