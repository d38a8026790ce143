"""Channel: messages arrive complete and in order."""

from __future__ import annotations

import pickle
import threading
import tracemalloc
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from ray import cloudpickle

from tests.support.connections import in_background, pair, sessions
from tests.support.odd_infos import Unreadable
from tests.support.parity import assert_same
from workers.frameworks import load_framework
from workers.remote.channel import Channel, UnreadableError
from workers.remote.wire import Packed, from_wire, to_wire

NUMPY = load_framework("numpy")
PLAIN = b"plain"


@pytest.fixture
def channels() -> Iterator[tuple[Channel, Channel]]:
    one, other = (Channel(*end, cloudpickle.dumps) for end in zip(pair(), sessions(), strict=True))
    yield one, other
    one.close()
    other.close()


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


@pytest.mark.parametrize("sent", [10, 80, 90])
def test_a_message_that_stalls_is_an_error(sent: int):
    (victim, stalled), (whole, other) = pair(), pair()
    mine, theirs = sessions()
    Channel(whole, theirs, pickle.dumps).send(1, PLAIN, to_wire(np.zeros(1000), NUMPY))
    stalled.sendall(other.recv(sent))
    channel = Channel(victim, mine, pickle.dumps, stall_timeout=0.2)
    with pytest.raises(BlockingIOError):
        channel.receive(30)
    for end in (victim, stalled, whole, other):
        end.close()


@pytest.mark.parametrize("does", ["sends", "takes"])
def test_a_peer_that_sends_or_takes_single_bytes_does_not_hold_the_other(does: str):
    end, slow = pair()
    channel = Channel(end, sessions()[0], pickle.dumps, stall_timeout=0.2)
    over = threading.Event()

    def drip() -> None:
        while not over.wait(0.02):
            if does == "sends":
                slow.send(b"x")
            else:
                slow.recv(1)

    done = in_background(drip)
    wait = (lambda: channel.receive(30)) if does == "sends" else (lambda: channel.send(1, bytes(50_000_000)))
    with pytest.raises((TimeoutError, BlockingIOError)):
        wait()
    over.set()
    done()
    channel.close()
    slow.close()


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


def test_memory_of_large_data_is_used_again_unless_somebody_holds_it(channels: tuple[Channel, Channel]):
    one, other = channels
    size = 300_000
    prepared = [to_wire(np.full(size, value, np.int64), NUMPY) for value in range(6)]

    def exchange(packed: Packed) -> tuple[Any, int]:
        """Return the values that arrive, and how much memory they needed."""
        sent = in_background(one.send, 0, PLAIN, packed)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        message = receive(other)
        needed = tracemalloc.get_traced_memory()[1] - before
        sent()
        return np.ndarray(message.packed.size // 8, np.int64, message.packed.data), needed

    tracemalloc.start()
    try:
        whole, _ = exchange(prepared[0])
        rows = exchange(prepared[1])[0][7:9]
        first, _ = exchange(prepared[2])
        assert [set(values.tolist()) for values in (whole, rows, first)] == [{0}, {1}, {2}]
        del first
        again, needed = exchange(prepared[3])
        assert needed < 8 * size / 2
        del again
        other_size, _ = exchange(to_wire(np.arange(200_000), NUMPY))
        again, _ = exchange(prepared[4])
        assert other_size.tolist() == list(range(200_000))
        assert [set(values.tolist()) for values in (whole, rows, again)] == [{0}, {1}, {4}]
    finally:
        tracemalloc.stop()


def test_a_message_that_is_not_written_describes_nothing(channels: tuple[Channel, Channel]):
    one, other = channels
    tree = Local(np.arange(6.0))
    one.encode(1, PLAIN, to_wire(tree, NUMPY))
    for seq in (2, 3):
        one.send(seq, PLAIN, to_wire(tree, NUMPY))
        assert_same(from_wire(receive(other).packed, NUMPY), tree)
