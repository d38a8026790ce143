"""The checkpoints of a run: when they are written, and which are kept."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

from orchestrator.metrics import MetricsWriter
from orchestrator.run_dir import RunDirectory
from trainer._redaction import redacted
from trainer.callbacks.loop import Callback, Loop
from trainer.command.run_config import CheckpointConfig, seconds_between
from trainer.command.run_log import StoredAgents
from trainer.evaluation import Evaluated
from workers.errors import CheckpointError, ClusterError, LifecycleError

__all__ = ["Checkpoints"]

_logger = logging.getLogger("lockstep")

_OFTEN, _COST = 10.0, 0.01
"""Without an interval, the least seconds between two checkpoints, and the part of the time that they may take."""


class Checkpoints(Callback):
    """Callback that writes the checkpoints of a run, and deletes old ones. It is the last one in a list.

    Attributes:
        every: Number of timesteps between two; None if it is measured in seconds.
        saves: Whether checkpoints are written.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        directory: RunDirectory,
        metrics: MetricsWriter,
        agents: StoredAgents,
        *,
        evaluated_every: int | None = None,
    ) -> None:
        """Take what is needed; nothing is written.

        Args:
            config: When to write, and what to keep.
            directory: The run directory.
            metrics: The writer of the run's metrics, which are on the disk before a checkpoint is.
            agents: The callback that stores the agents, which are stored before a checkpoint is written.
            evaluated_every: Number of timesteps between two evaluations, by which the best ones are kept.
        """
        self.every = config.interval if isinstance(config.interval, int) else None
        self._config, self._directory, self._metrics, self._agents = config, directory, metrics, agents
        self._checkpoints, self._schedule = directory.checkpoints(), _Schedule(config)
        self.saves = config.keep_last > 0
        self._evaluated_every = evaluated_every if config.keep_best else None
        self._returns: dict[int, float] = {}  # mean returns of the best checkpoints, by timestep
        self._evaluated = 0  # the last timestep whose evaluation is known
        self._failed: set[int] = set()  # timesteps whose checkpoints could not be written

    @property
    def remedy(self) -> str:
        """How to go on after a failure; empty if there is no way."""
        return f"; then: lockstep resume {redacted(self._directory.url)}" if self.saves else ""

    def on_start(self, loop: Loop) -> None:
        """Write the first checkpoint of a new run."""
        if loop.timestep:
            self._schedule.saved(loop.timestep, 0)
        else:
            self._save(loop)

    def on_step(self, loop: Loop) -> None:
        """Write a checkpoint, if it is time to.

        Raises:
            CheckpointError: It cannot be written, and is required.
            DivergedError: An agent holds NaN or infinity.
        """
        if self._is_evaluated(loop.timestep) or self._schedule.is_due(loop.timestep):
            self._save(loop)

    def _is_evaluated(self, timestep: int) -> bool:
        return self._evaluated_every is not None and not timestep % self._evaluated_every

    def _is_kept(self, timestep: int) -> bool:
        """Return whether a checkpoint is one of the best, or may be: its evaluation is not known yet."""
        return timestep in self._returns or (timestep > self._evaluated and self._is_evaluated(timestep))

    def on_evaluation(self, loop: Loop, evaluation: Evaluated) -> None:
        """Keep the checkpoint of the evaluated agents, if they are among the best."""
        if self._evaluated_every is None:
            return
        self._evaluated = evaluation.timestep
        if math.isnan(evaluation.mean) or evaluation.timestep in self._failed:  # NaN: some episodes did not end
            return
        returns = self._returns | {evaluation.timestep: evaluation.mean}
        best = sorted(returns, key=lambda timestep: (-returns[timestep], timestep))
        self._returns = {timestep: returns[timestep] for timestep in best[: self._config.keep_best]}

    def on_end(self, loop: Loop) -> None:
        """Write the last checkpoint, from which a run goes on as if it had not been stopped.

        Raises:
            CheckpointError: After a training without an error: it cannot be written, and is required.
        """
        error = loop.error
        if isinstance(error, KeyboardInterrupt):
            return
        if isinstance(error, ClusterError):  # at once: Ray may end this process before anybody else tells it
            _logger.error("%s%s", error, self.remedy)
        if not loop.is_settled:  # an iteration or a callback has failed half-way: there is nothing to go on from
            return
        try:
            self._save(loop)
        except LifecycleError:  # likewise
            pass
        except Exception as broken:
            if error is None:
                raise
            _logger.error("%s", broken)

    def state_dict(self) -> Mapping[str, Any]:
        """Return the mean returns of the best checkpoints by timestep, and the last evaluation that is known."""
        returns = {str(timestep): mean for timestep, mean in self._returns.items()}
        return {"returns": returns, "evaluated": self._evaluated}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` returned."""
        self._returns = {int(timestep): mean for timestep, mean in state["returns"].items()}
        self._evaluated = state["evaluated"]

    def _save(self, loop: Loop) -> None:
        """Write a checkpoint, unless there is one of this timestep already, or none is wanted.

        Raises:
            CheckpointError: It cannot be written, and is required.
            DivergedError: An agent diverged; nothing is replaced.
        """
        done, config = loop.timestep, self._config
        if self._schedule.last == done or not self.saves or self._agents.diverged:
            return
        try:
            loop.settle()
        except Exception as error:
            if loop.error is None:
                raise
            _logger.error("an evaluation is lost: %s", error)
        start, path = perf_counter(), ""

        def save(url: str, sign: Callable[[bytes], None]) -> None:
            nonlocal path
            loop.write(url, allow_pickle=config.allow_pickle, sign=sign)
            path = url

        try:
            self._agents.store(loop)  # one that has diverged is in no checkpoint, either
            self._metrics.sync()
            self._checkpoints.save(done, save, keep_last=config.keep_last, keep=self._is_kept)
        except (CheckpointError, OSError) as error:
            self._failed.add(done)
            self._returns.pop(done, None)
            self._missed(done, error, perf_counter() - start)
        else:
            self._schedule.saved(done, perf_counter() - start)
            loop.tell_checkpoint(path)

    def _missed(self, done: int, error: Exception, seconds: float) -> None:
        """Say that a checkpoint could not be written.

        Raises:
            CheckpointError: It is required.
        """
        if self._config.required:
            raise CheckpointError(f"no checkpoint of timestep {done}: {error}") from error
        last = self._schedule.last
        if last is None and not isinstance(error.__cause__ or error, OSError):  # it would never succeed
            self.saves = False
            remedy = "checkpoint.allow_pickle = true lets it use pickle, and checkpoint.keep_last = 0 ends this warning"
            _logger.warning("this run writes no checkpoints, so it cannot be resumed: %s; %s", error, remedy)
            return
        before = "there is none before it" if last is None else f"the last one is that of timestep {last}"
        _logger.error("no checkpoint of timestep %d (%s); training continues: %s", done, before, error)
        self._schedule.attempted(seconds)


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
