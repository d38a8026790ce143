"""A lost connection: a machine that is silent, one that answers, and what Ray and the log say meanwhile."""

from __future__ import annotations

import errno
import re
import socket
import threading
from collections.abc import Callable, Iterator
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError, RayActorError

from orchestrator.ray import connection, outage
from orchestrator.ray.connection import Link
from orchestrator.ray.deaths import death, death_of
from orchestrator.ray.outage import Outage
from orchestrator.ray.requests import UnreachableError
from tests.support.links import RelayedWorker, acted, build, receive, step_of
from tests.support.processes import PATIENCE
from tests.support.service import tick
from workers.pickling import dumps
from workers.remote import dialing
from workers.remote.dialing import SilentMachineError, UnansweredError
from workers.remote.listener import Listener

pytestmark = pytest.mark.usefixtures("unknown_to_ray")


class Cable:
    """The cable to a worker's machine: while it is pulled, attempts to connect take their time in vain."""

    def __init__(self, worker: RelayedWorker) -> None:
        self.attempts = 0
        self._address = worker.relay.address
        self._is_in = threading.Event()
        self._is_in.set()
        self._connect = socket.create_connection

    def connect(self, address: Any, timeout: float) -> socket.socket:
        if address == self._address and not self._is_in.is_set():
            self.attempts += 1
            if not self._is_in.wait(timeout):
                raise TimeoutError("timed out")
        return self._connect(address, timeout)

    def pull(self) -> None:
        self._is_in.clear()

    def plug_in(self) -> None:
        self._is_in.set()


@pytest.fixture
def cable(worker: RelayedWorker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cable]:
    one = Cable(worker)
    monkeypatch.setattr(socket, "create_connection", one.connect)
    yield one
    one.plug_in()


def poll(link: Link, seq: int, until: Callable[[], object]) -> None:
    """Ask for a reply without waiting, until something has happened; the reply must not have arrived."""
    deadline = monotonic() + PATIENCE
    while not until():
        assert monotonic() < deadline
        assert link.receive(seq, 0) is None


def test_a_cable_that_is_pulled_is_told_and_costs_only_its_time(
    cable: Cable, link: Link, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Nobody answers for many attempts and longer than a machine that answers is waited for."""
    monkeypatch.setattr(connection, "_ATTEMPT", 0.02)
    monkeypatch.setattr(outage, "_PATIENCE", 0)
    agent = build(link)
    cable.pull()
    link.hang_up()
    link.send(2, "tick", (tick(1), 1), ack=2)
    poll(link, 2, lambda: cable.attempts > 10)
    assert link.is_cut_off
    monkeypatch.setattr(connection, "_ATTEMPT", PATIENCE)
    cable.plug_in()
    while link.is_cut_off:  # from now on, pings tell whether the worker is there
        link.receive(3, 0)
    assert step_of(receive(link, 2)) == 1
    assert acted(agent) == [1]
    assert [record.getMessage() for record in caplog.records] == [
        "scope 0 on 127.0.0.1 cannot be reached any more: timed out; trying again until it answers or Ray says that it "
        "is dead, for up to 30 s",
        "scope 0 on 127.0.0.1 is connected again",
    ]


def test_a_machine_that_stays_silent_holds_nobody_up_and_ray_is_asked_meanwhile(
    cable: Cable, link: Link, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """After the first attempt, the second is under way all the time."""
    build(link)
    cable.pull()
    link.hang_up()
    link.send(2, "tick", (tick(1), 1), ack=2)
    monkeypatch.setattr(connection, "_ATTEMPT", 0.01)
    poll(link, 2, lambda: caplog.records and link._dialing is None)
    monkeypatch.setattr(connection, "_ATTEMPT", PATIENCE)
    started = monotonic()
    for _ in range(3):
        assert link.receive(2, 0) is None
    assert monotonic() - started < PATIENCE / 2
    word = UnreachableError("NodeDied", "the worker's node died")
    monkeypatch.setattr(outage, "death_of", lambda _: word)
    with pytest.raises(UnreachableError) as caught:
        link.receive(2, 0)
    assert caught.value is word
    link.close()


def test_a_worker_that_only_holds_its_interpreter_is_not_given_up(
    worker: RelayedWorker, link: Link, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Its system accepts connections, but it answers no handshake, for longer than a silent machine is waited for."""
    monkeypatch.setattr(connection, "_ATTEMPT", 0.02)
    monkeypatch.setattr(dialing, "_ANSWER_TIMEOUT", 0.02)
    monkeypatch.setattr(outage, "_PATIENCE", 0)
    build(link)
    hear, waiting = Listener._hear, threading.Semaphore(0)
    monkeypatch.setattr(Listener, "_hear", lambda *_: waiting.release())
    link.hang_up()
    link.send(2, "tick", (tick(1), 1), ack=2)
    poll(link, 2, lambda: worker.relay.connections > 5)
    monkeypatch.setattr(outage, "_PATIENCE", PATIENCE)
    monkeypatch.setattr(connection, "_ATTEMPT", PATIENCE)
    monkeypatch.setattr(Listener, "_hear", hear)
    assert step_of(receive(link, 2)) == 1
    assert not caplog.records


class Padded:
    """A request of 32 MB, more than the buffers of a connection hold."""

    def __init__(self, request: Any) -> None:
        self._request = request

    def __reduce__(self) -> Any:
        return _first, (self._request, bytes(32 << 20))


def _first(request: Any, _padding: bytes) -> Any:
    return request


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system does not time what is not taken")
def test_a_worker_that_does_not_take_a_large_request_is_not_a_silent_machine(
    worker: RelayedWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Linux ends the connection, and those after it are not answered until the worker goes on."""
    monkeypatch.setattr(dialing, "_SILENCE_TIMEOUT", 0.2)
    monkeypatch.setattr(connection, "_ATTEMPT", 0.02)
    monkeypatch.setattr(outage, "_PATIENCE", 0)
    link = worker.link()
    agent = build(link)
    worker.relay.is_up.clear()
    plain = dumps(("tick", Padded((tick(1), 1)), None))
    link.send(2, "tick", (tick(1), 1), ack=2, plain=plain)
    assert link._channel is None
    with monkeypatch.context() as patch:
        patch.setattr(dialing, "_ANSWER_TIMEOUT", 0.02)
        poll(link, 2, lambda: worker.relay.connections > 5)
    monkeypatch.setattr(dialing, "_SILENCE_TIMEOUT", 8.0)
    monkeypatch.setattr(outage, "_PATIENCE", PATIENCE)
    worker.relay.is_up.set()
    assert step_of(receive(link, 2)) == 1
    assert acted(agent) == [1]
    assert not caplog.records
    link.close()


def test_where_no_thread_can_be_started_connections_are_made_again(
    worker: RelayedWorker, link: Link, monkeypatch: pytest.MonkeyPatch
):
    build(link)

    def start(thread: threading.Thread) -> None:
        if thread.name == "lockstep-dial":
            raise RuntimeError("can't start new thread")
        original(thread)

    original = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", start)
    link.hang_up()
    link.send(2, "tick", (tick(1), 1), ack=2)
    assert step_of(receive(link, 2)) == 1


def test_a_connection_that_comes_after_the_end_is_closed(
    worker: RelayedWorker, link: Link, monkeypatch: pytest.MonkeyPatch
):
    build(link)
    worker.relay.is_up.clear()
    link.hang_up()
    link.send(2, "tick", (tick(1), 1), ack=2)
    poll(link, 2, lambda: worker.relay.connections == 2)
    under_way = link._dialing
    assert under_way is not None
    link.close()
    is_over = threading.Event()
    under_way.add_done_callback(lambda _: is_over.set())  # after what `close` has added
    worker.relay.is_up.set()
    assert is_over.wait(PATIENCE)
    sock, _ = under_way.result()
    assert sock.fileno() == -1


REFUSED, SILENT, BUSY = ConnectionRefusedError("refused"), SilentMachineError("silent"), UnansweredError("busy")
LOST = TimeoutError(errno.ETIMEDOUT, "Connection timed out")


@pytest.mark.parametrize(
    ("errors", "given_up"),
    [
        ({0: REFUSED, 9: REFUSED, 10: REFUSED}, 10),
        ({0: LOST, 9: REFUSED, 10: REFUSED}, 10),
        ({0: SILENT, 10: SILENT, 29: SILENT, 30: SILENT}, 30),
        ({0: LOST, 1: SILENT, 29: SILENT, 30: SILENT}, 30),
        ({**{s: (SILENT, REFUSED)[s % 2] for s in range(30)}, 30: REFUSED}, 30),  # a host that boots, or a bad cable
        ({0: REFUSED, 9: BUSY, 18: REFUSED, 19: REFUSED}, 19),  # a busy worker is waited for by the request
        ({0: SILENT, 29: BUSY, 89: BUSY, 149: BUSY, 159: REFUSED}, 159),
    ],
)
def test_a_silent_machine_is_waited_for_longer_than_one_that_answers(
    errors: dict[int, Exception], given_up: int, monkeypatch: pytest.MonkeyPatch
):
    now = [0.0]
    monkeypatch.setattr(outage, "monotonic", lambda: now[0])
    one = Outage("scope 1 on 10.0.0.1", 30.0)
    for second, error in errors.items():
        now[0] = second
        if second < given_up:
            one.go_on(error, 0.0)
            continue
        with pytest.raises(UnreachableError, match=rf"{re.escape(str(error))}; tried again for (10|30) s") as caught:
            one.go_on(error, 0.0)
        assert caught.value.kind == ("NodeUnreachable" if given_up == 30 else "ConnectionLost")


def test_each_outage_is_told_once(caplog: pytest.LogCaptureFixture):
    one = Outage("scope 1 on 10.0.0.1", 30.0)
    for _ in range(2):
        for error in (EOFError(), LOST, BUSY, SILENT, REFUSED, SILENT):
            one.go_on(error, 0.0)
        one.connected()
        one.end()
    said = [record.getMessage() for record in caplog.records]
    assert [text.partition(";")[0] for text in said] == [
        "scope 1 on 10.0.0.1 cannot be reached any more: silent",
        "scope 1 on 10.0.0.1 is connected again",
    ] * 2


class Actor:
    """An actor of which Ray has lost its own connection; asked again, Ray knows that its node is dead."""

    def __init__(self) -> None:
        self.__ray_ready__ = SimpleNamespace(remote=lambda: "asked again")

    def get(self, ref: str, timeout: float) -> None:
        if ref == "serve":
            raise ActorUnavailableError("RPC error: Socket closed", None)
        raise RayActorError(error_msg="The actor died because its node has died.")


@pytest.mark.parametrize("error", [SILENT, REFUSED])
def test_an_actor_that_is_unavailable_may_live_unless_nothing_listens(
    error: Exception, monkeypatch: pytest.MonkeyPatch
):
    actor, one = Actor(), Outage("scope 1 on 10.0.0.1", 30.0)
    monkeypatch.setattr("orchestrator.ray.transport.ray.get", actor.get)
    monkeypatch.setattr(outage, "death_of", death_of)
    one.watch(actor, "serve")
    one.go_on(error, 0.0)
    if error is SILENT:
        one.go_on(error, 0.0)
    with pytest.raises(UnreachableError) as caught:
        one.go_on(error, 0.0)
    assert caught.value.kind == ("NodeDied" if error is SILENT else "WorkerDied")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("The actor died because its node has died. Node Id: 12ab", "NodeDied"),
        ("the actor's node was terminated unexpectedly: health check failed", "NodeDied"),
        ("The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR", "WorkerDied"),
    ],
)
def test_a_death_of_a_node_has_a_name_of_its_own(text: str, kind: str):
    one = death(RayActorError(error_msg=text))
    assert one.kind == kind
    assert text in str(one)
