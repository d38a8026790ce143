"""What differs where the command runs as a Ray job: its working directory is a copy that Ray deletes later."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from orchestrator.files import open_url
from trainer import __version__

__all__ = ["SUBMITTED_BY", "check_sender", "in_job", "lasting"]

_logger = logging.getLogger("lockstep")

SUBMITTED_BY = "LOCKSTEP_SUBMITTED_BY"
"""Environment variable of a job: the version of the Lockstep that submitted it."""


def in_job() -> bool:
    """Return whether this process was started as a Ray job: Ray gives its id, among other things, to it alone."""
    try:
        config = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])
        return bool(config["metadata"]["job_submission_id"])
    except (KeyError, TypeError, ValueError):
        return False


def lasting(directory: str) -> str:
    """Return where a run directory is written: in a job, a relative path is relative to the user's home directory.

    Args:
        directory: A path, or a URL that fsspec supports.

    Raises:
        ConfigError: The kind of URL is unknown, or a package that it needs is not installed.
    """
    if not in_job() or not isinstance(open_url(directory)[1], LocalFileSystem):
        return directory
    path = re.sub("^(file|local):(//)?", "", directory)
    return directory if path.startswith("~") else str(Path.home() / path)


def check_sender() -> None:
    """Warn if the Lockstep that submitted this job has another version than this one."""
    sender = os.environ.get(SUBMITTED_BY, __version__)
    if in_job() and sender != __version__:
        _logger.warning(
            "the job was submitted by Lockstep %s, but this cluster has %s: keys and numbers may differ",
            sender,
            __version__,
        )
