"""A run, from its configuration to its run directory."""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from types import FrameType
from typing import Any

from orchestrator.metrics import MetricsWriter
from orchestrator.run_dir import RunDirectory
from trainer._redaction import redacted
from trainer.command.evaluation import Evaluation, evaluate, rounded
from trainer.command.run import prepare
from trainer.command.run_config import RunConfig, dump_config
from trainer.step import StepTrainer
from trainer.versions import versions
from workers.envs.statistics import Statistics
from workers.errors import ConfigError, DivergedError, WorkerError

__all__ = ["report", "train"]

_logger = logging.getLogger("lockstep")

_DIGITS = 8
"""Number of digits of a digest in the printed lines."""

_MOMENT = 0.3
"""Seconds that workers may run on their own: a signal waits about this long, or for one iteration."""

_TELLING = 10.0
"""Seconds between two lines of progress."""

_MOST_SCOPES = 4
"""Number of scopes whose returns a line of progress tells one by one."""

_RETURN, _RATE = "Episode / Return (mean)", "Rate / Environment steps per second"


class Stop:
    """Request to stop the run, made by SIGINT (Ctrl-C) or SIGTERM.

    Attributes:
        signal: Number of the signal; 0 if there was none.
    """

    signal = 0

    def ask(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal: the first one stops the run after the iterations under way, the second one at once."""
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
        _logger.warning("stopping after the iterations under way; repeat the signal to stop at once")


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into a request to stop."""
    stop = Stop()
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(config: RunConfig, directory: RunDirectory) -> Iterator[str]:
    """Train, store and evaluate the agents.

    Args:
        config: The configuration.
        directory: The run directory, which must be empty or not exist yet.

    Yields:
        Lines that report progress, and at the end the results of the evaluation.

    Raises:
        ConfigError: The configuration is invalid.
        AgentError: An agent cannot be stored.
        DivergedError: An agent holds NaN or infinity; those stored before are kept, and the metrics are written.
        WorkerError: Environments or agents failed; the training up to then is stored as far as possible.
        SystemExit: A signal stopped the run; the training up to then is stored.
        KeyboardInterrupt: A second signal stopped the run at once; what was stored last is kept.
    """
    directory.check_new()
    run = prepare(config)
    with run.opened() as trainer, directory.metrics() as metrics, stop_on_signals() as stop:
        log = _Log(run.config, trainer, directory, metrics)
        yield str(trainer)
        yield f"run directory: {redacted(directory.url)}"
        try:
            yield from _run(trainer, run.config.trainer.timesteps, log, stop)
            log.finish("interrupted" if stop.signal else "finished")
        except KeyboardInterrupt:  # stop at once: store nothing that needs a request to a worker
            log.status("interrupted")
            raise
        except BaseException:
            log.save_what_can_be()
            raise
        if stop.signal:
            yield f"stopped at timestep {log.timestep}; the agents are stored in {redacted(directory.url)}"
            raise SystemExit(128 + stop.signal)
    if config.evaluation.episodes:
        try:
            results = evaluate(run.config, directory)
        except Exception:
            _logger.error("training is finished and stored in %s, but evaluation failed:", directory.url)
            raise
        yield from report(results, config, directory)
        stored = [
            {"scope": scope, "weights": directory.digest(scope), **dataclasses.asdict(result)}
            for scope, result in enumerate(results)
        ]
        directory.write("evaluation.json", json.dumps(stored, indent=1))


def _run(trainer: StepTrainer[Any], timesteps: int, log: _Log, stop: Stop) -> Iterator[str]:
    """Train in groups of iterations, each of which ends before the next write and takes about `_MOMENT` at most.

    Yields:
        Lines of progress, if no progress bar is shown.
    """
    bar = trainer.cfg.disable_progressbar
    has_bar = bar is False or (bar is None and sys.stdout.isatty())
    told = perf_counter()
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
        if not has_bar and log.scalars and perf_counter() - told >= _TELLING:
            yield f"timestep {done:,} of {timesteps:,}: {progress(log.scalars)}"
            told, log.scalars = perf_counter(), []
        count = max(1, int(count * _MOMENT / seconds))


def progress(scalars: Sequence[Mapping[str, float]]) -> str:
    """Return the mean return of each scope, or the range of many, and the environment steps per second of all.

    Args:
        scalars: The scalars of each scope, by tag.
    """
    rate = f"{sum(one[_RATE] for one in scalars):,.0f} environment steps/s"
    found = [one[_RETURN] for one in scalars if _RETURN in one]
    if not found:
        return f"no episode ended; {rate}"
    if len(scalars) > _MOST_SCOPES:
        return f"returns {rounded(min(found))} to {rounded(max(found))} in {len(scalars)} scopes; {rate}"
    *most, last = [rounded(one[_RETURN]) if _RETURN in one else "(no episode ended)" for one in scalars]
    returns = f"returns {', '.join(most)} and" if most else "return"
    return f"{returns} {last}; {rate}"


def report(results: Sequence[Evaluation], config: RunConfig, directory: RunDirectory) -> Iterator[str]:
    """Yield a line with the results of each stored agent."""
    status, wanted = directory.status(), config.evaluation
    if status["state"] != "finished":
        _logger.warning("the run is %s; the stored agents are from timestep %s", status["state"], status["timestep"])
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
    """Writer of the run directory during a run.

    Attributes:
        timestep: Number of timesteps after which the agents were last stored.
        scalars: The scalars of each scope that were last written.
    """

    def __init__(
        self, config: RunConfig, trainer: StepTrainer[Any], directory: RunDirectory, metrics: MetricsWriter
    ) -> None:
        self.timestep = 0
        self.scalars: Sequence[Mapping[str, float]] = []
        self._trainer, self._directory, self._metrics = trainer, directory, metrics
        self._interval = config.logging.interval or max(1, config.trainer.timesteps // 100)
        self._done = 0
        self._collected, self._since = 0, perf_counter()
        self._diverged = False
        trainer.collect_metrics()  # starts the measurement
        files = trainer.agent_files()  # an agent that cannot be stored fails now, not at the end
        # the directory belongs to this run only
        stored = dataclasses.replace(config, logging=dataclasses.replace(config.logging, directory=None))
        directory.create(dump_config(stored))
        try:
            directory.write("versions.json", json.dumps(versions(), indent=1))
            directory.write_agents(files, self._statistics())
            self.status("running")
        except OSError as error:
            raise ConfigError(f"logging.directory: {directory.url!r} cannot be written: {error}") from error

    def after(self, done: int) -> None:
        """Write after `done` timesteps, if it is time to."""
        self._done = done
        if not done % self._interval:
            try:
                self._write()
            except OSError:
                # a disk that is full now may have space at the end, when it matters
                _logger.exception("the run directory cannot be written; training continues")

    def failed_at(self, timestep: int) -> None:
        """Record the timestep in which a scope failed; the other scopes stopped near it."""
        self._done = timestep

    def until_next(self, done: int) -> int:
        """Return the number of timesteps from `done` until it is time to write."""
        return self._interval - done % self._interval

    def finish(self, state: str) -> None:
        """Write everything that has not been written yet."""
        if self._done != min(self.timestep, self._collected):
            self._write()
        self.status(state)

    def save_what_can_be(self) -> None:
        """Write what is possible after a failure. If the agents are out of reach, those stored before are kept."""
        try:
            self.finish("failed")
        except Exception as error:
            _logger.error("the run directory is incomplete; its agents are from timestep %d: %s", self.timestep, error)
            self.status("failed")

    def status(self, state: str) -> None:
        """Write the state of the run."""
        self._directory.write("status.json", json.dumps({"state": state, "timestep": self.timestep}))

    def _write(self) -> None:
        """Write the agents first, because they matter most, then the metrics, which may tell how an agent diverged."""
        try:
            if self._done != self.timestep and not self._diverged:
                self._directory.write_agents(self._trainer.agent_files(), self._statistics())
                self.timestep = self._done
                self.status("running")
        except DivergedError:
            self._diverged = True  # told once
            self._write_metrics()
            raise
        self._write_metrics()

    def _statistics(self) -> list[list[Statistics]]:
        """Return the statistics of each scope's environments, by row."""
        rows = self._trainer.env_statistics()
        return [rows[start:stop] for start, stop in self._trainer.scopes]

    def _write_metrics(self) -> None:
        scalars = self._trainer.collect_metrics()
        count, self._collected = self._done - self._collected, self._done
        seconds, self._since = perf_counter() - self._since, perf_counter()
        if count:
            for one, (start, stop) in zip(scalars, self._trainer.scopes, strict=True):
                one[_RATE] = count * (stop - start) / seconds
            self.scalars = scalars
            self._metrics.write(self._done, scalars)
