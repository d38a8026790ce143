"""Console: the run as a table in a terminal, or as lines where there is none."""

from __future__ import annotations

import math
from collections import defaultdict
from time import perf_counter

import rich.console

from orchestrator.base import Recovered
from trainer.callbacks.loop import Callback, Loop
from trainer.callbacks.table import Screen, showing
from trainer.callbacks.view import EVALUATED, RunView, ScopeView, in_short
from trainer.evaluation import Evaluated

__all__ = ["Console"]

_TELLING = 10.0
"""Seconds between two lines of progress."""


class Console(Callback):
    """Shows the run on standard output: as a table in a terminal, else as lines.

    There is a line every 10 seconds at most, and one for each evaluation. The table has the returns, environment steps
    per second, times of the phases and learning rates of the last `Loop.metrics_every` timesteps, by simultaneous
    agent. Messages and printed lines go above it. Set ``disable_progressbar`` in the trainer's configuration: a
    progress bar would be in the way. Put it first in the list: then the last table knows what others do at the end.
    """

    def __init__(self, name: str = "", *, console: rich.console.Console | None = None) -> None:
        """Take what is needed; nothing is shown.

        Args:
            name: What is trained on, such as the name of the environment.
            console: Where to show the run. None: standard output.
        """
        self._name, self._console = name, console or rich.console.Console()
        self._screen: Screen | None = None
        self._forget()

    def _forget(self) -> None:
        """Begin with a run of which nothing is known."""
        self._began = self._told = perf_counter()
        self._first = 0
        self._scalars: defaultdict[int, dict[str, float]] = defaultdict(dict)
        self._best: dict[int, float] = {}
        self._checkpoint: int | None = None
        self._evaluation: int | None = None
        self._fault = ""

    def on_start(self, loop: Loop) -> None:
        """Draw the empty table."""
        self._forget()
        self._first = loop.timestep
        if Screen.is_possible(self._console):
            self._screen = Screen(self._console)
            self._screen.draw(self._view(loop, "running"))

    def on_step(self, loop: Loop) -> None:
        """Show what is new."""
        self._note(loop)
        if self._screen is not None:
            if self._screen.is_due():
                self._screen.draw(self._view(loop, "running"))
        elif loop.scalars and perf_counter() - self._told >= _TELLING:
            self._told = perf_counter()
            self._tell(str(self._view(loop, "running")))

    def on_evaluation(self, loop: Loop, evaluation: Evaluated) -> None:
        """Note the returns."""
        self._evaluation = evaluation.timestep
        for index, result in enumerate(evaluation.results):
            if result.returns:
                self._scalars[index][EVALUATED] = result.mean
            if not math.isnan(result.mean):
                self._best[index] = max(result.mean, self._best.get(index, result.mean))
        if self._screen is None:
            means = in_short([result.mean for result in evaluation.results])
            self._tell(f"evaluation after {evaluation.timestep:,} timesteps: mean {means}")

    def on_checkpoint(self, loop: Loop, path: str) -> None:
        """Note the timestep."""
        self._checkpoint = loop.timestep

    def on_fault(self, loop: Loop, fault: Recovered | BaseException) -> None:
        """Note what happened."""
        if isinstance(fault, Recovered):
            scopes = ", ".join(map(str, fault.scopes))
            self._fault = (
                f"scope {scopes} recovered in {fault.seconds:.1f} s at timestep {fault.timestep}: {fault.cause}"
            )
        else:
            self._fault = f"{type(fault).__name__}: {fault}"

    def on_end(self, loop: Loop) -> None:
        """Draw the table a last time, and give the terminal back."""
        if self._screen is None:
            return
        self._note(loop)  # other callbacks may have collected the rest
        if loop.error is not None:
            state = "failed" if isinstance(loop.error, Exception) else "interrupted"
        elif loop.timestep >= loop.timesteps:
            state = "finished"
        else:
            state = f"stopped: {loop.stop_reason}" if loop.stop_reason else "stopped"
        try:
            self._screen.draw(self._view(loop, state))
        finally:
            self._screen.close()
            self._screen = None

    def _tell(self, line: str) -> None:
        with showing(self._console):
            self._console.out(line, highlight=False)

    def _note(self, loop: Loop) -> None:
        for index, scalars in enumerate(loop.scalars):
            self._scalars[index].update(scalars)

    def _view(self, loop: Loop, state: str) -> RunView:
        seconds, done = perf_counter() - self._began, loop.timestep - self._first
        workers = loop.trainer._session.workers
        return RunView(
            name=self._name or type(loop.trainer.env).__name__,
            state=state,
            timestep=loop.timestep,
            timesteps=loop.timesteps,
            scopes=[
                ScopeView(index=index, scalars=self._scalars[index], best=self._best.get(index), node=worker.node)
                for index, worker in enumerate(workers)
            ],
            seconds=seconds,
            remaining=seconds / done * (loop.timesteps - loop.timestep) if done and state == "running" else None,
            checkpoint=self._checkpoint,
            evaluation=self._evaluation,
            recoveries=len(loop.trainer.recoveries),
            fault=self._fault,
        )
