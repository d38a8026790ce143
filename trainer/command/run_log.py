"""What is written during a run: metrics, agents, the state of the run, and checkpoints."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

from orchestrator.metrics import MetricsWriter
from orchestrator.run_dir import RunDirectory
from trainer._redaction import redacted
from trainer.command.run_config import CheckpointConfig, RunConfig, dump_config, seconds_between
from trainer.step import StepTrainer
from trainer.versions import versions
from workers.envs.statistics import Statistics
from workers.errors import CheckpointError, ConfigError, DivergedError, LifecycleError

__all__ = ["RATE", "RunLog"]

_logger = logging.getLogger("lockstep")

RATE = "Rate / Environment steps per second"

_OFTEN, _COST = 10.0, 0.01
"""Without an interval, the least seconds between two checkpoints, and the part of the time that they may take."""


class RunLog:
    """Writer of the run directory during a run.

    Attributes:
        timestep: Number of timesteps after which the agents were last stored.
        scalars: The scalars of each scope that were last written.
    """

    def __init__(
        self, config: RunConfig, trainer: StepTrainer[Any], directory: RunDirectory, metrics: MetricsWriter
    ) -> None:
        """Take what is needed; nothing is written."""
        self.timestep = 0
        self.scalars: Sequence[Mapping[str, float]] = []
        self._config, self._trainer, self._directory, self._metrics = config, trainer, directory, metrics
        self._interval = config.logging.interval or max(1, config.trainer.timesteps // 100)
        self._checkpoints, self._schedule = directory.checkpoints(), _Schedule(config.checkpoint)
        self._done = 0
        self._collected, self._since, self._since_timestep = 0, perf_counter(), 0
        self._began = 0  # the timestep from which this process trains
        self._diverged, self._saves = False, config.checkpoint.keep_last > 0

    @property
    def remedy(self) -> str:
        """How to go on after a failure; empty if there is no way."""
        return f"; then: lockstep resume {redacted(self._directory.url)}" if self._saves else ""

    def begin(self) -> int:
        """Start a run in a new directory, and return its timestep: 0.

        Raises:
            ConfigError: The directory is not empty, or cannot be written.
            AgentError: An agent cannot be stored.
        """
        self._trainer.collect_metrics()  # starts the measurement
        files = self._trainer.agent_files()  # an agent that cannot be stored fails now, not at the end
        self._directory.create(_stored(self._config))
        self._start(files)
        return 0

    def go_on(self, *, trust: bool) -> int:
        """Go on from the last checkpoint of the run in this directory, and return its timestep.

        Args:
            trust: Whether to load pickles that this user did not write.

        Raises:
            ConfigError: The directory cannot be written, or its metrics are damaged.
            CheckpointError: No checkpoint can be loaded.
            OSError: The directory cannot be read or written.
        """
        done = self._checkpoints.load(self._load_from, trust=trust)
        if done is None:
            self._check_nothing_lost()
            self._trainer.collect_metrics()
        self._done = self._began = done or 0
        self._collected = self._trainer.metrics_timestep
        self._since, self._since_timestep = perf_counter(), self._done
        self._metrics.cut(self._collected)
        self._directory.write_config(_stored(self._config))
        self._directory.remove("evaluation.json")
        self._directory.clean()
        self._start(self._trainer.agent_files())
        return self._done

    def _check_nothing_lost(self) -> None:
        """Check that a run without checkpoints has nothing that beginning again would lose.

        Raises:
            CheckpointError: It has trained agents.
        """
        timestep = self._directory.status()["timestep"] if self._directory.exists("status.json") else 0
        if timestep:
            raise CheckpointError(
                f"{self._directory.url!r} has no checkpoint, so the run cannot be resumed; its agents are from "
                f"timestep {timestep}. Start a new run from them, with agents.*.init, or repeat it elsewhere"
            )

    def _start(self, files: Sequence[tuple[str, bytes]]) -> None:
        """Write the agents as they are, and the first checkpoint."""
        try:
            self._directory.write("versions.json", json.dumps(versions(), indent=1))
            self._store_agents(files)
        except OSError as error:
            raise ConfigError(f"logging.directory: {self._directory.url!r} cannot be written: {error}") from error
        if self._done:
            self._schedule.saved(self._done, 0)
        else:
            self._save()

    def after(self, done: int) -> None:
        """Write after `done` timesteps, if it is time to.

        Raises:
            CheckpointError: A checkpoint cannot be written, and is required.
            DivergedError: An agent holds NaN or infinity.
        """
        self._done = done
        if not done % self._interval:
            try:
                self._write()
            except OSError:
                # a disk that is full now may have space at the end, when it matters
                _logger.exception("the run directory cannot be written; training continues")
        if self._schedule.is_due(done):
            self._save()

    def failed_at(self, timestep: int) -> None:
        """Record the timestep in which a scope failed; the other scopes stopped near it."""
        self._done = timestep

    def until_next(self, done: int) -> int:
        """Return the number of timesteps from `done` until it is time to write."""
        return min(self._interval - done % self._interval, self._schedule.until_next(done))

    def finish(self, state: str) -> None:
        """Write a checkpoint, and everything that has not been written yet.

        Raises:
            CheckpointError: The checkpoint cannot be written, and is required.
        """
        self._save()  # first: from it, a run goes on as if it had not been stopped
        self._finish(state)

    def save_what_can_be(self) -> None:
        """Write what is possible after a failure. If the agents are out of reach, those stored before are kept."""
        try:
            self._save()
        except LifecycleError:  # an iteration has failed half-way: there is nothing to go on from
            pass
        except Exception as error:
            _logger.error("%s", error)
        try:
            self._write_recoveries()
            self._finish("failed")
        except Exception as error:
            _logger.error("the run directory is incomplete; its agents are from timestep %d: %s", self.timestep, error)
            self.try_status("failed")

    def try_status(self, state: str) -> None:
        """Write the state of the run, if that is possible: it is not worth hiding why the run ends."""
        with suppress(OSError):
            self._status(state)

    def _status(self, state: str) -> None:
        self._directory.write("status.json", json.dumps({"state": state, "timestep": self.timestep}))

    def _finish(self, state: str) -> None:
        if self._done != min(self.timestep, self._collected):
            self._write()
        self._status(state)

    def _write(self) -> None:
        """Write the agents first, because they matter most, then the metrics, which may tell how an agent diverged."""
        if self._done != self.timestep and not self._diverged:
            self._store_agents(self._trainer.agent_files())
        self._write_metrics()

    def _store_agents(self, files: Sequence[tuple[str, bytes]]) -> None:
        try:
            self._directory.write_agents(files, self._statistics())
        except DivergedError:
            self._diverged = True  # told once
            self._write_metrics()
            raise
        self.timestep = self._done
        self._status("running")

    def _save(self) -> None:
        """Write a checkpoint, unless there is one of this timestep already, or none is wanted.

        Raises:
            CheckpointError: It cannot be written, and is required.
            DivergedError: An agent diverged; nothing is replaced.
        """
        done, config = self._done, self._config.checkpoint
        if self._schedule.last == done or not self._saves:
            return
        start = perf_counter()
        try:
            if done != self.timestep:
                self._store_agents(self._trainer.agent_files())  # one that has diverged is in no checkpoint, either
            self._metrics.sync()
            self._checkpoints.save(done, self._save_to, keep_last=config.keep_last)
        except (CheckpointError, OSError) as error:
            if config.required:
                raise CheckpointError(f"no checkpoint of timestep {done}: {error}") from error
            last = self._schedule.last
            if last is None and not isinstance(error.__cause__ or error, OSError):  # it would never succeed
                self._saves = False
                remedy = (
                    "checkpoint.allow_pickle = true lets it use pickle, and checkpoint.keep_last = 0 ends this warning"
                )
                _logger.warning("this run writes no checkpoints, so it cannot be resumed: %s; %s", error, remedy)
                return
            before = "there is none before it" if last is None else f"the last one is that of timestep {last}"
            _logger.error("no checkpoint of timestep %d (%s); training continues: %s", done, before, error)
            self._schedule.attempted(perf_counter() - start)
        else:
            self._schedule.saved(done, perf_counter() - start)

    def _save_to(self, url: str, sign: Callable[[bytes], None]) -> None:
        self._trainer.save(url, allow_pickle=self._config.checkpoint.allow_pickle, sign=sign)

    def _load_from(self, url: str, verify: Callable[[bytes], None]) -> int:
        return self._trainer.load(url, allow_pickle=self._config.checkpoint.allow_pickle, verify=verify)

    def _statistics(self) -> list[list[Statistics]]:
        """Return the statistics of each scope's environments, by row."""
        rows = self._trainer.env_statistics()
        return [rows[start:stop] for start, stop in self._trainer.scopes]

    def _write_metrics(self) -> None:
        scalars = self._trainer.collect_metrics()
        self._write_recoveries()
        is_new, self._collected = self._done != self._collected, self._done
        count, self._since_timestep = self._done - self._since_timestep, self._done
        seconds, self._since = perf_counter() - self._since, perf_counter()
        if is_new:
            for one, (start, stop) in zip(scalars, self._trainer.scopes, strict=True):
                one[RATE] = count * (stop - start) / seconds
            self.scalars = scalars
            self._metrics.write(self._done, scalars)

    def _write_recoveries(self) -> None:
        if self._trainer.recoveries:
            events = [event._asdict() for event in self._trainer.recoveries]
            self._directory.write(f"recoveries/{self._began:012}.json", json.dumps(events, indent=1))


class _Schedule:
    """When it is time for a checkpoint.

    Attributes:
        last: Timestep of the last checkpoint; None if there is none.
    """

    def __init__(self, config: CheckpointConfig) -> None:
        self.last: int | None = None
        self._timesteps = config.interval if isinstance(config.interval, int) else None
        self._seconds = seconds_between(config.interval)
        self._next = perf_counter()

    def until_next(self, done: int) -> int:
        """Return the number of timesteps from `done` until it may be time."""
        return self._timesteps - done % self._timesteps if self._timesteps else _FAR

    def is_due(self, done: int) -> bool:
        """Return whether it is time after `done` timesteps."""
        return not done % self._timesteps if self._timesteps else perf_counter() >= self._next

    def saved(self, done: int, seconds: float) -> None:
        """Note a checkpoint, and how long it took."""
        self.last = done
        self.attempted(seconds)

    def attempted(self, seconds: float) -> None:
        """Note an attempt, and how long it took."""
        self._next = perf_counter() + (self._seconds or max(_OFTEN, seconds / _COST))


_FAR = 2**62


def _stored(config: RunConfig) -> str:
    """Return the configuration as it is stored: the directory belongs to this run only."""
    return dump_config(dataclasses.replace(config, logging=dataclasses.replace(config.logging, directory=None)))
