"""The callback that shows a run: a table in a terminal, lines elsewhere, and the terminal as it was before."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.console

from orchestrator.base import Recovered
from tests.support.agents import NullAgent
from tests.support.envs import counting_factory
from tests.support.parity import CFG, step_trainer
from trainer._console import _Console
from trainer.callbacks import Callback, Console, Loop, console, table
from trainer.evaluation import Evaluated, Evaluation

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class At(Callback):
    """Does something after a timestep."""

    every = 1

    def __init__(self, timestep: int, act: Any) -> None:
        self.timestep, self.act = timestep, act

    def on_step(self, loop: Loop) -> None:
        if loop.timestep == self.timestep:
            self.act(loop)


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")


def show(*callbacks: Callback, is_terminal: bool = True, name: str = "Counting") -> str:
    """Run 8 timesteps of two agents, and return what was written."""
    file = Terminal()
    where = rich.console.Console(file=file, force_terminal=is_terminal, width=100, height=30, color_system=None)
    with step_trainer("torch")(
        env=counting_factory(5), agents=[NullAgent, NullAgent], scopes=[2, 3], cfg={**CFG, "timesteps": 8}, seed=3
    ) as trainer:
        Loop(trainer, [*callbacks, Console(name, console=where)], metrics_every=2).run()
    return file.getvalue()


@pytest.fixture(autouse=True)
def _always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_OFTEN", 0.0)
    monkeypatch.setattr(table, "_COST", 1e9)
    monkeypatch.setattr(console, "_TELLING", 0.0)


def test_the_table_follows_the_run_and_the_terminal_is_given_back():
    written = show()
    assert written.count(HIDE) == written.count(SHOW) == 1
    last = written[written.rindex("Counting") :]
    assert "finished" in last
    assert "8 of 8 timesteps" in last
    assert "steps/s" in last
    assert "running" in written


def test_without_a_terminal_there_are_lines():
    lines = show(is_terminal=False).splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"timestep {2 * i} of 8" for i in (1, 2, 3, 4)]
    assert all(line.endswith("environment steps/s") for line in lines)


def test_the_last_table_has_the_metrics_that_others_collect_at_the_end():
    class Rest(Callback):
        def on_end(self, loop: Loop) -> None:
            for scope, scalars in enumerate(loop.rest()):
                scalars["Learning / Learning rate"] = 0.5 + scope

    file = Terminal()
    where = rich.console.Console(file=file, force_terminal=True, width=100, height=30, color_system=None)
    with step_trainer("torch")(env=counting_factory(4), agents=[NullAgent], cfg={**CFG, "timesteps": 8}) as trainer:
        Loop(trainer, [Console(console=where), Rest()], metrics_every=5).run()
    assert "learning rate" in file.getvalue()


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "dumb")
    assert show().startswith("timestep 2 of 8: ")


def test_a_terminal_that_lacks_characters_gets_lines():
    class Ascii(Terminal):
        encoding = "ascii"

    assert not table.Screen.is_possible(rich.console.Console(file=Ascii(), force_terminal=True))
    assert table.Screen.is_possible(rich.console.Console(file=Terminal(), force_terminal=True))


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), BrokenPipeError(), UnicodeError("too odd")])
def test_an_output_that_nobody_reads_does_not_end_the_training(
    error: Exception, is_terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Gone(Terminal):
        def write(self, text: str) -> int:
            raise error

    where = rich.console.Console(file=Gone(), force_terminal=is_terminal, width=100, height=30)
    with (
        (tmp_path / "output").open("w") as output,  # for rich, which redirects it
        step_trainer("torch")(env=counting_factory(4), agents=[NullAgent], cfg={**CFG, "timesteps": 8}) as trainer,
    ):
        monkeypatch.setattr(sys, "stdout", output)
        loop = Loop(trainer, [Console(console=where)], metrics_every=2)
        loop.run()
        assert loop.timestep == 8
    assert where._buffer == []  # it does not grow


def test_a_signal_while_it_writes_is_heard():
    where = rich.console.Console(file=io.StringIO())
    with pytest.raises(SystemExit), table.showing(where):
        raise SystemExit(143)


def test_a_second_loop_knows_nothing_of_the_first():
    where = rich.console.Console(file=io.StringIO(), force_terminal=True, width=100, height=30, color_system=None)
    shown = Console("Counting", console=where)
    evaluated = Evaluated(timestep=2, results=[Evaluation(returns=[np.nan, 3.0], lengths=[1, 1])], known_by=4)
    better = Evaluated(timestep=3, results=[Evaluation(returns=[777.0], lengths=[1])], known_by=4)

    def happen(loop: Loop) -> None:
        loop.tell_evaluation(evaluated)
        loop.tell_evaluation(better)
        shown.on_fault(loop, RuntimeError("it broke"))

    for callbacks in ([At(4, happen)], []):
        where.file = file = Terminal()
        with step_trainer("torch")(env=counting_factory(4), agents=[NullAgent], cfg={**CFG, "timesteps": 8}) as trainer:
            Loop(trainer, [*callbacks, shown]).run()
        assert ("777" in file.getvalue()) == ("it broke" in file.getvalue()) == bool(callbacks)


def test_without_a_terminal_an_evaluation_is_a_line():
    results = [Evaluation(returns=[10.0, 20.0], lengths=[1, 1]), Evaluation()]
    told = At(4, lambda loop: loop.tell_evaluation(Evaluated(timestep=2, results=results, known_by=4)))
    lines = show(told, is_terminal=False).splitlines()
    assert lines[1] == "evaluation after 2 timesteps: mean returns 15 and (no episode ended)"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), RuntimeError("it broke\x1b[2J")])
def test_the_terminal_is_given_back_after_an_error(error: BaseException, capfd: pytest.CaptureFixture[str]):
    file = Terminal()

    def fail(_: Loop) -> None:
        raise error

    before = sys.stdout, sys.stderr
    where = rich.console.Console(file=file, force_terminal=True, width=100, height=30, color_system=None)
    with step_trainer("torch")(env=counting_factory(4), agents=[NullAgent], cfg={**CFG, "timesteps": 8}) as trainer:
        loop = Loop(trainer, [At(4, fail), Console(console=where)])
        with pytest.raises(type(error)):
            loop.run()
    written = file.getvalue()
    assert written.count(HIDE) == written.count(SHOW) == 1
    assert (sys.stdout, sys.stderr) == before
    state = "failed" if isinstance(error, Exception) else "interrupted"
    assert state in written
    if state == "failed":
        assert "RuntimeError: it broke\\x1b[2J" in written


def test_printed_lines_and_messages_go_above_the_table(monkeypatch: pytest.MonkeyPatch):
    file = Terminal()
    monkeypatch.setattr(sys, "stdout", file)
    monkeypatch.setattr(sys, "stderr", file)

    def talk(_: Loop) -> None:
        print("a printed line")
        record = logging.LogRecord("lockstep", logging.INFO, "", 0, "a message", None, None)
        handler = _Console()
        handler.stream.write(f"{handler.format(record)}\n")

    where = rich.console.Console(file=file, force_terminal=True, width=100, height=30, color_system=None)
    with step_trainer("torch")(env=counting_factory(4), agents=[NullAgent], cfg={**CFG, "timesteps": 8}) as trainer:
        Loop(trainer, [At(4, talk), Console("Counting", console=where)]).run()
    for told in ("a printed line\n", "lockstep: a message\n"):
        before, _, after = file.getvalue().partition(told)
        assert before.endswith("\x1b[2K")  # the table was wiped first
        assert "Counting" in after  # and drawn again
    assert sys.stdout is file


def test_evaluations_checkpoints_faults_and_the_reason_to_stop_are_shown():
    results = [Evaluation(returns=[10.0, 20.0], lengths=[1, 1]), Evaluation(returns=[7.0], lengths=[1])]
    worse = [Evaluation(returns=[11.0], lengths=[1]), Evaluation()]
    lost = Recovered((1,), 3, "WorkerDied", "it died", 1.25, 2)

    def happen(loop: Loop) -> None:
        for callback in loop.callbacks:
            callback.on_evaluation(loop, Evaluated(timestep=2, results=results, known_by=4))
            callback.on_evaluation(loop, Evaluated(timestep=4, results=worse, known_by=4))
            callback.on_checkpoint(loop, "somewhere")
            callback.on_fault(loop, lost)
        loop.stop("good enough")

    written = show(At(4, happen))
    last = written[written.rindex("Counting") :]
    assert "stopped: good enough" in last
    assert "checkpoint 4   evaluation 4" in last
    assert "scope 1 recovered in 1.2 s at timestep 3: WorkerDied" in last
    rows = {line.split()[0]: line.split() for line in last.splitlines() if line.split()[:1] in (["0"], ["1"])}
    assert rows["0"][2:4] == ["11", "15"]
    assert rows["1"][2:4] == ["7", "7"]


def test_a_terminal_that_is_closed_does_not_end_the_training():
    class Closed(Terminal):
        is_closed = False

        def write(self, text: str) -> int:
            if self.is_closed:
                raise OSError(5, "Input/output error")
            return super().write(text)

    file = Closed()
    where = rich.console.Console(file=file, force_terminal=True, width=100, height=30)
    with step_trainer("torch")(env=counting_factory(4), agents=[NullAgent], cfg={**CFG, "timesteps": 8}) as trainer:
        loop = Loop(trainer, [At(4, lambda _: setattr(file, "is_closed", True)), Console(console=where)])
        loop.run()
        assert loop.timestep == 8
