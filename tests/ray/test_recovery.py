"""Workers that are lost: the run goes on with the numbers of one that nobody disturbed, or says why it cannot."""

from __future__ import annotations

import os
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

from orchestrator.ray import snapshots
from tests.support.agents import RecordingAgent, copied
from tests.support.parity import assert_same, copied_outputs
from tests.support.processes import PATIENCE, still_alive
from tests.support.recovering import kill, pids_of, trainer_of
from tests.support.schedule import full_or_short
from workers.envs import EnvFactory
from workers.errors import ConfigError, WorkerError

pytestmark = pytest.mark.usefixtures("ray_cluster")

MODES = ("sharded", "shared")


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
        kill(trainer, 0)
        trainer.run(3)
        assert [(event.scopes, event.timestep) for event in trainer.recoveries] == [((1,), 8), ((0,), 11)]


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
        assert "the environments of scope 1, or its agent, do not repeat what they did" in caplog.text
    with trainer_of(RecordingAgent, env, snapshot_every=100, on_lost="raise") as trainer:
        trainer.train()
        kill(trainer, 1)
        with pytest.raises(WorkerError, match="timestep 1 does not repeat itself, and on_lost='raise' ends the run"):
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
