"""The process of a worker is like that of any program: main thread, signals, event loops, exits, log."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
import pytest

from orchestrator.ray import RayOrchestrator
from tests.support.agents import DyingAgent, NullAgent, RecordingAgent
from tests.support.envs import CountingEnv, counting_factory
from tests.support.parity import CFG, step_trainer
from tests.support.processes import PATIENCE, descendants, still_alive, wait_for
from tests.support.schedule import full_or_short
from workers.envs import EnvFactory, wrap_env
from workers.errors import WorkerError

TRANSPORTS = ["connection", "ray"]


@pytest.fixture
def transport(request: pytest.FixtureRequest, ray_cluster: None) -> str:
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def _no_actor_is_left() -> Iterator[None]:
    yield
    still_alive(descendants("ray::WorkerActor") + descendants("ray::ControlActor"))
    assert descendants("ray::WorkerActor") + descendants("ray::ControlActor") == []


def trainer_of(agents: Any, env: Any = None, **options: Any) -> Any:
    return step_trainer("warp")(
        env=env or counting_factory(2),
        agents=agents,
        cfg={**CFG, "timesteps": 10},
        orchestrator=RayOrchestrator(num_cpus=0.5, **options),
    )


def pid_of(trainer: Any, scope: int = 0) -> int:
    return int(trainer._session.workers[scope].node.rpartition("pid ")[2].rstrip(")"))


async def answer() -> int:
    return 42


def use_the_main_thread() -> None:
    """Do what only the main thread may do."""
    assert threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, before)
    assert asyncio.get_event_loop().run_until_complete(answer()) == 42


class MainThreadEnv(CountingEnv):
    def __init__(self, row: int, closed: Path) -> None:
        use_the_main_thread()
        super().__init__(row)
        self.closed = closed

    def reset(self, **options: Any) -> Any:
        use_the_main_thread()
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        use_the_main_thread()
        return super().step(action)

    def close(self) -> None:
        use_the_main_thread()
        assert asyncio.run(answer()) == 42
        self.closed.write_text("on the main thread")


class MainThreadAgent(NullAgent):
    def __init__(self, scope: Any) -> None:
        super().__init__()
        use_the_main_thread()

    def act(self, *args: Any, **options: Any) -> Any:
        use_the_main_thread()
        return super().act(*args, **options)

    def record_transition(self, **arguments: Any) -> None:
        use_the_main_thread()

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        use_the_main_thread()

    def state_dict(self) -> dict[str, Any]:
        use_the_main_thread()
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


@pytest.mark.parametrize("transport", full_or_short(TRANSPORTS, ["ray"]), indirect=True)
def test_environments_and_agents_are_on_the_main_thread(transport, tmp_path):
    closed = tmp_path / "closed"
    env = EnvFactory(lambda n, first: [MainThreadEnv(first + i, closed) for i in range(n)], num_envs=1)
    with trainer_of(MainThreadAgent, env, transport=transport) as trainer:
        trainer.run(3)
        trainer.iterate(2)
        trainer.reset()
        trainer.eval()
        trainer.agent_files()
    assert closed.read_text() == "on the main thread"


class Custom(BaseException):
    pass


class ExitingAgent(NullAgent):
    """Ends like a program at timestep 3, each scope in its own way."""

    def __init__(self, scope: Any) -> None:
        super().__init__()
        self.index = scope.index

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        if timestep == 3 and self.index == 0:
            sys.exit("enough")
        return super().act(observations, states, timestep=timestep, timesteps=timesteps)

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        if timestep == 3 and self.index == 1:
            raise Custom("too much")


PAIRS = list(product(TRANSPORTS, [False, True]))


@pytest.mark.parametrize(("transport", "shared"), full_or_short(PAIRS, [("connection", False)]), indirect=["transport"])
def test_exits_of_user_code_are_failures_at_once(transport, shared):
    env: Any = wrap_env([CountingEnv(0), CountingEnv(1)], framework="warp") if shared else counting_factory(2)
    with trainer_of([ExitingAgent] * 2, env, transport=transport) as trainer:
        trainer.run(2)
        with pytest.raises(WorkerError) as caught:
            trainer.run(3)
        failures = caught.value.failures
        exited = failures[0]
        assert (exited.scope, exited.phase, exited.timestep, exited.kind) == (0, "act", 3, "SystemExit")
        assert "in act\n" in exited.traceback
        if not shared:  # where environments are shared, the first failure ends the iteration
            custom = failures[1]
            assert (custom.scope, custom.phase, custom.timestep) == (1, "post-interaction", 3)
            assert custom.kind == "tests.ray.test_surroundings.Custom"
        assert len(trainer._session.collect()) == 2  # the workers live


class InterruptedEnv(CountingEnv):
    def step(self, action: Any) -> Any:
        if self.step_count == 1:
            raise KeyboardInterrupt("of the program")
        return super().step(action)


@pytest.mark.parametrize("orchestrator", ["local", "ray"])
def test_an_interrupt_in_the_program_itself_stays_one(ray_cluster, orchestrator):
    """Shared environments are stepped in the program also with Ray."""
    trainer = step_trainer("warp")(
        env=wrap_env([InterruptedEnv(0), InterruptedEnv(1)], framework="warp"),
        agents=[RecordingAgent()] * 1,
        cfg={**CFG, "timesteps": 10},
        orchestrator=orchestrator,
    )
    with trainer:
        trainer.train()
        with pytest.raises(KeyboardInterrupt, match="of the program"):
            trainer.train()


@pytest.mark.parametrize("transport", full_or_short(TRANSPORTS, ["ray"]), indirect=True)
def test_rays_signal_still_ends_a_worker(transport):
    """Both at work and between two requests."""
    agents = [NullAgent, lambda scope: DyingAgent(signal.SIGTERM)]
    with trainer_of(agents, transport=transport, snapshot_every=0) as trainer:
        trainer.run(2)
        with pytest.raises(WorkerError) as caught:
            trainer.train()
        (failure,) = caught.value.failures
        assert (failure.scope, failure.kind) == (1, "WorkerDied")
    with trainer_of([NullAgent], transport=transport, snapshot_every=0) as trainer:
        trainer.train()
        process = psutil.Process(pid_of(trainer))
        process.send_signal(signal.SIGTERM)
        assert still_alive([process]) == []
        with pytest.raises(WorkerError, match="WorkerDied"):
            trainer.train()


class StubbornAgent(NullAgent):
    """Refuses to be ended, and does not notice an interrupt."""

    def __init__(self, scope: Any) -> None:
        super().__init__()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, lambda *_: sys.exit("interrupted"))


@pytest.mark.parametrize("transport", full_or_short(TRANSPORTS, ["connection"]), indirect=True)
def test_handlers_of_user_code_do_not_keep_a_worker_alive(transport):
    with trainer_of(StubbornAgent, transport=transport) as trainer:
        trainer.train()
        process = psutil.Process(pid_of(trainer))
    assert still_alive([process]) == []


class TalkingAgent(NullAgent):
    def __init__(self, scope: Any) -> None:
        super().__init__()
        self.scope = scope
        self.say("built")

    def say(self, what: str) -> None:
        logging.getLogger("lockstep").warning("%s in %s", what, "a worker")
        logging.getLogger("lockstep").info("%s quietly", what)

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        self.say("stepped")
        if self.scope.index == 1 and timestep == 3:
            self.say("failed")
            raise ValueError


@pytest.mark.parametrize("transport", full_or_short(TRANSPORTS, ["connection"]), indirect=True)
def test_what_workers_log_is_logged_once_a_session(transport, caplog):
    for _ in range(1 + (transport == "connection")):
        caplog.clear()
        with trainer_of([TalkingAgent] * 2, transport=transport) as trainer:
            trainer.train()
            trainer.run(1)
            with pytest.raises(WorkerError):
                trainer.train()
        said = [record.getMessage() for record in caplog.records if record.getMessage().endswith("in a worker")]
        assert said == ["built in a worker", "stepped in a worker", "failed in a worker"]
        assert {record.levelname for record in caplog.records if "in a worker" in record.getMessage()} == {"WARNING"}
    assert "quietly" not in caplog.text


class SlowAgent(NullAgent):
    """Takes its time from timestep 2 on, until the file exists."""

    def __init__(self, go_on: Path) -> None:
        super().__init__()
        self.go_on = go_on

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        if timestep >= 2:
            wait_for(self.go_on)


@pytest.mark.parametrize("transport", full_or_short(TRANSPORTS, ["ray"]), indirect=True)
def test_workers_are_asked_and_halted_beside_their_work(transport, tmp_path):
    """One scope fails, while the other has a thousand iterations to go."""
    go_on = tmp_path / "go on"

    class FailingAgent(RecordingAgent):
        def post_interaction(self, *, timestep: int, timesteps: int) -> None:
            if timestep == 2:
                raise ValueError("oh no")

    with trainer_of([lambda scope: SlowAgent(go_on), FailingAgent], transport=transport, snapshot_every=0) as trainer:
        streams = trainer._session._streams
        halt = streams._halt

        def halt_and_go_on(numbers: dict[int, int]) -> None:
            halt(numbers)
            deadline = monotonic() + PATIENCE
            while (busy := streams._ping([0]).get(0)) is None:  # a helper may have to start first
                assert monotonic() < deadline
                threading.Event().wait(0.05)
            assert busy.seq is not None
            assert busy.seq <= numbers[0]
            go_on.touch()

        streams._halt = halt_and_go_on
        with pytest.raises(WorkerError) as caught:
            trainer.run(1000, timestep=1)
        assert [failure.scope for failure in caught.value.failures] == [1]
        assert os.getpid() != pid_of(trainer)
