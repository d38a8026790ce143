"""What is written when a run begins or goes on, and during it: its agents and its state."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

from orchestrator.base import Recovered
from orchestrator.run_dir import RunDirectory
from trainer.callbacks.loop import Callback, Loop
from trainer.command.run_config import RunConfig, dump_config
from trainer.command.signals import Stop
from trainer.evaluation import statistics_of
from trainer.versions import versions
from workers.errors import CheckpointError, ConfigError, DivergedError

__all__ = ["Status", "StoredAgents", "begin", "go_on", "stored"]

_logger = logging.getLogger("lockstep")


def begin(config: RunConfig, loop: Loop, directory: RunDirectory, agents: StoredAgents) -> None:
    """Start a run in a new directory.

    Raises:
        ConfigError: The directory is not empty, or cannot be written.
        AgentError: An agent cannot be stored.
    """
    files = loop.trainer.agent_files()  # an agent that cannot be stored fails now, not at the end
    directory.create(stored(config))
    _start(loop, directory, agents, files)


def go_on(
    config: RunConfig,
    loop: Loop,
    directory: RunDirectory,
    agents: StoredAgents,
    *,
    trust: bool,
) -> None:
    """Go on from the last checkpoint of the run in this directory; without one, begin again.

    Args:
        config: The run's configuration.
        loop: The loop, which is set to the timestep of the checkpoint.
        directory: The run directory.
        agents: The callback that stores the agents.
        trust: Whether to load pickles that this user did not write.

    Raises:
        ConfigError: The directory cannot be written, or its metrics are damaged.
        CheckpointError: No checkpoint can be loaded.
        OSError: The directory cannot be read or written.
    """

    def load(url: str, verify: Callable[[bytes], None]) -> int:
        return loop.load(url, allow_pickle=config.checkpoint.allow_pickle, verify=verify)

    if directory.checkpoints().load(load, trust=trust) is None:
        _check_nothing_lost(directory)
        loop.is_resumed = True  # what was written before is cut
    directory.write_config(stored(config))
    directory.remove("evaluation.json")
    directory.clean()
    _start(loop, directory, agents, loop.trainer.agent_files())


def _check_nothing_lost(directory: RunDirectory) -> None:
    """Check that a run without checkpoints has nothing that beginning again would lose.

    Raises:
        CheckpointError: It has trained agents.
    """
    timestep = directory.status()["timestep"] if directory.exists("status.json") else 0
    if timestep:
        raise CheckpointError(
            f"{directory.url!r} has no checkpoint, so the run cannot be resumed; its agents are from "
            f"timestep {timestep}. Start a new run from them, with agents.*.init, or repeat it elsewhere"
        )


def _start(loop: Loop, directory: RunDirectory, agents: StoredAgents, files: Sequence[tuple[str, bytes]]) -> None:
    """Write the agents as they are."""
    try:
        directory.write("versions.json", json.dumps(versions(), indent=1))
        agents.store(loop, files)
    except OSError as error:
        raise ConfigError(f"logging.directory: {directory.url!r} cannot be written: {error}") from error


class Status(Callback):
    """Callback that writes the state of the run. It is the first one in a list, so that it is the last one at the end.

    Attributes:
        timestep: Number of timesteps after which the agents were last stored.
    """

    def __init__(self, directory: RunDirectory, stop: Stop) -> None:
        """Take the run directory, and what tells whether a signal stops the run."""
        self.timestep = 0
        self._directory, self._stop = directory, stop

    def write(self, state: str, *, stopped: str = "") -> None:
        """Write the state.

        Raises:
            OSError: It cannot be written.
        """
        status = {"state": state, "timestep": self.timestep} | ({"stopped": stopped} if stopped else {})
        self._directory.write("status.json", json.dumps(status))

    def on_end(self, loop: Loop) -> None:
        """Write how the run has ended.

        Raises:
            OSError: After a training without an error: it cannot be written.
        """
        if loop.error is None:
            self.write("interrupted" if self._stop.signal else "finished", stopped=loop.stop_reason)
            return
        with suppress(OSError):  # it is not worth hiding why the run ends
            self.write("interrupted" if isinstance(loop.error, KeyboardInterrupt) else "failed")


class StoredAgents(Callback):
    """Callback that stores the agents whenever metrics are collected, and what was done about lost workers.

    Attributes:
        diverged: Whether an agent has diverged.
    """

    def __init__(self, directory: RunDirectory, status: Status) -> None:
        """Take the run directory, and the callback that writes its state."""
        self._directory, self._status = directory, status
        self._began = 0  # the timestep from which this process trains
        self.diverged = False

    def store(self, loop: Loop, files: Sequence[tuple[str, bytes]] | None = None) -> None:
        """Store the agents, unless those of this timestep are stored, or one has diverged before.

        Args:
            loop: The loop.
            files: What `StepTrainer.agent_files` returns, if it is known; it is stored in any case.

        Raises:
            DivergedError: An agent holds NaN or infinity; nothing is replaced.
            OSError: A file cannot be written.
        """
        trainer, timestep = loop.trainer, loop.timestep
        if files is None and (timestep == self._status.timestep or self.diverged):
            return
        try:
            self._directory.write_agents(trainer.agent_files() if files is None else files, statistics_of(trainer))
        except DivergedError:
            self.diverged = True  # told once
            raise
        self._status.timestep = timestep
        self._status.write("running")

    def on_start(self, loop: Loop) -> None:
        """Note where this process begins."""
        self._began = loop.timestep

    def on_step(self, loop: Loop) -> None:
        """Store the agents if metrics were collected.

        Raises:
            DivergedError: An agent holds NaN or infinity.
        """
        if loop.scalars:
            try:
                self.store(loop)
            except OSError:
                # a disk that is full now may have space at the end, when it matters
                _logger.exception("the run directory cannot be written; training continues")

    def on_fault(self, loop: Loop, fault: Recovered | BaseException) -> None:
        """Write the recoveries so far."""
        if isinstance(fault, Recovered):
            events = [event._asdict() for event in loop.trainer.recoveries]
            try:
                self._directory.write(f"recoveries/{self._began:012}.json", json.dumps(events, indent=1))
            except OSError as error:
                _logger.error("the recoveries cannot be written; training continues: %s", error)

    def on_end(self, loop: Loop) -> None:
        """Store the agents, unless the run is interrupted at once: that would need a request to the workers.

        Raises:
            OSError, DivergedError: After a training without an error: they cannot be stored.
        """
        if isinstance(loop.error, KeyboardInterrupt):
            return
        try:
            self.store(loop)
        except Exception as error:
            if loop.error is None:
                raise
            timestep = self._status.timestep
            _logger.error("the run directory is incomplete; its agents are from timestep %d: %s", timestep, error)


def stored(config: RunConfig) -> str:
    """Return the configuration as it is stored: the directory belongs to this run only."""
    return dump_config(dataclasses.replace(config, logging=dataclasses.replace(config.logging, directory=None)))
