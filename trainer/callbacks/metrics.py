"""Metrics: the metrics and evaluations of a loop, for TensorBoard and as CSV."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.metrics import MetricsWriter
from trainer.callbacks.evaluator import Evaluator
from trainer.callbacks.loop import Callback, Loop
from trainer.evaluation import Evaluated

__all__ = ["Metrics"]

_logger = logging.getLogger("lockstep")


class Metrics(Callback):
    """Callback that writes the scalars of every scope with a `MetricsWriter`.

    A write that fails is told, and the training goes on. What it could not write is written with the next.
    """

    def __init__(self, writer: MetricsWriter) -> None:
        """Take the writer, which the caller closes."""
        self._writer = writer
        self._collected = self._evaluated = 0  # the last timesteps that were written
        self._taken = 0  # the last timestep whose scalars are written or waiting
        self._waiting: list[tuple[bool, int, Sequence[dict[str, float]]]] = []
        self._has_failed = False

    def on_start(self, loop: Loop) -> None:
        """Remove what was written after the checkpoint from which the loop goes on, if it does.

        Raises:
            ConfigError: ``metrics.csv`` has been damaged.
            OSError: The files cannot be read or written.
        """
        if not self._waiting:  # what waits in a checkpoint comes after what had been written
            self._collected, self._evaluated = loop.trainer.metrics_timestep, loop.timestep
            for one in loop.callbacks:
                if isinstance(one, Evaluator):
                    self._evaluated = max(one.told, loop.timestep - 1 if one.repeats else self._collected)
        self._taken = loop.trainer.metrics_timestep
        if loop.is_resumed:
            self._writer.cut(self._collected, evaluations=self._evaluated)

    def on_step(self, loop: Loop) -> None:
        """Write the scalars, if they were collected."""
        if loop.scalars:
            self._take(loop, loop.scalars)
            self._try()

    def on_evaluation(self, loop: Loop, evaluation: Evaluated) -> None:
        """Write the results, at the timestep at which the agents were evaluated."""
        self._waiting.append((True, evaluation.timestep, [result.scalars for result in evaluation.results]))
        self._try()

    def on_end(self, loop: Loop) -> None:
        """Write what has not been written, unless the loop was interrupted: that would need a request to the workers.

        Raises:
            OSError: It cannot be written.
        """
        if isinstance(loop.error, KeyboardInterrupt):
            return
        if self._taken != loop.timestep:
            self._take(loop, loop.rest())
        self._write()

    def state_dict(self) -> Mapping[str, Any]:
        """Return what could not be written, and what had been written before."""
        if not self._waiting:
            return {}
        waiting = [[*one[:2], [dict(scalars) for scalars in one[2]]] for one in self._waiting]
        return {"waiting": waiting, "collected": self._collected, "evaluated": self._evaluated}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` returned."""
        self._waiting = [(is_evaluation, timestep, scalars) for is_evaluation, timestep, scalars in state["waiting"]]
        self._collected, self._evaluated = state["collected"], state["evaluated"]

    def _take(self, loop: Loop, scalars: Sequence[dict[str, float]]) -> None:
        self._taken = loop.timestep
        self._waiting.append((False, loop.timestep, scalars))

    def _try(self) -> None:
        try:
            self._write()
        except OSError:
            _logger.exception("the metrics cannot be written; training continues")

    def _write(self) -> None:
        """Write what is waiting. A write that failed may have left a part, which is removed first."""
        while self._waiting:
            is_evaluation, timestep, scalars = self._waiting[0]
            if self._has_failed:
                self._writer.cut(self._collected, evaluations=self._evaluated)
            try:
                self._writer.write(timestep, scalars)
            except OSError:
                self._has_failed = True
                raise
            self._has_failed = False
            if is_evaluation:
                self._evaluated = timestep
            else:
                self._collected = timestep
            del self._waiting[0]
