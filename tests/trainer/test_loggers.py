"""Loggers of metrics: what reaches the library, when, and how a run of the library ends."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.support.agents import NullAgent
from tests.support.envs import counting_factory
from tests.support.parity import CFG, step_trainer
from trainer.callbacks import Callback, Loop, WandbLogger
from trainer.callbacks.loggers import Logger
from trainer.evaluation import Evaluated, Evaluation
from workers.errors import ConfigError

RETURN = "scope_0/Episode / Return (mean)"


class ListLogger(Logger):
    """Logger to a list, which outlives it as a server's run does."""

    library = "json"

    def __init__(self, points: list[Any] | None = None, broken: tuple[int, ...] = (), **options: Any) -> None:
        super().__init__(**options)
        self.points = [] if points is None else points
        self.broken, self.tries = list(broken), 0
        self.ending = ""

    def _open(self) -> Mapping[str, Any]:
        if self.run_id is None:
            self.run_id = "seven"
            return {}
        return {mark: timestep for mark, timestep, _ in self.points}

    def _write(self, metrics: Mapping[str, float], timestep: int, mark: str) -> None:
        self.tries += 1
        if self.tries in self.broken:
            raise OSError(f"no network at try {self.tries}")
        self.points.append((mark, timestep, dict(metrics)))

    def _close(self, ending: str) -> None:
        self.ending = ending

    def returns(self) -> list[tuple[int, float]]:
        return [(timestep, round(metrics[RETURN], 3)) for _, timestep, metrics in self.points if RETURN in metrics]


class Late(Callback):
    """Tells after timestep 8 of an evaluation of timestep 4, as Ray may."""

    def on_step(self, loop: Loop) -> None:
        if loop.timestep == 8:
            results = [Evaluation([1.0, 2.0], [5, 7]), Evaluation([3.0], [9])]
            loop.tell_evaluation(Evaluated(4, results, known_by=8))


BuildLoop = Callable[..., Loop]


@pytest.fixture
def loop_of() -> Iterator[BuildLoop]:
    """Build loops of two scopes of one row: episodes of row 0 take 3 timesteps, those of row 1 take 4."""
    with ExitStack() as stack:

        def build(*callbacks: Callback) -> Loop:
            trainer = stack.enter_context(
                step_trainer("torch")(
                    env=counting_factory(2), agents=[NullAgent, NullAgent], cfg={**CFG, "timesteps": 10}, seed=1
                )
            )
            return Loop(trainer, callbacks, metrics_every=3)

        yield build


# the reward of row 0 is 10 episode + step / 10
RETURNS = [(3, 0.6), (6, 30.6), (9, 60.6)]


def test_points_are_named_by_scope_and_tag_and_the_rest_comes_at_the_end(loop_of: BuildLoop):
    logger = ListLogger()
    with loop_of(logger, Late()) as loop:
        for timestep in loop:
            loop.trainer.train(timestep=timestep)
    assert logger.returns() == RETURNS
    training = [(timestep, sorted(metrics)) for mark, timestep, metrics in logger.points if mark == "lockstep/training"]
    assert [timestep for timestep, _ in training] == [3, 6, 9, 10]
    rates = [f"scope_{scope}/Rate / Environment steps per second" for scope in (0, 1)]
    assert all(set(rates) <= set(names) for _, names in training)
    ((_, timestep, evaluated),) = [point for point in logger.points if point[0] == "lockstep/evaluation"]
    assert timestep == 4
    assert evaluated["scope_0/Evaluation / Return (mean)"] == 1.5
    assert evaluated["scope_1/Evaluation / Length (mean)"] == 9.0
    assert logger.ending == "finished"
    assert logger.state_dict() == {"run_id": "seven"}


def test_a_resumed_loop_goes_on_with_the_run_and_logs_nothing_twice(loop_of: BuildLoop, tmp_path: Path):
    class Saving(Callback):
        every = 5

        def on_step(self, loop: Loop) -> None:
            if loop.timestep == 5:
                loop.save(tmp_path / "checkpoint", allow_pickle=True)

    first = ListLogger()
    with loop_of(first, Late(), Saving()) as loop:
        for timestep in loop:
            loop.trainer.train(timestep=timestep)
            if timestep == 8:  # as if it were killed, after the evaluation
                break
    assert [point[:2] for point in first.points] == [
        ("lockstep/training", 3),
        ("lockstep/training", 6),
        ("lockstep/evaluation", 4),
    ]
    second = ListLogger(first.points)
    resumed = loop_of(second, Late(), Callback())
    assert resumed.load(tmp_path / "checkpoint", allow_pickle=True) == 5
    resumed.run()
    assert second.run_id == "seven"
    assert second.returns() == RETURNS
    assert [timestep for mark, timestep, _ in second.points if mark == "lockstep/evaluation"] == [4]


def test_an_outage_does_not_end_the_training_and_is_told_once(loop_of: BuildLoop, caplog: pytest.LogCaptureFixture):
    logger = ListLogger(broken=(1, 2))
    with caplog.at_level(logging.WARNING, "lockstep"):
        loop_of(logger).run()
    assert logger.returns() == RETURNS
    (record,) = caplog.records
    assert record.message.startswith("ListLogger failed and will try again; training continues: no network at try 1")
    caplog.clear()
    lost = ListLogger(broken=tuple(range(1, 20)))
    loop_of(lost).run()
    assert caplog.messages[-1] == "ListLogger could not log 4 points"
    assert (len(caplog.records), lost.ending) == (2, "finished")


def test_after_a_slow_failure_there_is_a_pause(monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    logger = ListLogger(broken=(1,))
    monkeypatch.setattr("trainer.callbacks.loggers.time", SimpleNamespace(perf_counter=lambda: now))
    write = logger._write

    def slow(*arguments: Any) -> None:
        nonlocal now
        now += 2.0
        write(*arguments)

    monkeypatch.setattr(logger, "_write", slow)
    for at, tries in ((0.0, 1), (21.0, 1), (22.0, 4)):  # it failed at 2 s, after 2 s
        now = at
        logger._log("training", logger._last["training"] + 1, [{"a": 1.0}])
        assert logger.tries == tries
    assert [timestep for _, timestep, _ in logger.points] == [1, 2, 3]


def test_a_logger_that_cannot_start_ends_the_loop(loop_of: BuildLoop):
    class Refused(ListLogger):
        def _open(self) -> Mapping[str, Any]:
            raise PermissionError("no key")

    earlier, refused = ListLogger(), Refused()
    with pytest.raises(ConfigError, match="Refused cannot start: no key"):
        loop_of(earlier, refused).run()
    assert (earlier.ending, refused.ending) == ("failed", "")


class Ends(Callback):
    """Ends the loop after the first timestep."""

    def __init__(self, how: BaseException | str) -> None:
        self.how = how

    def on_step(self, loop: Loop) -> None:
        if isinstance(self.how, str):
            loop.stop(self.how)
        else:
            raise self.how


@pytest.mark.parametrize(
    ("how", "ending"),
    [("good enough", "finished"), (ValueError(), "failed"), (KeyboardInterrupt(), "killed"), (SystemExit(), "killed")],
)
def test_the_run_ends_as_the_loop_does(loop_of: BuildLoop, how: BaseException | str, ending: str):
    logger = ListLogger()
    loop = loop_of(logger, Ends(how))
    if isinstance(how, str):
        loop.run()
    else:
        with pytest.raises(type(how)):
            loop.run()
    assert logger.ending == ending
    assert logger.points == []  # of a part of an interval: a resumed loop has the whole


def fake_wandb(monkeypatch: pytest.MonkeyPatch, summary: Mapping[str, Any]) -> list[Any]:
    """Put a stand-in for W&B's module in its place, and return the list of its calls."""
    calls: list[Any] = []
    module: Any = ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None)
    run = SimpleNamespace(
        id="new",
        summary=dict(summary),
        log=lambda data: calls.append(("log", data)),
        define_metric=lambda *arguments, **options: None,
        finish=lambda exit_code: calls.append(("finish", exit_code)),
    )

    def init(**options: Any) -> SimpleNamespace:
        calls.append(("init", options))
        return run

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


def test_wandb_is_resumed_online(monkeypatch: pytest.MonkeyPatch):
    calls = fake_wandb(monkeypatch, {"lockstep/training": 3, "timestep": 2})
    logger = WandbLogger(project="mine", config={"api_key": "hunter22", "seed": 1})
    logger.load_state_dict({"run_id": "old"})
    loop: Any = SimpleNamespace(timestep=3, scalars=[{"a": 1.0}], error=KeyboardInterrupt())
    logger.on_start(loop)
    logger.on_step(loop)
    loop.timestep = 6
    logger.on_step(loop)
    logger.on_end(loop)
    config = {"api_key": "***", "seed": 1}
    assert calls == [
        ("init", {"config": config, "project": "mine", "id": "old", "resume": "allow"}),
        ("log", {"scope_0/a": 1.0, "timestep": 6}),
        ("finish", 255),
    ]


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"needs wandb, which is not installed; run pip install 'lockstep-rl\[wandb\]'"
    ):
        WandbLogger()
