"""Control connections: a worker answers beside its work, whatever happens to either connection."""

from __future__ import annotations

import pickle
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from orchestrator.ray.connection import Link
from tests.support.connections import KEY, pair, sessions
from tests.support.processes import PATIENCE
from tests.support.service import LiveRecordingAgent, spec, tick
from workers.remote import control
from workers.remote.channel import Channel
from workers.remote.control import Controls
from workers.remote.dialing import Address, dial
from workers.remote.handshake import CONTROL
from workers.remote.replies import Busy
from workers.remote.server import Server
from workers.remote.service import Service


class Worker:
    """A server whose worker waits in timestep 2 until `go_on` is set."""

    def __init__(self) -> None:
        LiveRecordingAgent.made.clear()
        self.service = Service(pickle.dumps)
        self.server = Server(self.service, pickle.dumps)
        self.address = self.server.open("127.0.0.1", KEY)
        self.is_waiting, self.go_on = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self.server.serve, daemon=True)
        self._thread.start()
        self.link = Link(self.address, KEY)
        self.ask(1, "build", spec())
        (self.agent,) = LiveRecordingAgent.made
        self.agent.pre_interaction = self._wait  # type: ignore[method-assign]
        self.controls = Controls({7: (self.address, KEY)})

    def _wait(self, *, timestep: int, timesteps: int) -> None:
        if timestep == 2:
            self.is_waiting.set()
            assert self.go_on.wait(PATIENCE)

    def ask(self, seq: int, method: str, *args: Any) -> Any:
        self.link.send(seq, method, args, ack=seq)
        return self.receive(seq)

    def receive(self, seq: int) -> Any:
        reply = self.link.receive(seq, PATIENCE)
        assert reply is not None
        assert reply.status == "ok", reply.payload
        return reply.payload

    def ping(self) -> Busy | None:
        return self.controls.ping([7], PATIENCE)[7]

    def close(self) -> None:
        self.go_on.set()
        self.controls.close()
        self.link.close()
        self.server.shut()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


@pytest.fixture
def worker() -> Iterator[Worker]:
    one = Worker()
    yield one
    one.close()


def cut(channel: Any) -> None:
    """Lose a connection without the knowledge of its owner."""
    with suppress(OSError):
        channel._sock.shutdown(socket.SHUT_RDWR)


def test_a_worker_says_what_it_is_busy_with_and_stops_when_it_is_told(worker: Worker):
    idle = worker.ping()
    assert idle is not None
    assert idle.seq is None
    worker.link.send(2, "tick", (tick(1), 1000), ack=2)
    assert worker.is_waiting.wait(PATIENCE)
    first, second = worker.ping(), worker.ping()
    assert first is not None
    assert second is not None
    assert first.seq == second.seq == 2
    assert 0 < first.seconds < second.seconds
    worker.controls.halt({7: 2})
    assert worker.ping() is not None  # what was sent before is handled before
    worker.go_on.set()
    assert worker.receive(2) is None
    assert [call["timestep"] for name, call in worker.agent.calls if name == "act"] == [1, 2]


def test_either_connection_is_made_again_without_the_other(worker: Worker):
    worker.link.send(2, "tick", (tick(2), 1), ack=2)
    assert worker.is_waiting.wait(PATIENCE)
    assert worker.ping() is not None
    kept = worker.controls._controls[7]._channel
    cut(worker.link._channel)
    assert worker.link.receive(2, 0.1) is None  # connected again, while the request is handled
    assert worker.ping() is not None
    assert worker.controls._controls[7]._channel is kept
    work = worker.link._channel
    losses = (
        worker.controls.close,
        lambda: cut(worker.controls._controls[7]._channel),
        lambda: worker.server._current[CONTROL].shutdown(socket.SHUT_WR),  # noticed only after the next question
    )
    for lose in losses * 2:
        lose()
        busy = worker.ping()
        assert busy is not None
        assert busy.seq == 2
    cut(worker.controls._controls[7]._channel)
    worker.controls.halt({7: 3})
    worker.go_on.set()
    assert worker.receive(2) is not None
    assert worker.ask(3, "tick", tick(3), 5) is None  # the halt has arrived
    assert worker.link._channel is work


def test_an_answer_to_a_question_that_nobody_asked_is_refused(worker: Worker):
    assert worker.ping() is not None
    asked = worker.controls._controls[7]
    channel, ask = asked._channel, asked.ask

    def ask_one_too_high(halted: int = 0) -> bool:
        asked._number += 1
        is_asked = ask(halted)
        asked._number -= 1
        return is_asked

    asked.ask = ask_one_too_high  # type: ignore[method-assign]
    assert worker.ping() is None
    assert asked._channel is not channel


def test_a_later_answer_is_not_taken_for_that_of_a_later_question(worker: Worker, monkeypatch: pytest.MonkeyPatch):
    answer = worker.service.busy
    go_on = threading.Event()

    def slow() -> Busy:
        assert go_on.wait(PATIENCE)
        return answer()._replace(doing="late")

    monkeypatch.setattr(worker.service, "busy", slow)
    assert worker.controls.ping([7], 0.05) == {7: None}
    monkeypatch.setattr(worker.service, "busy", lambda: Busy(9, 1.5, "building ünits"))
    go_on.set()
    assert worker.ping() == Busy(9, 1.5, "building ünits")


def test_a_new_control_connection_replaces_the_old(worker: Worker):
    other = Controls({0: (worker.address, KEY)})
    assert worker.ping() is not None
    assert other.ping([0], PATIENCE)[0] is not None
    replaced = worker.controls._controls[7]._channel
    assert replaced is not None
    with pytest.raises(EOFError):
        replaced.receive(PATIENCE)
    other.close()


def test_workers_that_do_not_answer_are_given_up_in_time(worker: Worker, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(control, "_TIMEOUT", 0.2)
    mute, closed = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    doors = {index: (Address(*one.getsockname()), KEY) for index, one in enumerate((mute, closed))}
    closed.close()
    controls = Controls({**doors, 2: (worker.address, b"x" * 32), 3: (worker.address, KEY)})
    answers = controls.ping([1, 2, 3], PATIENCE)
    assert [index for index, busy in answers.items() if busy is not None] == [3]
    assert controls.ping([0, 3], 1.0)[0] is None
    controls.halt(dict.fromkeys(range(4), 5))
    controls.close()
    mute.close()


def test_workers_that_do_not_answer_are_waited_for_together(monkeypatch: pytest.MonkeyPatch):
    all_are_dialed = threading.Barrier(8, timeout=PATIENCE)

    def wait_for_others(*args: Any, **options: Any) -> Any:
        all_are_dialed.wait()
        raise TimeoutError

    monkeypatch.setattr(control, "dial", wait_for_others)
    controls = Controls({index: (Address("127.0.0.1", 0), KEY) for index in range(8)})
    assert set(controls.ping(range(8), 0.01).values()) == {None}
    controls.halt(dict.fromkeys(range(8), 5))
    controls.halt({})


def test_those_who_answer_are_asked_before_lost_connections_are_made_again(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
):
    """The machine of worker 3 is gone, so that a new connection takes all the time there is."""
    controls = Controls({3: (worker.address, KEY), 7: (worker.address, KEY)})
    assert controls.ping([7], PATIENCE)[7] is not None
    driver, gone = pair()
    controls._controls[3]._channel = Channel(driver, sessions()[0], pickle.dumps)
    driver.shutdown(socket.SHUT_WR)
    is_asked = threading.Event()

    def busy() -> Busy:
        is_asked.set()
        return Busy(9, 1.5)

    def wait_in_vain(*args: Any, **options: Any) -> Any:
        assert is_asked.wait(PATIENCE)
        raise TimeoutError

    monkeypatch.setattr(worker.service, "busy", busy)
    monkeypatch.setattr(control, "dial", wait_in_vain)
    assert controls.ping([3, 7], PATIENCE) == {3: None, 7: Busy(9, 1.5)}
    controls.close()
    gone.close()


def test_workers_are_asked_one_after_the_other_where_no_thread_can_be_started(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
):
    def start(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert worker.ping() is not None


def test_a_worker_whose_port_cannot_be_opened_is_reached_on_its_machine(caplog: pytest.LogCaptureFixture):
    server = Server(Service(pickle.dumps), pickle.dumps)
    address = server.open("192.0.2.77", KEY)
    assert "cannot listen on 192.0.2.77" in caplog.text
    with pytest.raises(OSError, match=r"refused|assign"):
        dial(address._replace(host="127.0.0.1", name=b""), KEY, CONTROL, timeout=PATIENCE)
    controls = Controls({0: (address, KEY)})
    assert controls.ping([0], PATIENCE)[0] is not None
    controls.close()
    server.shut()
