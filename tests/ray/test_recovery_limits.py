"""Lost workers that are not rebuilt: what ends a run, and how it says so."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.ray import RayOrchestrator
from orchestrator.ray.rebuilding import Rebuilding
from tests.support.agents import NullAgent
from tests.support.recovering import kill, trainer_of
from workers.errors import ConfigError, WorkerError

pytestmark = pytest.mark.usefixtures("ray_cluster")

MODES = ("sharded", "shared")


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
        assert "snapshot_bytes allows 500,000 for all" in caplog.text
        kill(trainer, 0)
        trainer.train()
        kill(trainer, 1)
        with pytest.raises(WorkerError, match="it cannot be restored: its snapshot has 1,0"):
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
