"""The request stream to one worker: every request is handled once, in order, despite lost connections."""

from __future__ import annotations

import threading
from time import monotonic
from typing import Any

import pytest

from orchestrator.ray import outage
from orchestrator.ray.connection import Link
from orchestrator.ray.requests import NoReplyError, UnreachableError
from tests.support.connections import KEY
from tests.support.links import RelayedWorker, acted, build, receive, step_of
from tests.support.processes import PATIENCE
from tests.support.service import tick
from workers.remote.dialing import Address
from workers.remote.service import Service

pytestmark = pytest.mark.usefixtures("unknown_to_ray")


@pytest.mark.parametrize("threshold", [1, 1 << 20])
@pytest.mark.parametrize("cut_after", [0, 1, 50, 400, 700])
def test_what_was_under_way_when_the_connection_is_cut_is_done_once(
    worker: RelayedWorker, link: Link, cut_after: int, threshold: int, monkeypatch: pytest.MonkeyPatch
):
    """Three requests are in flight. The connection is cut before, within or after the reply to the first."""
    monkeypatch.setattr("orchestrator.ray.shm.THRESHOLD", threshold)
    agent = build(link)
    for seq in (2, 3):  # through shared memory from the second on
        link.send(seq, "tick", (tick(seq - 1), 1), ack=seq)
        assert step_of(receive(link, seq)) == seq - 1
    worker.relay.cut_after = cut_after
    for seq in (4, 5, 6):
        link.send(seq, "tick", (tick(seq - 1), 1), ack=4)
    for seq in (4, 5, 6):
        assert step_of(receive(link, seq)) == seq - 1
    assert worker.relay.connections == 2
    assert acted(agent) == [1, 2, 3, 4, 5]


def test_a_connection_that_is_cut_between_requests_is_made_again(worker: RelayedWorker, link: Link):
    agent = build(link)
    for seq in (2, 3):
        link.hang_up()
        link.send(seq, "tick", (tick(seq), 1), ack=seq)
        assert step_of(receive(link, seq)) == seq - 1
    assert worker.relay.connections == 3
    assert acted(agent) == [2, 3]


def test_replies_may_be_asked_for_in_another_order(link: Link):
    build(link)
    for seq in (2, 3, 4):
        link.send(seq, "tick", (tick(seq), 1), ack=2)
    assert step_of(receive(link, 4)) == 3
    assert step_of(receive(link, 2)) == 1
    assert step_of(receive(link, 3)) == 2


def test_what_was_given_up_is_neither_waited_for_nor_sent_again(worker: RelayedWorker, link: Link):
    agent = build(link)
    link.hang_up()
    link.send(2, "tick", (tick(1), 1), ack=2)  # not received by anyone yet
    link.abandon()
    link.send(3, "tick", (tick(9), 1), ack=3)
    assert step_of(receive(link, 3)) == 1
    assert acted(agent) == [9]


def test_a_late_reply_is_waited_for_as_long_as_was_said(link: Link):
    agent = build(link)
    go_on = threading.Event()
    agent.pre_interaction = lambda **_: go_on.wait(PATIENCE)
    link.send(2, "tick", (tick(1), 1), ack=2)
    assert link.receive(2, 0) is None
    assert link.receive(2, 0.1) is None
    go_on.set()
    assert step_of(receive(link, 2)) == 1


def test_a_reply_that_cannot_be_read_is_an_error_and_the_stream_goes_on(link: Link, monkeypatch: pytest.MonkeyPatch):
    build(link)
    monkeypatch.setattr(Service, "_collect", lambda _: Unreadable())
    link.send(2, "collect", (), ack=2)
    with pytest.raises(NoReplyError, match="no licence"):
        link.receive(2, 30)
    link.send(3, "tick", (tick(1), 1), ack=3)
    assert step_of(receive(link, 3)) == 1


def refuse() -> None:
    raise LookupError("no licence")


class Unreadable:
    def __reduce__(self) -> Any:
        return refuse, ()


def test_a_request_that_cannot_be_read_and_a_reply_that_cannot_be_sent_are_errors(
    link: Link, monkeypatch: pytest.MonkeyPatch
):
    build(link)
    link.send(2, "export", (Unreadable(),), ack=2)
    reply = link.receive(2, 30)
    assert reply is not None
    assert (reply.status, reply.payload[0].phase) == ("error", "request")
    assert "no licence" in reply.payload[0].message
    monkeypatch.setattr(Service, "_collect", lambda _: threading.Lock())
    link.send(3, "collect", (), ack=3)
    reply = link.receive(3, 30)
    assert reply is not None
    assert (reply.status, reply.payload[0].phase) == ("error", "reply")
    assert "lock" in reply.payload[0].message


def test_a_worker_that_cannot_be_connected_to_any_more_is_named(
    worker: RelayedWorker, link: Link, monkeypatch: pytest.MonkeyPatch
):
    build(link)
    causes = [None, UnreachableError("WorkerDied", "the worker's process died: out of memory")]
    monkeypatch.setattr(outage, "death_of", lambda _: causes.pop(0))
    monkeypatch.setattr(outage, "_PATIENCE", 0)
    worker.relay.close()
    for seq, kind in ((2, "ConnectionLost"), (3, "WorkerDied")):
        link.hang_up()
        link.send(seq, "tick", (tick(1), 1), ack=seq)
        with pytest.raises(UnreachableError) as caught:
            link.receive(seq, 30)
        assert caught.value.kind == kind
    assert "out of memory" in str(caught.value)


def test_on_its_machine_a_worker_is_reached_by_name(worker: RelayedWorker):
    assert worker.address.name
    one = Link(worker.address, KEY)
    build(one)
    assert worker.relay.connections == 0
    one.hang_up()
    # an unknown name belongs to another machine
    host, port = worker.relay.address
    two = Link(Address(host, port, b"\0nobody"), KEY)
    two.send(2, "tick", (tick(1), 1), ack=2)
    assert step_of(receive(two, 2)) == 1
    assert worker.relay.connections == 1
    two.hang_up()


def test_a_connection_that_is_lost_during_a_long_request_is_made_again_at_once(worker: RelayedWorker, link: Link):
    agent = build(link)
    go_on = threading.Event()
    agent.pre_interaction = lambda **_: go_on.wait(PATIENCE)
    link.send(2, "tick", (tick(1), 1), ack=2)
    assert link.receive(2, 0.1) is None
    link.hang_up()
    while link._channel is None:  # until it is connected again, while the worker is busy
        assert link.receive(2, 0.1) is None
    assert worker.relay.connections == 2
    go_on.set()
    assert step_of(receive(link, 2)) == 1
    assert acted(agent) == [1]


def test_a_reply_that_cannot_be_read_is_blamed_on_its_own_request(link: Link, monkeypatch: pytest.MonkeyPatch):
    build(link)
    monkeypatch.setattr(Service, "_collect", lambda _: Unreadable())
    link.send(2, "collect", (), ack=2)
    link.send(3, "tick", (tick(1), 1), ack=2)
    assert step_of(receive(link, 3)) == 1
    with pytest.raises(NoReplyError, match="no licence"):
        link.receive(2, 30)


class Cuts:
    """Cuts a number of connections instead of passing a reply on."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self, data: bytes, is_worker: bool) -> bytes:
        if is_worker and len(data) > 77 and self.left:  # longer than anything in a handshake
            self.left -= 1
            raise OSError("cut")
        return data


def test_a_connection_that_is_cut_many_times_is_made_again(worker: RelayedWorker, link: Link):
    agent = build(link)
    worker.relay.change = Cuts(20)
    link.send(2, "tick", (tick(1), 1), ack=2)
    assert step_of(receive(link, 2)) == 1
    assert worker.relay.connections == 21
    assert acted(agent) == [1]


def test_a_connection_that_brings_nothing_is_given_up(
    worker: RelayedWorker, link: Link, monkeypatch: pytest.MonkeyPatch
):
    build(link)
    monkeypatch.setattr(outage, "_PATIENCE", 0.2)
    monkeypatch.setattr(outage, "_LASTING", PATIENCE)
    worker.relay.change = Cuts(10**9)
    link.send(2, "tick", (tick(1), 1), ack=2)
    with pytest.raises(UnreachableError, match="lost and cannot be restored") as caught:
        link.receive(2, PATIENCE)
    assert caught.value.kind == "ConnectionLost"


def test_a_connection_that_lasts_is_not_given_up(worker: RelayedWorker, link: Link, monkeypatch: pytest.MonkeyPatch):
    """A long request is waited for, however often the connection is cut; whoever waits is asked in between."""
    build(link)
    monkeypatch.setattr(outage, "_PATIENCE", 0)
    monkeypatch.setattr(outage, "_LASTING", 0)
    worker.relay.change = Cuts(10)
    link.send(2, "tick", (tick(1), 1), ack=2)
    waits = 0
    while (reply := link.receive(2, 0)) is None:
        waits += 1
    assert step_of(reply.payload) == 1
    assert waits >= 10


def test_each_loss_is_judged_by_itself(worker: RelayedWorker, link: Link, monkeypatch: pytest.MonkeyPatch):
    """Connections are lost for longer than one is waited for, but every reply arrives."""
    build(link)
    monkeypatch.setattr(outage, "_PATIENCE", 0.2)
    monkeypatch.setattr(outage, "_LASTING", PATIENCE)
    start, seq = monotonic(), 1
    while monotonic() - start < 0.5:
        seq += 1
        worker.relay.change = Cuts(1)
        link.send(seq, "tick", (tick(seq), 1), ack=seq)
        receive(link, seq)
