"""`lockstep submit`: a training as a job on a Ray cluster, followed from this machine."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import __version__
from trainer._console import shown
from trainer._redaction import redacted
from trainer.command.fetching import DIRECTORY, Place, fetched
from trainer.command.job import SUBMITTED_BY
from trainer.command.run_config import RunConfig
from trainer.versions import versions
from workers.errors import ClusterError, ConfigError

if TYPE_CHECKING:
    from orchestrator.ray.jobs import Jobs, JobState

__all__ = ["Job", "defaults", "detached", "follow", "name_of", "start", "stop"]

_logger = logging.getLogger("lockstep")

EXCLUDED = ("/runs", ".git", ".venv*", "venv", "__pycache__", ".*_cache", ".hypothesis", "node_modules")
"""What is not sent to the cluster, as in a ``.gitignore``."""

_LARGE = 100 * 2**20
"""Bytes that Ray's dashboard takes, packed."""

_MOST_FILES = 200_000
"""Number of files that are counted."""

_MOST_NAMED = 5
"""Number of files and folders that a message names."""

_STOPPING = 60.0
"""Seconds beyond those that a stopped job has itself."""


@dataclass(frozen=True)
class Job:
    """A command to submit.

    Attributes:
        name: Name of the job and of its run.
        entrypoint: Its shell command.
        folder: The working directory, which is sent; None if it needs none.
        directory: The run directory, as it is configured; empty if it makes none.
    """

    name: str
    entrypoint: str
    folder: Path | None
    directory: str

    @classmethod
    def training(cls, name: str, config: RunConfig, path: str, working_dir: str, overrides: Sequence[str]) -> Job:
        """Return the job that trains, or goes on with the run in its directory, after a check that builds nothing.

        Args:
            name: Name of the job and of its run.
            config: The configuration, with all overrides. What it may run was checked here, so it is trusted there.
            path: Its path.
            working_dir: The folder to send.
            overrides: ``key=value``, those of `defaults` included.

        Raises:
            ConfigError: The configuration is not among what is sent.
        """
        first = cls.check(name, path, overrides, working_dir, build=False)
        train = shlex.join(["lockstep", "train", "--resume", *_arguments(path, overrides, working_dir)])
        directory = config.logging.directory or f"runs/{name}"
        return dataclasses.replace(first, entrypoint=f"{first.entrypoint} && exec {train}", directory=directory)

    @classmethod
    def check(
        cls, name: str, path: str | None, overrides: Sequence[str], working_dir: str = ".", *, build: bool
    ) -> Job:
        """Return the job that checks the cluster and, if given, a configuration.

        Args:
            name: Name of the job.
            path: Path of a configuration, which is trusted there, or None.
            overrides: ``key=value``.
            working_dir: The folder to send.
            build: Whether to build its agents and environments.

        Raises:
            ConfigError: The configuration is not among what is sent.
        """
        arguments = [] if path is None else _arguments(path, overrides, working_dir)
        entrypoint = shlex.join(
            ["lockstep", "doctor", *arguments, "--address", "auto", *([] if build else ["--no-build"])]
        )
        return cls(name, entrypoint, None if path is None else Path(working_dir).resolve(), "")


def _arguments(path: str, overrides: Sequence[str], working_dir: str) -> list[str]:
    """Return the arguments for a configuration in the folder that is sent.

    Raises:
        ConfigError: It is not among what is sent.
    """
    folder, file = Path(working_dir).resolve(), Path(path).resolve()
    if not folder.is_dir():
        raise ConfigError(f"--working-dir is {working_dir!r}, which is no folder")
    if Path.home().resolve().is_relative_to(folder):
        raise ConfigError(
            f"the working directory is {str(folder)!r}, with your home and all that is in it, and would be sent to "
            "the cluster; choose the folder of your project with --working-dir"
        )
    if not file.is_relative_to(folder) or not file.is_file():
        raise ConfigError(
            f"the config {path!r} is not a file in the working directory {str(folder)!r}, which is sent to the "
            "cluster; move it there, or choose another --working-dir"
        )
    inside = file.relative_to(folder)
    if _is_excluded(inside):
        raise ConfigError(f"the config {path!r} is among what is not sent: {', '.join(EXCLUDED)}; copy it")
    return [inside.as_posix(), "--trust", *(["--set", *overrides] if overrides else [])]


def name_of(path: str) -> str:
    """Return a new name for a run of a configuration, which is also a name for its job."""
    stem = re.sub(r"[^A-Za-z0-9_-]", "-", Path(path).stem)
    return f"{stem}-{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"


def defaults(overrides: Sequence[str], config: RunConfig, name: str) -> list[str]:
    """Return the overrides of a job that the user has not set: it uses the cluster, and has no terminal.

    Args:
        overrides: The user's.
        config: The configuration with these.
        name: Name of the run.
    """
    keys = [override.partition("=")[0].strip() for override in overrides]

    def is_set(key: str) -> bool:
        return any(key == one or key.startswith(f"{one}.") for one in keys)

    added = {}
    if not is_set("orchestrator.kind"):
        added["orchestrator.kind"] = "ray"
    if not is_set("trainer.disable_progressbar"):
        added["trainer.disable_progressbar"] = "null"
    if "orchestrator.kind" in added or config.orchestrator.kind == "ray":
        address = config.orchestrator.options.get("address")
        if not is_set("orchestrator.options.address"):
            if address not in (None, "auto"):
                _logger.warning("orchestrator.options.address is not used: the job uses the cluster on which it runs")
            added["orchestrator.options.address"] = "auto"
    if config.logging.directory is None:
        added["logging.directory"] = f"runs/{name}"
    return [f"{key}={value}" for key, value in added.items()]


def start(job: Job, jobs: Jobs, place: Place) -> Iterator[str]:
    """Submit a job.

    Raises:
        ClusterError: The cluster does not take it.
    """
    ours = versions()["ray"]
    if ours != jobs.ray_version:
        _logger.warning("this machine has Ray %s, the cluster %s", ours, jobs.ray_version)
    size, largest = (0, "") if job.folder is None else _sizes(job.folder)
    if size > _LARGE:
        _logger.warning("%s holds %s before .gitignore is applied: %s", job.folder, _megabytes(size), largest)
    if job.folder is not None:
        yield f"sending {job.folder} ..."
    try:
        jobs.submit(
            job.name,
            job.entrypoint,
            working_dir=job.folder,
            excludes=EXCLUDED,
            env_vars={SUBMITTED_BY: __version__},
            metadata={DIRECTORY: redacted(job.directory)},
        )
    except (KeyboardInterrupt, SystemExit):
        for line in (f"job {job.name} may have been submitted", *detached(job.name, place)):
            _logger.warning(line)
        raise
    except ClusterError as error:
        if size <= _LARGE:
            raise
        raise ClusterError(
            f"{error}\nthe working directory may be too large: Ray takes {_megabytes(_LARGE)}, packed. The largest in "
            f"{job.folder}: {largest}. Name what the job does not need in .gitignore or .rayignore, or choose another "
            "--working-dir"
        ) from error
    yield f"job {job.name} is submitted"


def follow(name: str, jobs: Jobs, place: Place) -> Iterator[str]:
    """Yield the log of a job, and at its end fetch the run directory and tell how it ended.

    Raises:
        ClusterError: There is no such job, or the connection is lost.
        SystemExit: The job has not succeeded.
    """
    lines = jobs.follow(name)  # a job that does not exist cannot go on
    try:
        for line in lines:
            if not line.startswith("Running entrypoint for job "):  # with all overrides
                yield shown(redacted(line))
    except (KeyboardInterrupt, SystemExit, GeneratorExit, ClusterError) as end:
        known = "may go on" if isinstance(end, ClusterError) else "goes on"
        for line in (f"detached: the job {known}", *detached(name, place)):
            _logger.warning(line)
        raise
    yield from _end(name, jobs, place)


def detached(name: str, place: Place) -> Iterator[str]:
    """Yield how to follow a job and how to stop it."""
    for verb in ("follow", "stop"):
        yield f"to {verb} it: lockstep submit --{verb} {shlex.quote(name)} {place.option}"


def stop(name: str, jobs: Jobs, place: Place) -> Iterator[str]:
    """Stop a job, which stores everything, and tell how it ended.

    Raises:
        ClusterError: There is no such job, or it does not end.
        SystemExit: The job has failed.
    """
    from orchestrator.ray.jobs import STOP_SECONDS

    seen = len(jobs.log(name))
    if not jobs.stop(name):
        _logger.warning("job %s is not running", name)
    for line in jobs.follow(name, seen=seen, timeout=STOP_SECONDS + _STOPPING):
        yield shown(redacted(line))
    yield from _end(name, jobs, place, wanted=("SUCCEEDED", "STOPPED"))


def _end(name: str, jobs: Jobs, place: Place, wanted: Sequence[str] = ("SUCCEEDED",)) -> Iterator[str]:
    """Tell how a job ended, and fetch its run directory.

    Raises:
        ClusterError: The connection is lost, or the run directory cannot be copied.
        SystemExit: The job has not ended as wanted.
    """
    try:
        state = jobs.state(name)
        directory = state.metadata.get(DIRECTORY)
        yield from _told(name, state)
        yield from fetched(directory, name, jobs, place)
    except (KeyboardInterrupt, SystemExit, ClusterError, OSError):
        _logger.warning("to fetch it again: lockstep submit --follow %s %s", shlex.quote(name), place.option)
        raise
    if state.status not in wanted:
        if directory:
            yield f"to go on with it: submit it again, with --set logging.directory={shlex.quote(shown(directory))}"
        raise SystemExit(1)


def _told(name: str, state: JobState) -> Iterator[str]:
    """Tell how a job ended."""
    told = shown(redacted(state.message.partition(", last available logs")[0]))
    yield f"job {name}: {state.status.lower()}{': ' if told else ''}{told}"
    if state.exit_code == 127:
        _logger.error("a command was not found: `lockstep` must be on the PATH with which Ray was started on the head")


def _sizes(folder: Path) -> tuple[int, str]:
    """Return the bytes of a folder without what is `EXCLUDED`, and its largest entries in words."""
    sizes: Counter[str] = Counter()
    count = 0
    for place, folders, files in os.walk(folder):
        inside = Path(place).relative_to(folder)
        folders[:] = [one for one in folders if not _is_excluded(inside / one)]
        for file in files:
            with suppress(OSError):
                sizes[(inside / file).parts[0]] += os.lstat(Path(place, file)).st_size
        count += len(files)
        if count > _MOST_FILES:
            break
    return sizes.total(), ", ".join(f"{name} {_megabytes(size)}" for name, size in sizes.most_common(_MOST_NAMED))


def _is_excluded(inside: Path) -> bool:
    """Return whether a path in the working directory, or a folder above it, is `EXCLUDED`."""
    patterns = [pattern for pattern in EXCLUDED if not pattern.startswith("/")]
    return f"/{inside.parts[0]}" in EXCLUDED or any(fnmatch(part, one) for part in inside.parts for one in patterns)


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
