"""Integrity: what a man in the middle changes is not read, and what is announced takes no memory before it arrives."""

from __future__ import annotations

import copy
import os
import pickle
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.ray.connection import Link
from tests.support.agents import NullAgent
from tests.support.connections import HEADER, KEY, Bounded, BuiltWorker, Relay, in_background, pair, sessions
from tests.support.damage import Bomb
from tests.support.processes import PATIENCE
from tests.support.service import spec, tick
from workers.frameworks import load_framework
from workers.remote.channel import Channel, UnreadableError
from workers.remote.control import Controls
from workers.remote.dialing import Address, dial
from workers.remote.handshake import CONTROL, WORK
from workers.remote.layout import DamagedError, Layout
from workers.remote.wire import Packed, to_wire


@pytest.fixture
def worker() -> Iterator[BuiltWorker]:
    one = BuiltWorker()
    yield one
    one.close()


@pytest.mark.parametrize("role", [WORK, CONTROL])
@pytest.mark.parametrize("to_worker", [True, False])
def test_a_man_in_the_middle_who_relays_the_handshake_is_refused(
    worker: BuiltWorker, tmp_path: Path, role: bytes, to_worker: bool
):
    """He puts a pickle into a message, or repeats, drops or swaps messages. The driver gets through without him."""
    bomb = pickle.dumps(("collect", (Bomb(tmp_path / "exploded"),), None))
    forged = HEADER.pack(1, 1, -1, -1, len(bomb), 0, 0, 0, 0) + bomb
    tricks: list[Callable[[bytes], bytes]] = [
        lambda data: data[:16] + forged,
        lambda data: bytes(16) + forged + data,
        lambda data: data + data,
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    ]
    for trick in tricks:
        relay = Relay((worker.address.host, worker.address.port))
        address = Address(*relay.address)
        link = Link(address, KEY) if role == WORK else None
        controls = Controls({0: (address, KEY)})
        if link is None:
            assert controls.ping([0], PATIENCE)[0] is not None
        played: list[int] = []

        def change(data: bytes, is_worker: bool, trick: Any = trick, played: list[int] = played) -> bytes:
            if is_worker == to_worker or played:
                return data
            played.append(1)
            return bytes(trick(data))

        relay.change = change
        if link is not None:
            seq = worker.service._last + 1
            link.send(seq, "tick", (tick(3), 1), ack=seq)
            reply = link.receive(seq, PATIENCE)
            assert reply is not None
            assert reply.status == "ok"
            link.close()
        else:
            assert controls.ping([0], PATIENCE)[0] is not None
        assert played
        controls.close()
        relay.close()
    assert not list(tmp_path.iterdir())


class Keeping:
    """Socket that keeps what it is to send."""

    def __init__(self) -> None:
        self.sent = bytearray()

    def send(self, data: Any) -> int:
        self.sent += data
        return len(data)


@pytest.mark.parametrize("signs_arrays", [False, True])
def test_data_of_arrays_are_protected_if_asked_for(signs_arrays: bool):
    for size in (100, 100_000):
        ends = pair()
        one, other = (
            Channel(sock, session, pickle.dumps)
            for sock, session in zip(ends, sessions(signs_arrays=signs_arrays), strict=True)
        )
        one._sock = kept = Keeping()  # type: ignore[assignment]
        one.send(1, b"", to_wire(np.zeros(size), load_framework("numpy")))
        done = in_background(ends[0].sendall, kept.sent[:-1] + b"\1")
        if signs_arrays:
            with pytest.raises(DamagedError, match="not what the peer has sent"):
                other.receive(PATIENCE)
        else:
            assert other.receive(PATIENCE) is not None
        done()
        for end in ends:
            end.close()


def test_memory_grows_with_what_arrives():
    """A header may announce a terabyte."""
    for place in (4, 7):
        ends = pair()
        mine, _ = sessions()
        channel = Channel(ends[0], mine, pickle.dumps)
        channel._received[3] = Layout((), 2**40 - 1, 0)
        fields = [1, 1, -1, -1, 0, 0, 0, 0, 0]
        fields[place] = 2**40 - 1
        if place == 7:
            fields[3], fields[8] = 3, 1
        arrived = 50_000_000
        done = in_background(ends[1].sendall, bytes(16) + HEADER.pack(*fields) + bytes(arrived))
        tracemalloc.start()
        with Bounded(arrived):
            received = in_background(channel.receive, PATIENCE)
            done()
            ends[1].close()
            with pytest.raises(EOFError):
                received()
        tracemalloc.stop()
        channel.close()


def test_a_large_content_takes_its_memory_once():
    ends = pair()
    mine, peers = sessions()
    content = bytes(80_000_000)
    sender = Channel(ends[0], mine, pickle.dumps)
    sender._sock = kept = Keeping()  # type: ignore[assignment]
    sender.send(1, content)
    receiver = Channel(ends[1], peers, pickle.dumps)
    tracemalloc.start()
    with Bounded(len(content)):
        done = in_background(ends[0].sendall, kept.sent)
        message = receiver.receive(PATIENCE)
    done()
    tracemalloc.stop()
    assert message is not None
    assert message.plain == content
    for end in ends:
        end.close()


def test_unreadable_layouts_and_damaged_ones_are_told_apart():
    """A class that is missing here is an error of one message; what no layout is ends the connection."""
    ends = pair()
    one, other = (Channel(*end, pickle.dumps) for end in zip(ends, sessions(), strict=True))
    one._dumps = lambda _: b"\x80\x04\x8c\x07nowhere\x8c\x06Nobody\x93."
    one.send(1, b"", Packed(("one",), (), b"", 0))
    with pytest.raises(UnreadableError, match="nowhere"):
        other.receive(PATIENCE)
    one._dumps = pickle.dumps
    one.send(2, b"", Packed(("two",), (), b"", 0))
    with pytest.raises(DamagedError, match="layout"):
        other.receive(PATIENCE)
    for end in ends:
        end.close()


def test_a_damaged_build_does_not_end_the_named_errors(worker: BuiltWorker):
    for damage in (lambda scope: scope.__dict__.pop("index"), lambda scope: scope.__dict__.update(start=None)):
        damaged = spec(NullAgent)
        damage(scope := copy.copy(damaged.scope))
        object.__setattr__(damaged, "scope", scope)
        reply = worker.ask("build", damaged)
        assert (reply.status, reply.payload[0].phase) == ("error", "build")
        assert worker.ask("tick", tick(3), 1).status == "ok"
    assert worker.ask("build", "no description").payload[0].kind == "TypeError"
    assert worker.ask("collect").status == "ok"


def test_connections_that_are_replaced_are_closed(worker: BuiltWorker):
    """The worker is busy meanwhile."""
    go_on = threading.Event()
    worker.service._tick = lambda *_: go_on.wait(PATIENCE) and None  # type: ignore[method-assign]
    busy = Link(worker.address, KEY)
    seq = worker.service._last + 1
    busy.send(seq, "tick", (tick(3), 1), ack=seq)
    assert busy.receive(seq, 0.1) is None
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        dial(worker.address, KEY, WORK, timeout=PATIENCE)[0].close()
    assert len(os.listdir("/proc/self/fd")) <= before + 5
    go_on.set()
    assert worker.ask("collect").status == "ok"
    busy.close()


class Exiting:
    """Ends the program when it is unpickled."""

    def __reduce__(self) -> Any:
        return sys.exit, (3,)


def test_control_survives_what_would_end_a_program(worker: BuiltWorker):
    channel = Channel(*dial(worker.address, KEY, CONTROL, timeout=PATIENCE), pickle.dumps)
    channel.send(1, b"", Packed((Exiting(),), (), b"", 0))
    with pytest.raises((EOFError, ConnectionResetError)):
        channel.receive(PATIENCE)
    channel.close()
    controls = Controls({0: (worker.address, KEY)})
    assert controls.ping([0], PATIENCE)[0] is not None
    controls.close()


def test_a_damaged_request_is_noticed_although_a_child_of_the_worker_holds_the_connection(worker: BuiltWorker):
    channel = Channel(*dial(worker.address, KEY, WORK, timeout=PATIENCE), pickle.dumps)
    channel.send(worker.service._last + 1, pickle.dumps(("collect", (), None)))
    assert channel.receive(PATIENCE) is not None
    (held,) = [one for one in worker.server._current.values()]
    copy_of_child = os.dup(held.fileno())
    channel._sock.sendall(bytes(200))
    with pytest.raises((EOFError, ConnectionResetError)):
        channel.receive(PATIENCE)
    os.close(copy_of_child)
    channel.close()
