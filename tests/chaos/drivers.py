"""Runs of the command whose program and workers are killed, resumed each time, compared with one in local mode."""

from __future__ import annotations

import random
import signal
import tempfile
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import ray

from tests.chaos.running import Result
from tests.command.test_killed import written
from tests.support.dying import lockstep, results
from tests.support.parity import assert_same
from tests.support.processes import descendants

__all__ = ["run_command"]

_TIMESTEPS = 1500
_SECONDS = 6.0
"""Seconds within which the program is killed after training began."""

_LIVES = 4


def _folder() -> Any:
    return tempfile.TemporaryDirectory(prefix="lockstep-chaos-")


def _written(folder: Path) -> Path:
    trainer = {"timesteps": _TIMESTEPS, "headless": True, "disable_progressbar": True}
    return written("CartPole", "torch", folder, trainer=trainer)


@cache
def _undisturbed() -> dict[str, Any]:
    with _folder() as name:
        folder = Path(name)
        done = lockstep(None, "train", _written(folder), "--set", f"logging.directory={folder / 'run'}")
        assert done.returncode == 0, done.stderr
        return results(folder / "run")


def run_command(seed: int) -> Result:
    """Run `lockstep train` in Ray; kill it and its workers at random moments, and resume it until it ends.

    Raises:
        AssertionError: What it has written is not what a run in local mode writes.
    """
    expected, chance, faults = _undisturbed(), random.Random(seed), 0
    options = ["orchestrator.kind=ray", f"orchestrator.options.address={ray.get_runtime_context().gcs_address}"]
    with _folder() as name:
        folder = Path(name)
        arguments: list[object] = ["train", _written(folder), "--set", f"logging.directory={folder / 'run'}", *options]
        moments: list[str | None] = [
            chance.choice([f"KILL@{chance.uniform(0, _SECONDS):.3f}", f"KILL#{chance.randrange(20, 250)}"])
            for _ in range(_LIVES)
        ]
        for moment in [*moments, None]:
            is_over = threading.Event()
            striker = threading.Thread(target=_strike, args=(chance.uniform(3, 12), is_over), daemon=True)
            striker.start()
            done = lockstep(moment, *arguments)
            is_over.set()
            striker.join()
            assert done.returncode in (0, -signal.SIGKILL), done.stderr
            faults += 1 + done.stderr.count("was lost and is being rebuilt")
            if (folder / "run" / "config.yaml").exists():
                arguments = ["resume", folder / "run"]
            if done.returncode == 0:
                break
        assert_same(results(folder / "run"), expected)
    return Result(faults=faults, recoveries=0, causes=["driver"], seconds=[], replayed=0, files=0, memory=0)


def _strike(seconds: float, is_over: threading.Event) -> None:
    """Kill one worker after some seconds, unless the program is over."""
    if not is_over.wait(seconds):
        for process in descendants("WorkerActor")[:1]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
