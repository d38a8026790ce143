"""Channel: messages arrive complete and in order; nothing is unpickled before both sides authenticate."""

from __future__ import annotations

import pickle
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from ray import cloudpickle

from tests.support.odd_infos import Unreadable
from tests.support.parity import assert_same
from tests.support.processes import PATIENCE
from workers.frameworks import load_framework
from workers.remote.channel import AuthenticationError, Channel, UnreadableError, authenticate, prepare
from workers.remote.wire import Packed, from_wire, to_wire

KEY = b"k" * 32
NUMPY = load_framework("numpy")
PLAIN = b"plain"


def pair(timeout: float = PATIENCE) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), timeout=PATIENCE)
        server, _ = listener.accept()
    for end in (client, server):
        prepare(end, timeout=timeout)
    return client, server


@pytest.fixture
def channels() -> Iterator[tuple[Channel, Channel]]:
    ends = pair()
    one, other = (Channel(end, cloudpickle.dumps) for end in ends)
    yield one, other
    one.close()
    other.close()


def in_background(function: Any, *args: Any, **options: Any) -> Any:
    """Call a function in a thread; return a function that waits for its result or raises its exception."""
    outcome: list[Any] = []

    def call() -> None:
        try:
            outcome.append((function(*args, **options), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()

    def result() -> Any:
        thread.join(PATIENCE)
        assert outcome, "it did not return"
        value, error = outcome[0]
        if error is not None:
            raise error
        return value

    return result


def greet(driver_key: bytes, worker_key: bytes) -> list[Any]:
    """Return what each side of a handshake raises, None for nothing."""
    driver, worker = pair()
    calls = [
        in_background(authenticate, driver, driver_key, as_worker=False),
        in_background(authenticate, worker, worker_key, as_worker=True),
    ]
    raised = []
    for call in calls:
        try:
            raised.append(call())
        except Exception as error:
            raised.append(error)
    driver.close()
    worker.close()
    return raised


def test_both_sides_know_the_key():
    assert greet(KEY, KEY) == [None, None]


def test_another_key_is_refused_by_both_sides():
    driver, worker = greet(KEY, b"x" * 32)
    assert isinstance(driver, AuthenticationError)
    assert isinstance(worker, AuthenticationError)
    assert "does not know the key" in str(driver)


def test_an_answer_cannot_be_sent_back_to_where_it_came_from():
    """A peer that lacks the key and mirrors everything is rejected, whichever side it pretends to be."""
    for as_worker in (False, True):
        victim, mirror = pair()
        refused = in_background(authenticate, victim, KEY, as_worker=as_worker)
        for _ in range(2):
            mirror.sendall(mirror.recv(1000))
        with pytest.raises(AuthenticationError, match="does not know the key"):
            refused()
        victim.close()
        mirror.close()


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("first", ["pickle", "short greeting", "endless greeting"])
def test_nothing_of_a_stranger_is_unpickled(tmp_path: Path, first: str):
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    victim, stranger = pair(timeout=0.5)
    refused = in_background(authenticate, victim, KEY, as_worker=True)
    stranger.sendall({"pickle": bomb, "short greeting": b"lockstep 2\n", "endless greeting": b"x" * 100_000}[first])
    with pytest.raises(OSError, match=r"protocol|timed out"):
        refused()
    stranger.close()
    victim.close()
    assert not list(tmp_path.iterdir())


def test_a_peer_that_says_nothing_or_drips_is_given_up_in_time():
    for drip in (False, True):
        victim, slow = pair(timeout=0.5)
        refused = in_background(authenticate, victim, KEY, as_worker=True)
        if drip:
            for byte in b"lockstep":
                slow.sendall(bytes([byte]))
        with pytest.raises(TimeoutError):
            refused()
        victim.close()
        slow.close()


def receive(channel: Channel) -> Any:
    message = channel.receive(30)
    assert message is not None
    return message


TREES = {
    "scalars": (1, 2.5, "text", None, b"bytes"),
    "arrays": {"a": np.arange(6.0).reshape(2, 3), "b": (np.array([True, False]), np.zeros((0, 4), np.int8))},
    "large": np.arange(300_000),
    "columns": np.arange(60_000).reshape(2, -1).T,
    "times": np.array(["2020-01-01", "2021-02-03"], dtype="datetime64[D]"),
    "objects": np.array([None, "x", 3], dtype=object),
    "records": np.array([(1, 2.0)], dtype=[("a", np.int32), ("b", np.float64)]),
}


def test_trees_arrive(channels: tuple[Channel, Channel]):
    one, other = channels
    for sender, receiver in (channels, (other, one)):
        for _ in range(2):
            for seq, (name, tree) in enumerate(TREES.items()):
                packed = to_wire(tree, NUMPY)
                sent = in_background(sender.send, seq, name.encode(), packed, ack=7, slot=3)
                message = receive(receiver)
                sent()
                assert message[:4] == (seq, 7, 3, name.encode())
                expected = from_wire(to_wire(tree, NUMPY), NUMPY)
                assert_same(from_wire(message.packed, NUMPY), expected)
        for size in (0, 9, 200_000):
            sent = in_background(sender.send, 9, b"p" * size)
            assert receive(receiver)[3:] == (b"p" * size, None)
            sent()


class Local(NamedTuple):
    rows: Any


def test_a_layout_is_described_once(channels: tuple[Channel, Channel]):
    one, other = channels
    described: list[Any] = []
    one._dumps = lambda spec: described.append(spec) or cloudpickle.dumps(spec)  # type: ignore[func-returns-value]
    sizes = [3, 4] * 3 + list(range(100)) + [3, 4]
    for seq, size in enumerate(sizes):
        rows = np.full((size, 2), seq, np.float32)
        one.send(seq, PLAIN, to_wire(Local(rows), NUMPY))
        assert_same(from_wire(receive(other).packed, NUMPY), Local(rows))
    # layout numbers start again after 64
    assert len(described) == 100 + 2


def test_values_of_classes_that_cannot_be_imported_arrive(channels: tuple[Channel, Channel]):
    class Here:
        def __init__(self, value: int) -> None:
            self.value = value

    one, other = channels
    one.send(1, PLAIN, to_wire({"x": Here(5), "y": 2}, NUMPY, dumps=cloudpickle.dumps))
    received = from_wire(receive(other).packed, NUMPY)
    assert received["x"].value == 5
    assert received["y"] == 2


def test_layouts_that_cannot_be_pickled_are_not_sent_and_those_that_cannot_be_unpickled_are_used_up(
    channels: tuple[Channel, Channel],
):
    one, other = channels
    data = bytes(10_000)
    with pytest.raises(TypeError, match="lock"):
        one.send(1, PLAIN, Packed((threading.Lock(),), (), data, len(data)))
    one.send(2, PLAIN, Packed((Unreadable(),), (), data, len(data)))
    one.send(3, PLAIN, to_wire({"x": 1, "large": np.zeros(10_000)}, NUMPY))
    with pytest.raises(UnreadableError, match="LookupError: no licence") as caught:
        receive(other)
    assert caught.value.seq == 2
    assert from_wire(receive(other).packed, NUMPY)["x"] == 1


def test_messages_that_come_together_are_told_apart(channels: tuple[Channel, Channel]):
    """Together they exceed the buffer; single sizes are around the buffer's size."""
    one, other = channels
    sizes = [0, 1, 63, 64, 1000, 65_400, 65_536, 65_600, 200_000, 5, 16_384, 16_385] * 3

    def send_all() -> None:
        for seq, size in enumerate(sizes):
            one.send(seq, b"p" * (seq * 700), to_wire(np.full(size, seq, np.uint8), NUMPY))

    sent = in_background(send_all)
    for seq, size in enumerate(sizes):
        message = receive(other)
        assert (message.seq, message.plain) == (seq, b"p" * (seq * 700))
        assert from_wire(message.packed, NUMPY).tolist() == [seq] * size
    sent()


def test_waiting_ends(channels: tuple[Channel, Channel]):
    one, other = channels
    assert one.receive(0.001) is None
    assert one.receive(0.05) is None
    other.close()
    with pytest.raises(EOFError):
        one.receive(30)


@pytest.mark.parametrize("sent", [10, 64, 70])
def test_a_message_that_stalls_is_an_error(sent: int):
    victim, stalled = pair()
    whole, other = pair()
    Channel(whole, pickle.dumps).send(1, PLAIN, to_wire(np.zeros(1000), NUMPY))
    stalled.sendall(other.recv(sent))
    channel = Channel(victim, pickle.dumps, stall_timeout=0.2)
    with pytest.raises(BlockingIOError):
        channel.receive(30)
    for end in (victim, stalled, whole, other):
        end.close()


def test_data_in_shared_memory_are_not_sent(channels: tuple[Channel, Channel]):
    one, other = channels
    into = memoryview(bytearray(4096))
    tree = {"a": np.arange(100.0), "b": np.array([True])}
    packed = to_wire(tree, NUMPY, into)
    assert packed.data is None
    one.send(1, PLAIN, packed)
    received: Packed = receive(other).packed
    assert received.data is None
    assert_same(from_wire(received._replace(data=into), NUMPY), tree)
    assert to_wire(np.zeros(5000, np.int8), NUMPY, into).data is not None  # does not fit


def test_a_message_that_is_not_written_describes_nothing(channels: tuple[Channel, Channel]):
    one, other = channels
    tree = Local(np.arange(6.0))
    one.encode(1, PLAIN, to_wire(tree, NUMPY))
    for seq in (2, 3):
        one.send(seq, PLAIN, to_wire(tree, NUMPY))
        assert_same(from_wire(receive(other).packed, NUMPY), tree)
