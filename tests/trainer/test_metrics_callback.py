"""`Metrics`: what it writes and cuts, also where a write fails."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.metrics import MetricsWriter
from tests.support.agents import NullAgent
from tests.support.envs import counting_factory
from tests.support.parity import CFG
from trainer.callbacks import Callback, Loop, Metrics
from trainer.evaluation import Evaluated, Evaluation
from trainer.torch import StepTrainer

RETURN = "Episode / Return (mean)"


class Evaluations(Callback):
    """Callback that tells at timesteps 8 and 16 of evaluations of 5 timesteps before."""

    every = 8

    def on_step(self, loop: Loop) -> None:
        if not loop.timestep % 8:
            results = [Evaluation([float(loop.timestep)], [1])]
            loop.tell_evaluation(Evaluated(loop.timestep - 5, results, known_by=loop.timestep))


def trained(folder: Path, *callbacks: Callback) -> Loop:
    cfg: Any = {**CFG, "timesteps": 20}
    with (
        StepTrainer(env=counting_factory(1), agents=NullAgent, cfg=cfg, seed=1) as trainer,
        MetricsWriter(str(folder)) as writer,
    ):
        loop = Loop(trainer, [Evaluations(), *callbacks, Metrics(writer)], metrics_every=6)
        loop.run()
    return loop


def rows(folder: Path, tag: str) -> list[tuple[int, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [(int(row["timestep"]), float(row["value"])) for row in csv.DictReader(file) if row["tag"] == tag]


def tags_twice(folder: Path) -> int:
    lines = (folder / "metrics.csv").read_text().splitlines()
    return len(lines) - len({line.rpartition(",")[0] for line in lines})


# episodes take 3 timesteps; the reward is 10 episode + step / 10
RETURNS = [(6, 15.6), (12, 75.6), (18, 135.6)]
EVALUATIONS = [(3, 8.0), (11, 16.0)]


def test_all_is_written_once(tmp_path: Path):
    trained(tmp_path)
    assert rows(tmp_path, RETURN) == [(step, pytest.approx(value)) for step, value in RETURNS]
    assert rows(tmp_path, "Evaluation / Return (mean)") == EVALUATIONS
    assert rows(tmp_path, "Rate / Environment steps per second")[-1][0] == 20  # the rest
    assert tags_twice(tmp_path) == 0


@pytest.mark.parametrize("what", ["_append", "_write_events"])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_what_could_not_be_written_is_written_later_and_once(
    what: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    write: Callable[..., None] = getattr(MetricsWriter, what)
    count = 0

    def fails_once(self: MetricsWriter, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == at:
            raise OSError("no space left")
        write(self, *arguments)

    monkeypatch.setattr(MetricsWriter, what, fails_once)
    with caplog.at_level(logging.ERROR, "lockstep"):
        trained(tmp_path)
    assert "the metrics cannot be written; training continues" in caplog.text
    assert rows(tmp_path, RETURN) == [(step, pytest.approx(value)) for step, value in RETURNS]
    assert rows(tmp_path, "Evaluation / Return (mean)") == EVALUATIONS
    assert tags_twice(tmp_path) == 0


def test_after_an_interrupt_no_worker_is_asked(tmp_path: Path):
    class Interrupt(Callback):
        every = 9

        def on_step(self, loop: Loop) -> None:
            if loop.timestep == 9:
                loop.trainer.collect_metrics = lambda: pytest.fail("a worker is asked")  # type: ignore[method-assign]
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, Interrupt())
    assert rows(tmp_path, RETURN) == [(6, pytest.approx(15.6))]


def test_what_waits_is_kept_in_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Saving(Callback):
        every = 14

        def on_step(self, loop: Loop) -> None:
            if loop.timestep == 14:
                loop.save(tmp_path / "checkpoint", allow_pickle=True)
                raise KeyboardInterrupt

    def loop_of(trainer: StepTrainer[Any], writer: MetricsWriter) -> Loop:
        return Loop(trainer, [Evaluations(), Metrics(writer), Saving()], metrics_every=6)

    def new_trainer() -> StepTrainer[Any]:
        cfg: Any = {**CFG, "timesteps": 20}
        return StepTrainer(env=counting_factory(1), agents=NullAgent, cfg=cfg, seed=1)

    write = MetricsWriter._append

    def fails(self: MetricsWriter, rows: Any) -> None:
        if rows[0][0] == 12:
            raise OSError("no space left")
        write(self, rows)

    monkeypatch.setattr(MetricsWriter, "_append", fails)
    with new_trainer() as trainer, MetricsWriter(str(tmp_path)) as writer, pytest.raises(KeyboardInterrupt):
        loop_of(trainer, writer).run()
    assert [step for step, _ in rows(tmp_path, RETURN)] == [6]
    monkeypatch.setattr(MetricsWriter, "_append", write)
    with new_trainer() as trainer, MetricsWriter(str(tmp_path)) as writer:
        loop = loop_of(trainer, writer)
        loop.load(tmp_path / "checkpoint", allow_pickle=True)
        loop.run()
    assert [step for step, _ in rows(tmp_path, RETURN)] == [6, 12, 18]
    assert rows(tmp_path, RETURN)[1] == (12, pytest.approx(75.6))
    assert rows(tmp_path, "Evaluation / Return (mean)") == EVALUATIONS
    assert tags_twice(tmp_path) == 0
