"""Starting is judged by progress: who lives is waited for, who died or cannot fit fails at once."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import ray

from orchestrator.ray import RayOrchestrator, actor_calls, connection, starting
from orchestrator.ray.requests import UnreachableError
from orchestrator.ray.starting import StartPatience, StartTime, open_doors
from tests.support.agents import NullAgent
from tests.support.envs import build_counting, counting_factory
from tests.support.parity import CFG, step_trainer
from tests.support.processes import PATIENCE, python, wait_for
from tests.support.schedule import full_or_short, only_long
from workers.envs import EnvFactory
from workers.errors import ClusterError, WorkerError
from workers.remote.dialing import Address
from workers.remote.replies import Busy
from workers.types import Scope

REMEDY = "if it may take longer, increase RayOrchestrator(start_timeout=…)"

SCOPES = [Scope(index, 2 * index, 2 * index + 2) for index in range(6)]
NODES = [f"10.0.0.{index}" for index in range(6)]


TRANSPORTS = ["connection", "ray"]


@pytest.fixture
def transport(request: pytest.FixtureRequest, ray_cluster: None) -> str:
    name: str = request.param
    return name


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the code under test sees, in a list."""
    now = [100.0]
    monkeypatch.setattr(starting, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the workers all the time, and say at once what they are doing."""
    monkeypatch.setattr(starting, "_LOOK_INTERVAL", 0.05)
    monkeypatch.setattr(starting, "_FIRST_LINE", 0.05)


def texts(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.fixture(autouse=True)
def _show_progress(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lockstep")


def test_workers_that_answer_are_waited_for_until_the_limit(clock, caplog):
    patience = StartPatience(StartTime(600), SCOPES, NODES)
    assert patience.deadline() == 102.0
    for second in range(2, 600, 2):
        clock[0] = 100.0 + second
        busy = {1: Busy(1, second, "building its agent"), 3: Busy(1, second, "importing what it needs")}
        verdicts = patience.extend([1, 3], busy)
        assert verdicts == {1: min(clock[0] + 2, 700.0), 3: min(clock[0] + 2, 700.0)}
    said = texts(caplog)
    assert said[0] == (
        "scope 1 on 10.0.0.1 is still building its agent (6 s), scope 3 on 10.0.0.3 is still importing what it needs "
        "(6 s)"
    )
    seconds = [int(text.partition("agent (")[2].partition(" s)")[0]) for text in said]
    assert seconds == [6, 12, 24, 48, 96, 192, 384]
    clock[0] = 700.0
    late = patience.extend([1], {1: Busy(1, 600.0, "building its agent")})[1]
    assert isinstance(late, UnreachableError)
    assert (
        str(late) == "it was not built within 600 s; if it may take longer, increase RayOrchestrator(start_timeout=…)"
    )


def test_a_worker_that_stays_silent_is_frozen_and_one_that_nobody_can_ask_is_not(clock, caplog):
    patience = StartPatience(StartTime(600), SCOPES, NODES)
    busy: dict[int, Busy | None] = {0: None, 1: None, 2: Busy(1, 9.0)}
    assert all(isinstance(one, float) for one in patience.extend([0, 1, 2, 3], busy).values())
    clock[0] += 50
    busy[1] = Busy(1, 50.0)
    patience.extend([0, 1, 2, 3], busy)
    clock[0] += 10
    busy[1] = None
    verdicts = patience.extend([0, 1, 2, 3], busy)
    assert [index for index, one in verdicts.items() if isinstance(one, UnreachableError)] == [0]
    assert str(verdicts[0]) == "it has not answered a ping for 60 s"
    assert "scope 0 on 10.0.0.0 does not answer" in caplog.text
    assert "scope 3 on 10.0.0.3 is not ready" in caplog.text


def test_a_line_does_not_name_all_of_many_scopes(clock, caplog):
    patience = StartPatience(StartTime(600), SCOPES, NODES)
    clock[0] += 10
    patience.extend(range(6), {index: Busy(1, 9.0) for index in range(6)})
    (text,) = texts(caplog)
    assert text.count("scope") == 4
    assert text.endswith(", 2 more are not ready")


class OnLine(logging.Handler):
    """Calls a function when a line with certain words has been logged a number of times."""

    def __init__(self, words: str, times: int, call: Callable[[], Any]) -> None:
        super().__init__()
        self.words, self.left, self.call = words, times, call

    def emit(self, record: logging.LogRecord) -> None:
        if self.words in record.getMessage():
            self.left -= 1
            if self.left == 0:
                self.call()

    def __enter__(self) -> None:
        logging.getLogger("lockstep").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("lockstep").removeHandler(self)


BUILDING = " on "
"""A part of every line about workers that are being built."""


def blocking_factory(folder: Path) -> EnvFactory:
    """Environments that are built when the file "go on" exists; the file "pid" has the process that waits."""

    def build(num_envs: int, first_env: int) -> Any:
        if first_env == 2:
            (folder / "pid.part").write_text(str(os.getpid()))
            (folder / "pid.part").rename(folder / "pid")
            wait_for(folder / "go on")
        return build_counting(num_envs, first_env)

    return EnvFactory(build, num_envs=4)


def trainer_of(env: Any = None, **options: Any) -> Any:
    return step_trainer("warp")(
        env=env or counting_factory(4),
        agents=[NullAgent] * 2,
        cfg={**CFG, "timesteps": 10},
        orchestrator=RayOrchestrator(**{"num_cpus": 0.5, **options}),
    )


@pytest.mark.parametrize("transport", full_or_short(TRANSPORTS, ["connection"]), indirect=True)
def test_a_long_build_is_waited_for_and_told(transport, tmp_path, impatient):
    env = blocking_factory(tmp_path)
    line = OnLine("is still building its environments (", 2, (tmp_path / "go on").touch)
    with line, trainer_of(env, transport=transport) as trainer:
        assert trainer.train()[0].numpy()[:, 0].tolist() == [0, 1, 2, 3]
    assert line.left <= 0


KILLS = list(product(TRANSPORTS, [signal.SIGKILL, signal.SIGTERM]))


@pytest.mark.parametrize(("transport", "number"), full_or_short(KILLS, [KILLS[0]]), indirect=["transport"])
def test_a_worker_that_is_killed_while_it_is_built_is_built_again(transport, tmp_path, impatient, number):
    def kill() -> None:
        wait_for(tmp_path / "pid")
        os.kill(int((tmp_path / "pid").read_text()), number)
        (tmp_path / "go on").touch()

    with OnLine(BUILDING, 1, kill), trainer_of(blocking_factory(tmp_path), transport=transport) as trainer:
        assert trainer.train()[0].numpy()[:, 0].tolist() == [0, 1, 2, 3]
        assert [(event.scopes, event.cause) for event in trainer.recoveries] == [((1,), "WorkerDied")]


def test_a_worker_that_dies_each_time_it_is_built_is_given_up(ray_cluster):
    def dying(scope: Scope) -> Any:
        os._exit(3)

    with pytest.raises(WorkerError) as caught:
        step_trainer("warp")(
            env=counting_factory(4), agents=[NullAgent, dying], cfg=CFG, orchestrator=RayOrchestrator(num_cpus=0.5)
        )
    (failure,) = caught.value.failures
    assert (failure.scope, failure.rows, failure.phase, failure.kind) == (1, (2, 4), "build", "WorkerDied")
    assert "process died" in failure.message
    assert failure.message.startswith("this has happened twice in build: ")


@only_long
@pytest.mark.parametrize("transport", TRANSPORTS, indirect=True)
def test_a_worker_that_freezes_while_it_is_built_is_built_again(transport, tmp_path, impatient, monkeypatch):
    monkeypatch.setattr(connection, "PING_TIMEOUT", 0.2)
    monkeypatch.setattr(actor_calls, "PING_TIMEOUT", 0.2)

    def freeze() -> None:
        wait_for(tmp_path / "pid")
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGSTOP)
        (tmp_path / "go on").touch()

    env = blocking_factory(tmp_path)
    with OnLine(BUILDING, 1, freeze), trainer_of(env, transport=transport, hang_timeout=0.5) as trainer:
        assert trainer.train()[0].numpy()[:, 0].tolist() == [0, 1, 2, 3]
        assert [(event.scopes, event.cause) for event in trainer.recoveries] == [((1,), "WorkerHung")]


def test_the_limit_holds_for_a_build_that_goes_on(ray_cluster, tmp_path, impatient, monkeypatch):
    def run_out() -> None:
        monkeypatch.setattr(StartTime, "left", 0.0)

    error = r"not built within 1000 s; .* increase RayOrchestrator\(start_timeout="
    with OnLine(BUILDING, 1, run_out), pytest.raises(WorkerError, match=error):
        trainer_of(blocking_factory(tmp_path), start_timeout=1000)


@ray.remote(num_cpus=0)
class Process:
    """A worker's process that fails while it starts, or waits until it is told to go on."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        if failing == "error":
            raise ModuleNotFoundError("No module named 'mine'")

    def open(self, key: bytes, domain: str | None) -> Any:
        if self.failing == "exit":
            os._exit(3)
        if self.failing:
            wait_for(Path(self.failing))
        return (Address("host", 1), "node")


@pytest.fixture
def started(ray_cluster: None) -> Iterator[Callable[..., list[Any]]]:
    """Start actors with the given faults, and end them after the test."""
    actors: list[Any] = []

    def start(*faults: str, **options: Any) -> list[Any]:
        actors.extend(Process.options(**options).remote(fault) for fault in faults)  # type: ignore[attr-defined]
        return actors

    yield start
    for actor in actors:
        ray.kill(actor)


def test_processes_are_waited_for(started, tmp_path, impatient):
    with OnLine("Ray is still starting the process of scope 1 (", 2, (tmp_path / "go on").touch):
        doors = open_doors(started("", str(tmp_path / "go on")), SCOPES[:2], StartTime(PATIENCE))
    assert [(address.host, len(key), node) for address, key, node in doors] == [("host", 32, "node")] * 2
    assert doors[0].key != doors[1].key


@pytest.mark.parametrize(
    ("fault", "cause"), [("exit", "not start: The actor died"), ("error", "No module named 'mine'")]
)
def test_a_process_that_dies_while_it_starts_fails_at_once(started, tmp_path, fault, cause):
    """The other one is not waited for."""
    with pytest.raises(WorkerError, match=cause) as caught:
        open_doors(started(str(tmp_path / "never"), fault), SCOPES[:2], StartTime(PATIENCE))
    (failure,) = caught.value.failures
    assert (failure.scope, failure.rows, failure.phase, failure.kind) == (1, (2, 4), "build", "WorkerDied")
    assert ("must be installed on every node" in failure.message) is (fault == "error")


def factory_of_a_module(name: str) -> Any:
    """Return a factory that a worker imports from a module that only this process has."""
    module = ModuleType(name)
    exec("def make(*scope_or_rows): raise AssertionError('it was imported')", vars(module))
    sys.modules[name] = module
    return vars(module)["make"]


@pytest.mark.parametrize("what", ["agent", "environment"])
def test_a_module_that_a_worker_lacks_is_told_with_what_to_do(ray_cluster, what, monkeypatch):
    monkeypatch.setitem(sys.modules, "only_here", None)  # is removed after the test
    make = factory_of_a_module("only_here")
    env = EnvFactory(make, num_envs=4) if what == "environment" else counting_factory(4)
    agents = [make if what == "agent" else NullAgent] * 2
    error = (
        r"No module named 'only_here'; modules of your own .* `lockstep submit` or `ray job submit --working-dir DIR`"
    )
    with pytest.raises(WorkerError, match=error) as caught:
        step_trainer("warp")(env=env, agents=agents, cfg=CFG, orchestrator=RayOrchestrator(num_cpus=0.5))
    assert [failure.kind for failure in caught.value.failures] == ["ModuleNotFoundError"] * 2


def test_a_process_that_ray_does_not_start_is_waited_for_until_the_limit(started, impatient, caplog):
    with pytest.raises(ClusterError, match=r"not started the processes of scopes 0, 1 within 0\.5 s; if it may take"):
        open_doors(started("", "", num_cpus=1000), SCOPES[:2], StartTime(0.5))
    assert "Ray is still starting the processes of scopes 0, 1" in caplog.text


BUSY_MACHINE = """
from tests.ray.test_starting import *
logging.basicConfig(level=logging.INFO)
env, cfg = EnvFactory(build_counting, num_envs=4), {**CFG, "timesteps": 10}
with step_trainer("torch")(env=env, agents=[NullAgent] * 2, cfg=cfg, orchestrator="ray") as trainer:
    print(trainer.train()[0][:, 0].tolist())
"""


@only_long
def test_two_actors_start_with_the_defaults_on_a_busy_machine():
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        done = python("-c", BUSY_MACHINE)
    finally:
        for process in spinning:
            process.kill()
            process.wait()
    assert done.stdout.splitlines()[-1:] == ["[0.0, 1.0, 2.0, 3.0]"], done.stderr
