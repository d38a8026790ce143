"""RunCheckpoints: the checkpoints of one run, in its run directory."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

from orchestrator.checkpoint import read_manifest
from orchestrator.files import named_errors
from orchestrator.manifest import MANIFEST
from orchestrator.origin import Origin
from workers.errors import CheckpointError, DamagedCheckpointError

__all__ = ["RunCheckpoints"]

_logger = logging.getLogger("lockstep")

_FOLDER = "checkpoints"
_NAME = re.compile("[0-9]{12}")
_LEFT = re.compile(rf"\.{_NAME.pattern}\.(partial|replaced)")
"""What a writer that was killed leaves on a disk."""


class RunCheckpoints:
    """The checkpoints of one run: ``checkpoints/000000012000`` is that after 12,000 timesteps."""

    def __init__(self, url: str, filesystem: Any, path: str, origin: Origin) -> None:
        """Point to a run directory.

        Args:
            url: Its URL.
            filesystem: Its filesystem.
            path: Its path there.
            origin: Its record of what this user wrote.
        """
        self._url, self._filesystem, self._path, self._origin = url, filesystem, path, origin

    def any(self) -> bool:
        """Return whether the run can be beyond its beginning, by what checkpoints there are, whole or not."""
        return any(map(int, self._names()))

    def save(self, timestep: int, save: Callable[[str], None], *, keep_last: int) -> None:
        """Write a checkpoint, and then delete old ones.

        Args:
            timestep: Number of timesteps that are done.
            save: Writes a checkpoint to a path or URL.
            keep_last: Number of checkpoints to keep, at least 1.

        Raises:
            CheckpointError: It cannot be written. Those before it are kept.
            OSError: The record of what this user wrote cannot be written.
        """
        name = f"{timestep:012}"
        save(self._url_of(name))
        manifest, data = read_manifest(self._url_of(name))
        if manifest.pickles:  # they are loaded again only if this user wrote them
            self._origin.sign({self._key(name): data})
            self._origin.settle([self._key(name)])
        self._delete(self._names()[keep_last:])

    def load(self, load: Callable[[str], int], *, trust: bool) -> int:
        """Go on from the last checkpoint that is whole; newer ones are deleted then.

        Args:
            load: Loads a checkpoint from a path or URL, and returns its timestep.
            trust: Whether to load pickles that this user did not write.

        Returns:
            The number of timesteps that are done; 0 if there is no checkpoint.

        Raises:
            CheckpointError: There are checkpoints, but none can be loaded.
        """
        names = self._names()
        self._delete(self._names(_LEFT))
        for index, name in enumerate(names):
            url = self._url_of(name)
            try:
                manifest, data = read_manifest(url)
                if manifest.pickles and not trust and (reason := self._origin.foreign(self._key(name), data)):
                    raise DamagedCheckpointError(
                        f"the checkpoint {url!r} has pickles, which can run code, and is not known to be of this user "
                        f"({reason}); pass --trust if you trust it"
                    )
                timestep = load(url)
            except DamagedCheckpointError as error:
                if not int(name):
                    break  # the run was killed while it began
                _logger.warning("the checkpoint of timestep %d is passed over: %s", int(name), error)
                continue
            self._delete(names[:index])
            return timestep
        if damaged := [name for name in names if int(name)]:
            raise CheckpointError(
                f"none of the {len(damaged)} checkpoints in {self._url}/{_FOLDER} can be loaded; see the warnings. "
                "Delete them to begin again"
            )
        return 0

    def _url_of(self, name: str) -> str:
        return f"{self._url}/{_FOLDER}/{name}"

    def _key(self, name: str) -> str:
        return f"{_FOLDER}/{name}/{MANIFEST}"

    def _names(self, pattern: re.Pattern[str] = _NAME) -> list[str]:
        """Return the names of the checkpoints, the newest first."""
        with named_errors():
            self._filesystem.invalidate_cache()
            try:
                paths = self._filesystem.ls(f"{self._path}/{_FOLDER}", detail=False)
            except FileNotFoundError:
                return []
        names = (path.rstrip("/").rpartition("/")[2] for path in paths)
        return sorted(filter(pattern.fullmatch, names), reverse=True)

    def _delete(self, names: list[str]) -> None:
        try:
            with named_errors():
                for name in names:
                    self._filesystem.rm(f"{self._path}/{_FOLDER}/{name}", recursive=True)
            self._origin.forget(map(self._key, names))
        except OSError as error:
            _logger.warning("old checkpoints in %s/%s cannot be deleted: %s", self._url, _FOLDER, error)
