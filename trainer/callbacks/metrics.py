"""Metrics: the metrics and evaluations of a loop, for TensorBoard and as CSV."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from orchestrator.metrics import MetricsWriter
from trainer.callbacks.evaluator import Evaluator
from trainer.callbacks.loop import Callback, Loop
from trainer.evaluation import Evaluated

__all__ = ["Metrics"]

_logger = logging.getLogger("lockstep")


class Metrics(Callback):
    """Callback that writes the scalars of every scope with a `MetricsWriter`.

    A write that fails is told, and the training goes on: a disk that is full now may have space at the end.
    """

    def __init__(self, writer: MetricsWriter) -> None:
        """Take the writer, which the caller closes."""
        self._writer = writer
        self._written = 0

    def on_start(self, loop: Loop) -> None:
        """Remove what was written after the checkpoint from which the loop goes on, if it does.

        Raises:
            ConfigError: ``metrics.csv`` has been damaged.
            OSError: The files cannot be read or written.
        """
        self._written = loop.timestep
        if loop.timestep:
            evaluations = max((one.told for one in loop.callbacks if isinstance(one, Evaluator)), default=None)
            self._writer.cut(loop.trainer.metrics_timestep, evaluations=evaluations)

    def on_step(self, loop: Loop) -> None:
        """Write the scalars, if they were collected."""
        if loop.scalars:
            try:
                self._write(loop, loop.scalars)
            except OSError:
                _logger.exception("the metrics cannot be written; training continues")

    def on_evaluation(self, loop: Loop, evaluation: Evaluated) -> None:
        """Write the results, at the timestep at which the agents were evaluated."""
        try:
            self._writer.write(evaluation.timestep, [result.scalars for result in evaluation.results])
        except OSError:
            _logger.exception("the results of the evaluation cannot be written; training continues")

    def on_end(self, loop: Loop) -> None:
        """Write what has not been written.

        Raises:
            OSError: It cannot be written.
        """
        if self._written == loop.timestep:
            return
        try:
            self._write(loop, loop.rest())
        except Exception as error:
            if loop.error is None:
                raise
            _logger.error("the last metrics cannot be written: %s", error)

    def _write(self, loop: Loop, scalars: Sequence[dict[str, float]]) -> None:
        self._writer.write(loop.timestep, scalars)
        self._written = loop.timestep
