"""Throughput of `lockstep train` with and without checkpoints at the default interval.

    python benchmarks/checkpoints.py [--repetitions N] [--seconds S]

One trainer trains all the time. In windows that take turns, its run directory gets checkpoints, or none; everything
else is written in both. The share is the time that the loop spends in writing checkpoints, with the agents' files that
go with them. The bar is a loss of 2 %.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NPROC", "1")

import argparse
import dataclasses
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from measuring import ratios
from report import describe_machine, spread, table, write_section

from orchestrator.run_dir import RunDirectory
from trainer.callbacks import Loop, Metrics
from trainer.command.checkpointing import Checkpoints
from trainer.command.run import prepare
from trainer.command.run_config import RunConfig, load_config
from trainer.command.run_log import Status, StoredAgents, begin
from trainer.command.signals import Stop

_ENDLESS = 10**9

CASES = {
    "CartPole-v1 x 64": ("CartPole-v1", 64, "{agent: ppo}"),
    "HalfCheetah-v5 x 64": ("HalfCheetah-v5", 64, "{agent: ppo}"),
    "skrl's SAC, Pendulum-v1 x 8": ("Pendulum-v1", 8, "{agent: 'tests.support.own_agents:skrl_sac'}"),
}


def configuration(id: str, num_envs: int, agent: str, keep_last: int) -> RunConfig:
    """Return the configuration of a case."""
    text = f"env: {{id: {id}, num_envs: {num_envs}}}\nagents: [{agent}, {agent}]\n"
    text += f"trainer: {{timesteps: {_ENDLESS}, headless: true, disable_progressbar: true}}\n"
    return load_config(f"{text}logging: {{interval: 2000}}\ncheckpoint: {{keep_last: {keep_last}}}\n")


class Writer:
    """A run directory, with or without checkpoints, to which a trainer writes for some seconds."""

    def __init__(self, trainer: Any, config: RunConfig, folder: Path) -> None:
        self._trainer, self._config = trainer, config
        self._directory = RunDirectory(str(folder))
        self._metrics = self._directory.metrics()
        self._checkpoints = folder / "checkpoints"
        self._saving: list[float] = []
        self._stop = Stop()
        loop, agents = self._loop()
        begin(config, loop, self._directory, agents)

    def _loop(self) -> tuple[Loop, StoredAgents]:
        status = Status(self._directory, self._stop)
        agents = StoredAgents(self._directory, status)
        checkpoints = Checkpoints(self._config.checkpoint, self._directory, self._metrics, agents)
        save = checkpoints._save

        def timed(loop: Loop) -> None:
            start = time.perf_counter()
            save(loop)
            self._saving.append(time.perf_counter() - start)

        vars(checkpoints)["_save"] = timed
        callbacks = [status, agents, Metrics(self._metrics), checkpoints]
        return Loop(self._trainer, callbacks, metrics_every=self._config.logging.interval), agents

    def rate(self, done: int, seconds: float) -> tuple[int, float, list[float]]:
        """Train for some seconds; return the timestep, the timesteps per second and the seconds of each checkpoint."""
        loop, _ = self._loop()
        self._stop.signal = 0
        self._saving.clear()
        timer = threading.Timer(seconds, vars(self._stop).update, [{"signal": 15}])
        timer.start()
        start = time.perf_counter()
        with loop:
            for timestep in loop.groups():
                after, taken, saving = timestep, time.perf_counter() - start, list(self._saving)
                if self._stop.signal:
                    break
        timer.cancel()
        return after, (after - done) / taken, saving

    def size(self) -> int:
        """Return the bytes of the last checkpoint."""
        last = max(self._checkpoints.iterdir())
        return sum(file.stat().st_size for file in last.rglob("*") if file.is_file())


def measure(name: str, repetitions: int, seconds: float, folder: Path) -> list[str]:
    """Return the row of the table of one case."""
    case = CASES[name]
    run = prepare(configuration(*case, keep_last=2))
    values: dict[str, list[float]] = {"without": [], "with": []}
    counts, shares = [], []
    with run.opened() as trainer:
        trainer.run(500, timestep=0)
        writers = {
            key: Writer(
                trainer, dataclasses.replace(run.config, checkpoint=configuration(*case, keep).checkpoint), folder / key
            )
            for key, keep in (("without", 0), ("with", 2))
        }
        done = trainer.next_timestep
        for repetition in range(-1, repetitions):
            for key, writer in writers.items():
                done, rate, saving = writer.rate(done, seconds if repetition >= 0 else 2.0)
                if repetition >= 0:
                    values[key].append(rate)
                    if key == "with":
                        counts.append(len(saving))
                        shares.append(100 * sum(saving) / seconds)
        size = writers["with"].size()
    losses = [100 * (1 - ratio) for ratio in ratios(values["with"], values["without"])]
    cells = [spread(values[key], 0) for key in ("without", "with")]
    number = f"{min(counts)} to {max(counts)}"
    return [name, f"{size / 1e6:,.1f}", number, spread(shares, 2), *cells, spread(losses, 2)]


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=25.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        rows = [measure(name, options.repetitions, options.seconds, Path(folder, name)) for name in CASES]
    header = ["case", "MB", "checkpoints", "share in %", "steps/s without", "steps/s with", "loss in %"]
    told = f"{options.repetitions} repetitions of {options.seconds:g} s"
    text = f"{describe_machine('torch', 'skrl')}; {told}.\n\n{table(header, rows)}"
    print(text)
    write_section("checkpoint-cost", text)


if __name__ == "__main__":
    main()
