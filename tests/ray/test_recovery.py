"""Workers that are lost: the run goes on with the numbers of one that nobody disturbed, or says why it cannot."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import psutil
import pytest
from gymnasium.spaces import Box

from orchestrator.ray import RayOrchestrator, snapshots
from orchestrator.ray.rebuilding import Rebuilding
from tests.support.agents import NullAgent, RecordingAgent, copied
from tests.support.parity import CFG, assert_same, copied_outputs, step_trainer
from tests.support.processes import PATIENCE, still_alive
from tests.support.schedule import full_or_short
from tests.support.states import Row
from workers.envs import EnvFactory
from workers.envs.making import build_rows
from workers.errors import ConfigError, WorkerError

pytestmark = pytest.mark.usefixtures("ray_cluster")

MODES = ("sharded", "shared")


class Walk(Row):
    """Shows the last action, and a draw of its own generator."""

    action_space = Box(-np.inf, np.inf, (1,), np.float32)

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.last = 0.0

    def extra(self) -> float:
        return self.last + self.np_random.random()

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.last = 0.0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        self.last = float(action[0])
        return super().step(action)


def trainer_of(agents: Any = RecordingAgent, env: Any = None, *, mode: str = "sharded", **options: Any) -> Any:
    env = env or EnvFactory(lambda n, first: [Walk(first + row) for row in range(n)], num_envs=4)
    if mode != "sharded":
        env = build_rows(env, 4, 0, framework="warp", seed=1)
    options = {"num_cpus": 0.5, **options}
    return step_trainer("warp")(
        env=env,
        agents=agents if isinstance(agents, list) else [agents] * 2,
        cfg={**CFG, "timesteps": 100},
        orchestrator="local" if mode == "local" else RayOrchestrator(**options),
        seed=1,
    )


def pids_of(trainer: Any) -> list[int]:
    return [int(worker.node.rpartition("pid ")[2].rstrip(")")) for worker in trainer._session.workers]


def kill(trainer: Any, *scopes: int) -> None:
    """Kill workers, and wait until they are dead."""
    processes = [psutil.Process(pids_of(trainer)[scope]) for scope in scopes]
    for process in processes:
        process.kill()
    assert still_alive(processes) == []


def records(trainer: Any) -> list[Any]:
    """Return all calls of the agents, with their arguments."""
    return [copied_calls(agent.calls) for agent in trainer.agents]


def copied_calls(calls: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    return [(name, copied(arguments)) for name, arguments in calls]


def test_sent_again_or_played_back_everything_happens_once(tmp_path: Path):
    """Deaths between all kinds of requests: outputs, metrics and the calls of the agents are those of local mode."""

    def story(trainer: Any, strike: Callable[..., None]) -> list[Any]:
        seen: list[Any] = []
        trainer.collect_metrics()
        seen.append(copied_outputs(trainer.train()))
        strike(0)
        seen.append(copied_outputs(trainer.run(5)))
        seen.append([{tag: v for tag, v in one.items() if "Return" in tag} for one in trainer.collect_metrics()])
        for number, outputs in enumerate(trainer.iterate(6, prefetch=2)):
            seen.append(copied_outputs(outputs))
            if number == 2:
                strike(1)
        trainer.save(tmp_path / "checkpoint", allow_pickle=True)
        seen.append(copied_outputs(trainer.eval()))
        trainer.reset()
        strike(0, 1)
        seen.append(copied_outputs(trainer.train()))
        trainer.load(tmp_path / "checkpoint", allow_pickle=True)
        strike(1)
        seen.append(copied_outputs(trainer.train()))
        seen.append([{tag: v for tag, v in one.items() if "Return" in tag} for one in trainer.collect_metrics()])
        return seen

    with trainer_of(mode="local") as trainer:
        expected = story(trainer, lambda *_: None)
        calls = records(trainer)
    for mode in MODES:
        with trainer_of(mode=mode, snapshot_every=4) as trainer:
            assert_same(story(trainer, partial(kill, trainer)), expected)
            assert_same(records(trainer), calls)
            assert [event.scopes for event in trainer.recoveries] == [(0,), (1,), (0, 1), (1,)]
            assert [event.cause for event in trainer.recoveries] == ["WorkerDied"] * 4


def test_recoveries_are_told_in_numbers_for_their_scopes():
    with trainer_of(snapshot_every=100) as trainer:
        trainer.run(7)
        kill(trainer, 1)
        trainer.train()
        none, some = trainer.collect_metrics()
        (event,) = trainer.recoveries
        assert (event.scopes, event.timestep, event.cause, event.replayed) == ((1,), 8, "WorkerDied", 7)
        assert not [tag for tag in none if tag.startswith("Recovery")]
        assert some["Recovery / Count"] == 1.0
        assert some["Recovery / Time (s)"] == event.seconds
        assert some["Recovery / Iterations"] == 7.0
        assert not [tag for one in trainer.collect_metrics() for tag in one if tag.startswith("Recovery")]


class Poisoned(NullAgent):
    """Ends its process at timestep 7."""

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        if timestep == 7:
            os.kill(os.getpid(), signal.SIGKILL)
            threading.Event().wait(60)
        return super().act(observations, states, timestep=timestep, timesteps=timesteps)


def test_a_poisoned_step_of_many_is_found():
    """The worker dies in a run of many iterations; they are done one by one until it dies at one of them again."""
    with trainer_of([NullAgent, Poisoned], snapshot_every=1000) as trainer:
        with pytest.raises(WorkerError, match="this has happened twice at timestep 7") as caught:
            trainer.run(20)
        (failure,) = caught.value.failures
        assert (failure.scope, failure.timestep, failure.kind) == (1, 7, "WorkerDied")


def test_after_a_recovery_that_failed_nothing_is_rebuilt(caplog: pytest.LogCaptureFixture):
    with trainer_of([NullAgent, Poisoned]) as trainer:
        trainer.run(6)
        with pytest.raises(WorkerError):
            trainer.train()
        before = caplog.text.count("is being rebuilt")
        with pytest.raises(WorkerError, match="WorkerDied"):
            trainer.collect_metrics()
        assert caplog.text.count("is being rebuilt") == before


def test_an_interrupted_recovery_gives_the_worker_up():
    """It may stand between its snapshot and the others."""
    with trainer_of(snapshot_every=100) as trainer:
        trainer.run(3)
        recovery = trainer._session._recovery
        restore = Rebuilding._restore

        def interrupted(self: Rebuilding) -> Any:
            restore(self)
            raise KeyboardInterrupt

        kill(trainer, 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Rebuilding, "_restore", interrupted)
            with pytest.raises(KeyboardInterrupt):
                trainer.collect_metrics()
        assert recovery.events == []
        with pytest.raises(WorkerError, match="its recovery has failed or was interrupted") as caught:
            trainer.train()
        assert [failure.scope for failure in caught.value.failures] == [1]


class Flaky(NullAgent):
    """Raises an exception at timestep 3, if a file is there, which it removes."""

    def __init__(self, sign: Path) -> None:
        super().__init__()
        self.sign = sign

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        if timestep == 3 and self.sign.exists():
            self.sign.unlink()
            raise MemoryError("for a moment")
        return super().act(observations, states, timestep=timestep, timesteps=timesteps)


def test_what_agents_raise_ends_the_run_unless_it_is_to_be_tried_again(tmp_path: Path):
    agents = [NullAgent, lambda scope: Flaky(tmp_path / "sign")]
    for retries in (False, True):
        (tmp_path / "sign").touch()
        with trainer_of(agents, retry_user_errors=retries) as trainer:
            trainer.run(2)
            if retries:
                trainer.run(3)
                assert [event.cause for event in trainer.recoveries] == ["MemoryError"]
            else:
                with pytest.raises(WorkerError, match="MemoryError: for a moment"):
                    trainer.train()
                assert trainer.recoveries == []


class Unkept(NullAgent):
    """An agent that nothing can keep: it holds a lock."""

    def __init__(self, scope: Any = None) -> None:
        super().__init__(scope)
        self.lock = threading.Lock()


def test_an_agent_that_cannot_be_kept_is_named_before_training_and_its_loss_raises(caplog: pytest.LogCaptureFixture):
    with trainer_of([NullAgent, Unkept]) as trainer:
        said = [record.getMessage() for record in caplog.records]
        assert [
            text for text in said if text.startswith("if the worker of scope 1 is lost, the run ends with an error")
        ]
        trainer.train()
        kill(trainer, 0)
        trainer.train()  # the other one can be restored
        kill(trainer, 1)
        with pytest.raises(WorkerError, match=r"it cannot be restored: .*lock.*: the worker's process died"):
            trainer.train()


def test_nothing_is_kept_for_agents_that_cannot_be_restored():
    with trainer_of(Unkept, retry_user_errors=True) as trainer:
        trainer.run(5)
        assert trainer._session._recovery._journal == {}


def test_snapshots_for_which_there_is_no_memory_are_named(caplog: pytest.LogCaptureFixture):
    class Large(NullAgent):
        def __init__(self, scope: Any) -> None:
            super().__init__(scope)
            self.memory = np.zeros(1_000_000, np.uint8)

    with trainer_of([NullAgent, Large], snapshot_bytes=500_000) as trainer:
        assert "if the worker of scope 1 is lost, the run ends with an error" in caplog.text
        assert "at most 500,000 are kept for all of them" in caplog.text
        kill(trainer, 0)
        trainer.train()
        kill(trainer, 1)
        with pytest.raises(WorkerError, match="it cannot be restored: it has 1,0"):
            trainer.train()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"snapshot_every": 0}, "process died"),
        ({"max_worker_deaths": 0}, "workers were lost more than max_worker_deaths = 0 times"),
    ],
)
def test_recovery_has_limits(options: dict[str, Any], reason: str):
    with trainer_of(**options) as trainer:
        trainer.train()
        kill(trainer, 1)
        with pytest.raises(WorkerError, match=reason) as caught:
            trainer.train()
        assert [failure.scope for failure in caught.value.failures] == [1]


def test_snapshots_are_kept_at_a_url_and_removed_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with trainer_of(snapshot_every=2, snapshot_url=f"file://{tmp_path}/snapshots") as trainer:
        (folder,) = (tmp_path / "snapshots").iterdir()
        for _ in range(3):
            trainer.run(5)
            assert len(list(folder.iterdir())) == 2
        kill(trainer, 1)
        trainer.train()
        with monkeypatch.context() as patch:
            patch.setattr(snapshots, "replace_at", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
            trainer.run(5)
        kill(trainer, 0)
        trainer.train()
        for file in folder.iterdir():
            file.write_bytes(b"something else")
        kill(trainer, 1)
        with pytest.raises(WorkerError, match="is not what was written"):
            trainer.train()
    assert list((tmp_path / "snapshots").iterdir()) == []


class Forgetful(gymnasium.Env[Any, Any]):
    """Its observations are random numbers that nobody can seed, so its episodes cannot be repeated."""

    observation_space = Box(-np.inf, np.inf, (1,), np.float32)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def observe(self) -> Any:
        return np.frombuffer(os.urandom(2), np.uint16).astype(np.float32)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        return self.observe(), 1.0, False, False, {}


def test_episodes_that_cannot_be_restored_are_truncated_or_end_the_run(caplog: pytest.LogCaptureFixture):
    env = EnvFactory(lambda n, first: [Forgetful() for _ in range(n)], num_envs=4)
    with trainer_of(RecordingAgent, env, snapshot_every=3) as trainer:
        trainer.run(3)
        trainer.train()
        kill(trainer, 1)
        truncated = copied_outputs(trainer.train())[3]
        assert truncated[:, 0].tolist() == [False, False, True, True]
        assert "scope 1 goes on from its snapshot" in caplog.text
        assert not copied_outputs(trainer.train())[3].any()
        timesteps = [[record["timestep"] for record in agent.records()] for agent in trainer.agents]
        assert timesteps == [[1, 2, 3, 4, 5, 6], [1, 2, 3, 5, 6]]
    with trainer_of(RecordingAgent, env, snapshot_every=100) as trainer:
        trainer.train()  # since the start: there is no episode in the snapshot, but what is played back differs
        trainer.train()
        kill(trainer, 1)
        assert copied_outputs(trainer.train())[3][:, 0].tolist() == [False, False, True, True]
        assert "the environments of scope 1 do not repeat what they did" in caplog.text
    with trainer_of(RecordingAgent, env, snapshot_every=100, on_lost="raise") as trainer:
        trainer.train()
        kill(trainer, 1)
        with pytest.raises(WorkerError, match="do not repeat timestep 1, and on_lost='raise' ends the run"):
            trainer.train()
    with trainer_of(RecordingAgent, env, snapshot_every=3, on_lost="raise") as trainer:
        trainer.run(4)
        kill(trainer, 1)
        with pytest.raises(WorkerError, match=r"environments \[2, 3\] of the lost worker cannot be restored exactly"):
            trainer.train()


def test_a_worker_that_is_stopped_is_given_up_and_goes_on_as_nobody(caplog: pytest.LogCaptureFixture):
    """It goes on when its place is taken, and has a request to answer."""
    with trainer_of(mode="local") as trainer:
        expected = [copied_outputs(trainer.train()) for _ in range(6)]
    with trainer_of(hang_timeout=1) as trainer:
        given = [copied_outputs(trainer.train()) for _ in range(3)]
        ghost = psutil.Process(pids_of(trainer)[1])
        ghost.suspend()
        crew = trainer._session._recovery._team.crew
        restart = crew.restart

        def restart_and_wake(*arguments: Any) -> Any:
            doors = restart(*arguments)
            if ghost.is_running():
                ghost.resume()
            return doors

        crew.restart = restart_and_wake
        given += [copied_outputs(trainer.train()) for _ in range(3)]
        assert [event.cause for event in trainer.recoveries] == ["WorkerHung"]
        assert pids_of(trainer)[1] != ghost.pid
    assert_same(given, expected)
    assert still_alive([ghost]) == []


def test_a_worker_that_stops_for_a_moment_loses_nothing():
    with trainer_of(hang_timeout=PATIENCE) as trainer:
        trainer.train()
        before = pids_of(trainer)
        process = psutil.Process(before[1])
        process.suspend()
        threading.Timer(1.0, process.resume).start()
        trainer.train()
        assert trainer.recoveries == []
        assert pids_of(trainer) == before


@pytest.mark.parametrize("transport", full_or_short(["connection", "ray"], ["ray"]))
def test_a_spare_takes_the_place(transport: str):
    with trainer_of(spares=1, transport=transport) as trainer:
        crew = trainer._session._recovery._team.crew
        for _ in range(2):
            (spare,) = crew._spares
            import ray

            assert ray.wait([spare.ready], timeout=PATIENCE)[0]
            trainer.train()
            kill(trainer, 0)
            trainer.train()
            assert crew.actors[0] is spare.actor
    with pytest.raises(ConfigError, match="spares need equal resources for all workers"):
        trainer_of(spares=1, num_cpus=[0.5, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snapshot_every": -1}, "snapshot_every is -1; expected an integer of at least 0 or None"),
        ({"snapshot_bytes": 0.5}, "snapshot_bytes is 0.5; expected an integer"),
        ({"spares": None}, "spares is None; expected an integer"),
        ({"spares": 1, "snapshot_every": 0}, "spares replace lost workers, but snapshot_every is 0"),
        ({"node_timeout": 0}, "node_timeout is 0; expected a number of seconds, more than 0"),
        ({"hang_timeout": float("nan")}, "hang_timeout is nan; expected a number of seconds"),
        ({"restart_timeout": "a"}, "restart_timeout is 'a'; expected a number of seconds"),
        ({"snapshot_url": 3}, "snapshot_url is 3; expected a path or URL"),
        ({"on_lost": "shrug"}, "on_lost is 'shrug'; expected 'raise' or 'restart_episode'"),
        ({"snapshot_url": "nowhere://x"}, "folder for snapshots 'nowhere://x' cannot be opened"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        RayOrchestrator(**options)
