"""Service: one ordered stream of requests, each handled once, with errors as plain data."""

from __future__ import annotations

import pickle
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support.agents import copied
from tests.support.envs import CountingEnv, build_counting
from tests.support.odd_infos import HoldingEnv, Unreadable, build_holding
from tests.support.parity import assert_same, copied_outputs
from tests.support.processes import PATIENCE
from tests.support.service import SCOPE, Client, FailingAgent, LiveRecordingAgent, build_failing, spec, tick
from workers.envs import EnvFactory
from workers.frameworks import load_framework
from workers.node import node_name
from workers.remote.replies import Busy, Reply
from workers.remote.spec import WorkerSpec
from workers.remote.wire import from_wire, read_outcome, to_wire
from workers.storage.export import ExportedAgent
from workers.types import Description, Mode, Outcome, Transition

ROWS = [5.0, 6.0, 7.0]
NOTHING = to_wire((None, None, None), load_framework("numpy"))


def steps(packed: Any) -> Any:
    """Return the steps since the last reset, which the environments put into their infos."""
    return read_outcome(packed, load_framework("torch"), len(ROWS)).infos["nested"]["step"].tolist()


def refuse(*_: Any) -> Any:
    raise LookupError("no licence")


@pytest.fixture(autouse=True)
def _forget() -> None:
    LiveRecordingAgent.made.clear()


def test_a_worker_with_its_own_environments(framework: str):
    client, adapter = Client(), load_framework(framework)
    description = client.ok("build", spec(framework=framework))
    assert description == Description("LiveRecordingAgent", node_name(), adapter.num_threads())
    (agent,) = LiveRecordingAgent.made
    assert agent.scope == SCOPE
    for timestep in (1, 2, 3):
        outcome = from_wire(client.ok("tick", tick(timestep)), adapter)
        assert isinstance(outcome, Outcome)
        assert all(map(adapter.is_array, outcome[:4]))
        outcome = Outcome._make(copied_outputs(outcome))
        rewards = np.array([1000 * row + timestep / 10 for row in ROWS], dtype=np.float32)
        assert outcome.rewards[:, 0].tolist() == rewards.tolist()
        assert outcome.infos["row"].tolist() == ROWS
        assert outcome.observations[:, 0].tolist() == ROWS
    assert [record["timestep"] for record in agent.records()] == [1, 2, 3]
    evaluated = Outcome._make(copied_outputs(from_wire(client.ok("tick", tick(4, Mode.EVAL)), adapter)))
    # row 5 ends after 4 steps and row 7 after 6; row 6 (5 steps) shows the mean action, which is the negative one
    assert evaluated.truncated[:, 0].tolist() == [True, False, False]
    assert evaluated.observations.tolist() == [[5, 1, 0, -1], [6, 0, 4, -604], [7, 0, 4, -704]]
    assert agent.calls[-1] == ("post", {"training": False, "timestep": 4, "timesteps": 10})
    client.ok("restart")
    assert steps(client.ok("tick", tick(5))) == [1, 1, 1]


def test_a_worker_that_shares_the_drivers_environments(framework: str):
    client, adapter = Client(spec(env=None, framework=framework)), load_framework(framework)
    (agent,) = LiveRecordingAgent.made
    observations = np.array([[row, 0.0, 0.0, -1.0] for row in ROWS], np.float32)
    states = observations[:, :2] + 500
    sent = to_wire((*map(adapter.from_numpy, (observations, states)), None), adapter)
    actions = from_wire(client.ok("act", tick(7), sent), adapter)
    assert copied(actions).tolist() == [[507], [607], [707]]
    flags = np.array([[True], [False], [False]])
    arrays = observations[:, :1], observations + 1, flags, ~flags
    rewards, next_observations, terminated, truncated = map(adapter.from_numpy, arrays)
    infos = {"row": np.array(ROWS)}
    transition = Transition(rewards, next_observations, None, terminated, truncated, infos, 2.5)
    assert client.ok("learn", tick(7), to_wire(transition, adapter)) is None
    (record,) = agent.records()
    assert record["observations"].tolist() == observations.tolist()
    assert record["states"].tolist() == states.tolist()
    assert record["next_observations"].tolist() == (observations + 1).tolist()
    assert record["next_states"] is None
    assert record["terminated"].tolist() == [[True], [False], [False]]
    assert record["truncated"].tolist() == [[False], [True], [True]]
    assert record["infos"]["row"].tolist() == ROWS
    assert (record["timestep"], record["timesteps"]) == (7, 10)
    assert ("Stats / Env stepping time (ms)", 2.5) in agent.tracked


def test_a_request_sent_again_is_answered_from_the_cache():
    client = Client(spec())
    first = client.send("tick", tick(1))
    (agent,) = LiveRecordingAgent.made
    calls = len(agent.calls)
    again = client.send("tick", tick(1), seq=first.seq)
    assert steps(again.payload) == [1, 1, 1]
    assert_same(again.payload._asdict(), first.payload._asdict())
    assert len(agent.calls) == calls
    assert steps(client.ok("tick", tick(2))) == [2, 2, 2]


def test_an_error_is_answered_from_the_cache_too():
    client = Client(spec(FailingAgent, env=None))
    failed = client.send("act", tick(3), NOTHING)
    assert client.send("act", tick(3), NOTHING, seq=failed.seq) == failed


def test_an_older_request_is_an_error_and_does_nothing():
    client = Client(spec())
    client.ok("tick", tick(1))
    failure = client.failure("tick", tick(2), seq=client.seq - 1)
    assert failure.kind == "RuntimeError"
    assert failure.message == f"request {client.seq - 1} (tick) arrived after {client.seq}; requests must be in order"
    # nothing was done, and the stream is unchanged
    assert steps(client.send("tick", tick(1), seq=client.seq).payload) == [1, 1, 1]
    assert steps(client.ok("tick", tick(2))) == [2, 2, 2]


def test_failures_of_an_iteration_say_where(framework: str):
    client = Client(spec(FailingAgent, framework=framework))
    client.ok("tick", tick(1))
    update = client.failure("tick", tick(2))
    assert (update.scope, update.rows, update.phase, update.timestep) == (2, (5, 8), "post-interaction", 2)
    assert (update.kind, update.message) == ("ZeroDivisionError", "update")
    assert "in post_interaction\n" in update.traceback
    assert "the previous iteration failed" in client.failure("tick", tick(3)).message
    client = Client(spec(FailingAgent, framework=framework))
    act = client.failure("tick", tick(3))
    assert (act.scope, act.rows, act.phase, act.timestep, act.kind) == (2, (5, 8), "act", 3, "KeyError")

    client = Client(spec(env=EnvFactory(build_failing, num_envs=9), framework=framework))
    client.ok("tick", tick(1))
    step = client.failure("tick", tick(2))
    assert (step.scope, step.rows, step.phase, step.timestep) == (2, (6, 7), "step", 2)
    assert (step.kind, step.message) == ("ValueError", "row 6 broke")


def test_failures_of_a_shared_workers_agent_say_where(framework: str):
    client, adapter = Client(spec(FailingAgent, env=None, framework=framework)), load_framework(framework)
    observations = to_wire((adapter.from_numpy(np.zeros((3, 4), np.float32)), None, None), adapter)
    act = client.failure("act", tick(3), observations)
    assert (act.scope, act.rows, act.phase, act.timestep, act.kind) == (2, (5, 8), "act", 3, "KeyError")
    client.ok("act", tick(2), observations)
    rows = adapter.from_numpy(np.zeros((3, 1), np.float32))
    transition = to_wire(Transition(rows, rows, None, rows, rows, {}, 0.0), adapter)
    learn = client.failure("learn", tick(2), transition)
    assert (learn.scope, learn.phase, learn.timestep, learn.message) == (2, "post-interaction", 2, "update")


def test_infos_that_cannot_be_sent_or_read_say_where():
    env, adapter = EnvFactory(partial(build_holding, HoldingEnv, threading.Lock), num_envs=9), load_framework("torch")
    client = Client(spec(env=env))
    for timestep in (1, 2):
        client.ok("tick", tick(timestep))
    sent = client.failure("tick", tick(3))
    assert (sent.scope, sent.rows, sent.phase, sent.timestep) == (2, (5, 8), "step", 3)
    assert sent.kind == "workers.errors.EnvError"
    assert sent.message.startswith("infos['nested']['held'][1][0] is of type _thread.lock, which cannot be sent")
    assert "cannot pickle '_thread.lock' object" in sent.traceback

    client = Client(spec(env=None))
    array = adapter.from_numpy(np.zeros((3, 4), np.float32))
    infos = {"bad": Unreadable()}
    act = client.failure("act", tick(3), to_wire((array, None, infos), adapter))
    assert (act.scope, act.rows, act.phase, act.timestep) == (2, (5, 8), "act", 3)
    assert act.message.startswith("infos['bad'] has arrived from another process, but cannot be unpickled: LookupError")
    client.ok("act", tick(3), to_wire((array, None, None), adapter))
    transition = Transition(array, array, None, array, array, infos, 0.0)
    learn = client.failure("learn", tick(3), to_wire(transition, adapter))
    assert (learn.scope, learn.phase, learn.timestep) == (2, "record", 3)
    assert learn.message.startswith("infos['bad'] has arrived")


@pytest.mark.parametrize(
    ("broken", "kind", "message"),
    [
        (spec(refuse), "LookupError", "no licence"),
        (spec(env=EnvFactory(refuse, num_envs=9)), "LookupError", "no licence"),
        (spec(SimpleNamespace(act=len)), "workers.errors.AgentError", "SimpleNamespace, lacks init"),
        (spec(env=EnvFactory(build_counting, num_envs=9), framework="none"),
         "workers.errors.ConfigError", "unknown framework 'none'"),
        (spec(modules=("no_such_module",)), "ModuleNotFoundError", "no_such_module"),
        (spec(cfg=b"garbage"), "_pickle.UnpicklingError", ""),
    ],
)  # fmt: skip
def test_failures_of_building_say_where(broken: WorkerSpec, kind: str, message: str):
    client = Client()
    failure = client.failure("build", broken)
    assert (failure.scope, failure.rows, failure.phase, failure.timestep) == (2, (5, 8), "build", None)
    assert failure.kind == kind
    assert message in failure.message
    assert failure.traceback.startswith("Traceback")


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("tick", (tick(1),)),
        ("act", (tick(1), NOTHING)),
        ("learn", (tick(1), None)),
        ("restart", ()),
        ("export", ()),
        ("nonsense", ()),
    ],
)
def test_requests_before_build_are_errors(method: str, args: tuple[Any, ...]):
    client = Client()
    failure = client.failure(method, *args)
    assert (failure.scope, failure.phase, failure.timestep) == (None, method, None)
    assert client.ok("build", spec()).agent == "LiveRecordingAgent"


def test_a_shared_worker_has_no_environments_to_tick():
    client = Client(spec(env=None))
    assert "shares the driver's environments" in client.failure("tick", tick(1)).message
    assert client.ok("restart") is None  # restarts only its episodes
    assert client.ok("close") is None


def test_modules_are_imported_before_anything_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "module_of_the_worker.py").write_text(
        "from tests.support import service\nassert not service.LiveRecordingAgent.made\nseen = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    client = Client(spec(modules=("module_of_the_worker",)))
    import module_of_the_worker  # type: ignore[import-not-found]

    assert module_of_the_worker.seen
    assert client.seq == 1


def test_export_and_close(monkeypatch: pytest.MonkeyPatch):
    closed: list[int] = []
    monkeypatch.setattr(CountingEnv, "close", lambda env: closed.append(env.row))
    client = Client(spec())
    client.ok("tick", tick(1))
    exported = client.ok("export")
    assert isinstance(exported, ExportedAgent)
    assert exported.kind == "pickle"
    trained = pickle.loads(exported.data)
    assert [name for name, _ in trained.calls] == ["init", "pre", "act", "record", "post"]
    assert closed == []
    assert client.ok("close") is None
    assert closed == [5, 6, 7]


def test_busy_while_a_request_is_done():
    entered, leave = threading.Event(), threading.Event()
    client = Client(spec())
    (agent,) = LiveRecordingAgent.made
    idle = client.service.busy()
    assert isinstance(idle, Busy)
    assert idle.seq is None

    def wait(**_: Any) -> None:
        entered.set()
        assert leave.wait(PATIENCE)

    agent.post_interaction = wait  # type: ignore[method-assign]
    replies: list[Reply] = []
    thread = threading.Thread(target=lambda: replies.append(client.service.handle(2, "tick", (tick(1),))))
    thread.start()
    try:
        assert entered.wait(PATIENCE)
        first, second = client.service.busy(), client.service.busy()
        assert first.seq == second.seq == 2
        assert 0 < first.seconds <= second.seconds < 60
    finally:
        leave.set()
        thread.join(PATIENCE)
    assert [reply.status for reply in replies] == ["ok"]
    assert client.service.busy().seq is None


def test_replies_are_kept_until_they_are_acknowledged():
    client = Client(spec())
    for seq in (2, 3, 4):
        client.service.handle(seq, "tick", (tick(seq),), ack=2)
    assert [steps(client.service.handle(seq, "tick", (tick(seq),)).payload)[2] for seq in (2, 3, 4)] == [1, 2, 3]
    client.service.handle(5, "tick", (tick(5),), ack=4)
    replies = [client.service.handle(seq, "tick", (tick(seq),)) for seq in (2, 3, 4, 5)]
    assert [reply.status for reply in replies] == ["error", "error", "ok", "ok"]
    (agent,) = LiveRecordingAgent.made
    assert [call["timestep"] for name, call in agent.calls if name == "act"] == [2, 3, 4, 5]


def test_iterations_of_one_request_and_what_halts_them():
    client = Client(spec())
    (agent,) = LiveRecordingAgent.made
    assert steps(client.ok("tick", tick(1), 3))[2] == 3
    assert [record["timestep"] for record in agent.records()] == [1, 2, 3]

    def halt(*, timestep: int, timesteps: int) -> None:
        if timestep == 6:
            client.service.halt(client.seq)

    agent.post_interaction = halt  # type: ignore[method-assign]
    assert client.ok("tick", tick(4), 1000) is None  # no outcome: halted after the third
    assert [record["timestep"] for record in agent.records()] == [1, 2, 3, 4, 5, 6]
    client.service.halt(client.seq + 1)  # also one that has not arrived yet: another worker may fail at once
    assert client.ok("tick", tick(7), 9) is None
    assert client.ok("tick", tick(7), 1) is not None
    assert [record["timestep"] for record in agent.records()] == [1, 2, 3, 4, 5, 6, 7]


def test_a_request_that_is_halted_before_it_starts_does_its_first_iteration():
    """Another scope may have failed in this iteration: this one must not hide that it fails, too."""
    client = Client(spec())
    (agent,) = LiveRecordingAgent.made
    client.service.halt(client.seq + 1)
    assert client.ok("tick", tick(1), 1) is not None
    client.service.halt(client.seq + 2)
    assert client.ok("tick", tick(2), 5) is None
    assert client.ok("tick", tick(7), 5) is None
    assert [record["timestep"] for record in agent.records()] == [1, 2]


def test_a_reply_goes_into_the_memory_that_it_is_given():
    client = Client(spec())
    into = memoryview(bytearray(4096))
    client.seq = 2
    reply = client.service.handle(client.seq, "tick", (tick(1),), into=into)
    assert reply.payload.data is None
    assert steps(reply.payload._replace(data=into)) == [1, 1, 1]
    assert client.ok("tick", tick(2)).data is not None
