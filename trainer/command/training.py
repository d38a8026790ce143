"""A run from its configuration to its run directory."""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from types import FrameType
from typing import Any

from orchestrator.metrics import MetricsWriter
from orchestrator.run_dir import RunDirectory
from trainer.command.evaluation import Evaluation, evaluate
from trainer.command.run import prepare
from trainer.command.run_config import RunConfig, dump_config
from trainer.command.versions import versions
from trainer.step import StepTrainer
from workers.errors import ConfigError, WorkerError

__all__ = ["report", "train"]

_logger = logging.getLogger("lockstep")

_DIGITS = 8
"""Digits of a digest on the screen."""

_MOMENT = 0.3
"""Seconds for which workers may be left alone: so long a signal may have to wait, if an iteration takes no longer."""


class Stop:
    """Whether the run has been asked to stop, by SIGINT (Ctrl-C) or SIGTERM.

    Attributes:
        signal: The signal's number, 0 if there was none.
    """

    signal = 0

    def ask(self, number: int, _frame: FrameType | None) -> None:
        """Handle the signal: the first one stops the run after the iterations that are under way."""
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
        _logger.warning("stopping after the iterations that are under way; once more to stop at once")


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Take SIGINT and SIGTERM as the wish to stop."""
    stop = Stop()
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(config: RunConfig, directory: RunDirectory) -> Iterator[str]:
    """Train, store and evaluate.

    Args:
        config: The configuration.
        directory: The run directory, which must not be there yet.

    Yields:
        Lines that tell what happens, and last the returns of the evaluation.

    Raises:
        ConfigError: Something in the configuration cannot be.
        AgentError: An agent cannot be stored.
        WorkerError: Environments or agents failed; what was trained until then is stored.
        SystemExit: A signal stopped the run; what was trained until then is stored.
        KeyboardInterrupt: A second signal stopped it at once; what was stored last is kept.
    """
    directory.check_new()
    run = prepare(config)
    with run.trainer() as trainer, directory.metrics() as metrics, stop_on_signals() as stop:
        log = _Log(run.config, trainer, directory, metrics)
        yield str(trainer)
        yield f"run directory: {directory.url}"
        try:
            _run(trainer, run.config.trainer.timesteps, log, stop)
            log.finish("interrupted" if stop.signal else "finished")
        except KeyboardInterrupt:  # at once: not even what a worker has to be asked for is stored
            log.status("interrupted")
            raise
        except BaseException:
            log.save_what_can_be()
            raise
        if stop.signal:
            yield f"stopped at timestep {log.timestep}; the agents are stored in {directory.url}"
            raise SystemExit(128 + stop.signal)
    if config.evaluation.episodes:
        try:
            results = evaluate(run.config, directory)
        except Exception:
            _logger.error("the training is finished and stored in %s, but its evaluation failed:", directory.url)
            raise
        yield from report(results, config, directory)
        stored = [
            {"scope": scope, "weights": directory.digest(scope), **dataclasses.asdict(result)}
            for scope, result in enumerate(results)
        ]
        directory.write("evaluation.json", json.dumps(stored, indent=1))


def _run(trainer: StepTrainer[Any], timesteps: int, log: _Log, stop: Stop) -> None:
    """Train in groups of iterations, which end where something is to be written, and take no longer than a moment."""
    done, count = 0, 1
    while done < timesteps and not stop.signal:
        count = min(count, timesteps - done, log.until_next(done))
        start = perf_counter()
        try:
            trainer.run(count, timestep=done)
        except WorkerError as error:
            log.failed_at(min((one.timestep for one in error.failures if one.timestep is not None), default=done))
            raise
        seconds = perf_counter() - start
        done += count
        log.after(done)
        count = max(1, int(count * _MOMENT / seconds))


def report(results: Sequence[Evaluation], config: RunConfig, directory: RunDirectory) -> Iterator[str]:
    """Tell what the stored agents achieved, a line each."""
    status, wanted = directory.status(), config.evaluation
    if status["state"] != "finished":
        _logger.warning("the run is %s; its agents are those of timestep %s", status["state"], status["timestep"])
    for scope, result in enumerate(results):
        yield f"scope {scope}: {result}, weights {directory.digest(scope)[:_DIGITS]}"
        if missing := wanted.episodes - len(result.returns):
            _logger.warning(
                "scope %d: %d of %d episodes did not end within evaluation.max_timesteps = %d",
                scope,
                missing,
                wanted.episodes,
                wanted.max_timesteps,
            )


class _Log:
    """What is written while a run is under way.

    Attributes:
        timestep: Timesteps after which the stored agents were stored.
    """

    def __init__(
        self, config: RunConfig, trainer: StepTrainer[Any], directory: RunDirectory, metrics: MetricsWriter
    ) -> None:
        self.timestep = 0
        self._trainer, self._directory, self._metrics = trainer, directory, metrics
        self._interval = config.logging.interval or max(1, config.trainer.timesteps // 100)
        self._done = 0
        self._collected, self._since = 0, perf_counter()
        trainer.collect_metrics()  # starts the measuring
        files = trainer.agent_files()  # an agent that cannot be stored is to be known now, not at the end
        # the directory is that of this run only
        stored = dataclasses.replace(config, logging=dataclasses.replace(config.logging, directory=None))
        directory.create(dump_config(stored))
        try:
            directory.write("versions.json", json.dumps(versions(), indent=1))
            directory.write_agents(files)
            self.status("running")
        except OSError as error:
            raise ConfigError(f"logging.directory: {directory.url!r} cannot be written: {error}") from error

    def after(self, done: int) -> None:
        """Write, if it is time to, after so many timesteps."""
        self._done = done
        if not done % self._interval:
            try:
                self._write()
            except OSError:
                # a disk that is full now may have room at the end, where it does count
                _logger.exception("the run directory cannot be written; the training goes on")

    def failed_at(self, timestep: int) -> None:
        """Take note of the timestep that a scope failed in; the others stopped somewhere near it."""
        self._done = timestep

    def until_next(self, done: int) -> int:
        """Number of timesteps, after so many, until it is time to write."""
        return self._interval - done % self._interval

    def finish(self, state: str) -> None:
        """Write what has not been written yet."""
        if self._done != min(self.timestep, self._collected):
            self._write()
        self.status(state)

    def save_what_can_be(self) -> None:
        """After a failure: the agents may be out of reach, and those that were stored before are kept."""
        try:
            self.finish("failed")
        except Exception as error:
            _logger.error("the agents stay as they were stored at timestep %d: %s", self.timestep, error)
            self.status("failed")

    def status(self, state: str) -> None:
        """Say where the run stands."""
        self._directory.write("status.json", json.dumps({"state": state, "timestep": self.timestep}))

    def _write(self) -> None:
        """The agents first: they count most."""
        if self._done != self.timestep:
            self._directory.write_agents(self._trainer.agent_files())
            self.timestep = self._done
            self.status("running")
        scalars = self._trainer.collect_metrics()
        count, self._collected = self._done - self._collected, self._done
        seconds, self._since = perf_counter() - self._since, perf_counter()
        if count:
            for one, (start, stop) in zip(scalars, self._trainer.scopes, strict=True):
                one["Rate / Environment steps per second"] = count * (stop - start) / seconds
            self._metrics.write(self._done, scalars)
