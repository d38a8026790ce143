"""Waiting for all workers: which are late, lost or told to stop. The clock and Ray are fakes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.base import Plan
from orchestrator.ray import cluster, patience, session, transport
from orchestrator.ray.patience import StepPatience
from orchestrator.ray.requests import Door, NoReplyError, Patience, Request, UnreachableError
from orchestrator.ray.transport import Streams
from tests.support.agents import NullAgent
from workers.errors import ClusterError
from workers.frameworks import load_framework
from workers.remote.log import LogEntry
from workers.remote.replies import Busy, Reply
from workers.types import Scope

CALLS = "if a single call may hold Python's interpreter for longer, increase RayOrchestrator(hang_timeout=…)"
REMEDY = "if an iteration may take longer, increase RayOrchestrator(step_timeout=…)"

SCOPES = [Scope(0, 0, 2), Scope(1, 2, 5), Scope(2, 5, 6)]


class Cluster(cluster.Cluster):
    """Is connected while Ray is initialised."""

    def __init__(self, world: World) -> None:
        self.world = world

    @property
    def is_connected(self) -> bool:
        return self.world.is_initialized


class World(Streams):
    """Workers that reply at given times. Iterations start when the request is sent, and at further given times.

    Attributes:
        replies: For each worker, the time of its reply, and the reply or the exception raised instead.
        log: What every reply brings from the log of its worker.
        began: For each worker, the times at which its iterations start; None if it does not answer pings.
    """

    def __init__(self, number: int = 3) -> None:
        self.now = 0.0
        self.replies: list[tuple[float, Any]] = []
        self.began: list[list[float] | None] = [[0.0]] * number
        self.log: tuple[LogEntry, ...] = ()
        self.pings = 0
        self.is_initialized = True
        self.halted: list[list[int]] = [[] for _ in range(number)]
        scopes = [*SCOPES, *(Scope(index, index + 3, index + 4) for index in range(3, number))]
        super().__init__(Cluster(self), [None] * number, scopes)

    def _send(self, index: int, number: int, request: Request, ack: int) -> None:
        self.asked = request

    def _reach(self, index: int, actor: Any, door: Door) -> None:
        self.replies[index] = actor

    def _receive(self, index: int, number: int, timeout: float) -> Reply | None:
        when, reply = self.replies[index]
        if when > self.now + timeout:
            self.now += timeout
            return None
        self.now = max(self.now, when)
        if isinstance(reply, BaseException):
            raise reply
        return Reply("ok" if reply != "error" else "error", number, reply if reply != "error" else (), self.log)

    def close(self) -> None:
        pass

    def _ping(self, indices: Sequence[int]) -> dict[int, Busy | None]:
        self.pings += len(indices)
        return {index: self.busy(index) for index in indices}

    def busy(self, index: int) -> Busy | None:
        began = self.began[index]
        if began is None:
            return None
        if self.replies[index][0] <= self.now:
            return Busy(None, 0.0)
        return Busy(1, self.now - max(time for time in began if time <= self.now))

    def _halt(self, numbers: Mapping[int, int]) -> None:
        for index, number in numbers.items():
            self.halted[index].append(number)

    def step(self, patience: Patience | None = None, **options: Any) -> list[Reply]:
        return self.receive(self.send("tick"), patience or StepPatience(10), phase="unknown", timestep=7, **options)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    one = World()
    monkeypatch.setattr(transport, "ray", SimpleNamespace(is_initialized=lambda: one.is_initialized))
    monkeypatch.setattr(transport, "monotonic", lambda: one.now)
    monkeypatch.setattr(patience, "monotonic", lambda: one.now)
    monkeypatch.setattr(transport, "check_reply", lambda *_: None)  # the payloads are names
    return one


def failures(replies: list[Reply]) -> list[tuple[int, str, str]]:
    return [(one.scope, one.kind, one.message) for reply in replies if reply.status == "error" for one in reply.payload]


def test_replies_are_in_scope_order_whenever_they_come(world: World):
    world.replies = [(4.5, "a"), (0.1, "b"), (4.0, "c")]
    assert [reply.payload for reply in world.step()] == ["a", "b", "c"]
    assert world.pings == 0
    assert world.asked == Request(1, "tick", (), None)


def test_a_reply_that_came_while_another_was_waited_for_is_in_time(world: World):
    """Worker 0 replies shortly before the deadline. Worker 1 is checked then and gets the time of its current step."""
    world.replies = [(9.7, "a"), (30.0, "b"), (0.0, "c")]
    world.began[1] = [0.0, 9.0, 18.0, 27.0]
    assert [reply.payload for reply in world.step()] == ["a", "b", "c"]


def test_the_deadline_is_for_one_iteration(world: World):
    world.replies = [(95.0, "a"), (0.0, "b"), (0.0, "c")]
    world.began[0] = [9.0 * i for i in range(11)]
    assert world.step()[0].payload == "a"
    world.began[0] = [0.0, 9.0, 18.0]
    world.now = 0.0
    (failure,) = failures(world.step())
    assert failure[:2] == (0, "TimeoutError")
    assert "no reply within 10 s; it answers a ping and has been busy for 1" in failure[2]
    assert world.now < 30


def test_a_close_that_takes_too_long_has_a_remedy_of_its_own(world: World, caplog: pytest.LogCaptureFixture):
    """The time for it is not that of an iteration."""
    world.replies = [(1.0, None), (1e9, None), (1.0, None)]
    plan = Plan(env=None, agents=[NullAgent] * 3, scopes=SCOPES, cfg=None, framework=load_framework("numpy"), seed=None)
    released: list[bool] = []
    recovery: Any = SimpleNamespace(stop=lambda: None, close=lambda: None)
    session.RaySession(
        plan, None, world, recovery, patience=partial(StepPatience, 300), release=lambda: released.append(True)
    ).close(close_environment=False)
    (record,) = caplog.records
    text = record.getMessage()
    assert text.startswith("the environments of a worker may not be closed: scope 1 (environments 2:5), phase close")
    assert "no reply within 10 s; it answers a ping and has been busy for 10.0 s; its process is ended now; env" in text
    assert "step_timeout" not in text
    assert released == [True]


def test_a_worker_that_does_not_answer_a_ping_is_lost_for_good(world: World):
    world.replies = [(1.0, "a"), (1e9, "b"), (1e9, "c")]
    world.began[1:] = [None, None]
    assert failures(world.step()) == [
        (1, "WorkerHung", f"it has not answered a ping for 10 s; {CALLS}"),
        (2, "WorkerHung", f"it has not answered a ping for 10 s; {CALLS}"),
    ]
    before = world.now
    world.replies = [(before, "a"), (before, "b"), (before, "c")]
    assert [one[0] for one in failures(world.step())] == [1, 2]
    assert world.now == before


def test_a_worker_whose_machine_cannot_be_reached_is_left_to_its_connection(world: World):
    """It answers no ping, either, for longer than a worker that hangs is waited for."""
    world.replies = [(1.0, "a"), (35.0, "b"), (1.0, "c")]
    world.began[1] = None
    world._is_cut_off = lambda index: index == 1  # type: ignore[method-assign]
    assert [reply.payload for reply in world.step()] == ["a", "b", "c"]


@pytest.mark.parametrize("number", [3, 100])
def test_all_workers_are_looked_at_twice_a_second(number: int, world: World):
    """However many are silent, for example on lost hosts, a death is noticed in time."""
    world.__init__(number)  # type: ignore[misc]
    world.replies = [(9.0, "late")] * (number - 1) + [(1.0, UnreachableError("NodeDied", "the worker's node died"))]
    noticed: list[float] = []
    world._halt = lambda numbers: noticed.append(world.now)  # type: ignore[method-assign]
    assert [one[1] for one in failures(world.step(halts=True))] == ["NodeDied"]
    assert 1.0 <= noticed[0] <= 1.6


def test_an_error_lets_the_others_stop_only_where_it_may(world: World):
    world.replies = [(1.0, "a"), (0.5, "error"), (0.2, "c")]
    world.step()
    assert not any(world.halted)
    world.step(halts=True)
    assert world.halted == [[2], [2], [2]]
    world.abandon()
    assert world.halted == [[2], [2], [2]]  # nothing is under way
    world.send("tick")
    world.abandon()
    assert world.halted == [[2, 3]] * 3


def test_a_death_stops_the_others_and_an_interrupt_all(world: World):
    world.replies = [(1.0, "a"), (1.0, UnreachableError("WorkerDied", "the worker's process died")), (1.0, "c")]
    assert failures(world.step(halts=True)) == [(1, "WorkerDied", "the worker's process died")]
    assert world.halted == [[1], [], [1]]  # the dead one gets no call
    world.replies[2] = (1.0, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        world.step(halts=True)
    assert world.halted == [[1, 2, 2], [], [1, 2, 2]]


def test_a_reply_that_cannot_be_read_loses_no_worker(world: World):
    world.replies = [(1.0, "a"), (1.0, NoReplyError("UnreadableError", "no")), (1.0, "c")]
    assert failures(world.step()) == [(1, "UnreadableError", "no")]
    world.replies[1] = (1.0, "b")
    assert [reply.payload for reply in world.step()] == ["a", "b", "c"]


def test_without_ray_nothing_is_sent(world: World):
    world.is_initialized = False
    with pytest.raises(ClusterError, match="Ray was shut down while a trainer used it"):
        world.send("tick")


def test_a_request_that_is_not_sent_to_all_stops_those_who_got_it(world: World, monkeypatch: pytest.MonkeyPatch):
    def interrupt(index: int, *_: Any) -> None:
        if index == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(world, "_send", interrupt)
    with pytest.raises(KeyboardInterrupt):
        world.send("tick")
    assert world.halted == [[1], [1], [0]]


def test_a_worker_that_nobody_can_ask_yet_gets_a_moment(world: World, monkeypatch: pytest.MonkeyPatch):
    world.replies = [(0.0, "a"), (35.0, "b"), (1e9, "c")]
    monkeypatch.setattr(world, "_ping", lambda indices: {})
    replies = world.step()
    assert [reply.payload for reply in replies[:2]] == ["a", "b"]
    assert [one[:2] for one in failures(replies)] == [(2, "WorkerHung")]
    assert 40 <= world.now < 50


def test_what_workers_log_is_said_once(world: World, caplog: pytest.LogCaptureFixture):
    log = (LogEntry(logging.WARNING, "a % note"), LogEntry(logging.ERROR, "an error"))
    world.replies = [(0.0, "a"), (0.0, "b"), (0.0, "error")]
    for _ in range(2):
        world.log = log
        world.step()
    said = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert said == [(logging.WARNING, "a % note"), (logging.ERROR, "an error")]
