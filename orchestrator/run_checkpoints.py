"""RunCheckpoints: the checkpoints of one run, in its run directory."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from orchestrator.checkpoint import read_manifest
from orchestrator.files import list_names, named_errors
from orchestrator.manifest import MANIFEST, parse_manifest
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
        """Return whether there is a checkpoint whose manifest is whole."""
        return any(map(self._is_committed, self._names()))

    def _is_committed(self, name: str) -> bool:
        try:
            parse_manifest(read_manifest(self._url_of(name)), name)
        except DamagedCheckpointError:
            return False
        return True

    def save(
        self,
        timestep: int,
        save: Callable[[str, Callable[[bytes], None]], None],
        *,
        keep_last: int,
        keep: Callable[[int], bool] = lambda timestep: False,
    ) -> None:
        """Write a checkpoint, and then delete old ones.

        Args:
            timestep: Number of timesteps that are done.
            save: Writes a checkpoint to a path or URL, and calls its second argument with the manifest before.
            keep_last: Number of checkpoints to keep, at least 1.
            keep: Returns whether the checkpoint of a timestep is kept as well.

        Raises:
            CheckpointError: It cannot be written. Those before it are kept.
            OSError: The record of what this user wrote cannot be written.
        """
        name = f"{timestep:012}"
        try:
            save(self._url_of(name), partial(self._sign, name))
        except (CheckpointError, OSError):
            if not self._is_committed(name):  # a part of one, which would count
                self._delete([name])
            raise
        self._delete([name for name in self._names()[keep_last:] if not keep(int(name))])

    def _sign(self, name: str, data: bytes) -> None:
        """Record that this user wrote a checkpoint with pickles; only then are they loaded again."""
        if parse_manifest(data, name).pickles:
            self._origin.sign({self._key(name): data})

    def load(self, load: Callable[[str, Callable[[bytes], None]], int], *, trust: bool) -> int | None:
        """Go on from the last checkpoint that is whole; newer ones are deleted then.

        Args:
            load: Loads a checkpoint from a path or URL, and returns its timestep; it calls its second argument with the
                manifest before, which raises an error to refuse it.
            trust: Whether to load pickles that this user did not write.

        Returns:
            The number of timesteps that are done; None if there is no checkpoint: the run was killed while it began.

        Raises:
            CheckpointError: There are checkpoints, but none can be loaded.
        """
        names = self._names()
        self._delete(self._names(_LEFT))
        for index, name in enumerate(names):
            try:
                timestep = load(self._url_of(name), partial(self._verify, name, trust))
            except DamagedCheckpointError as error:
                _logger.warning("the checkpoint of timestep %d is passed over: %s", int(name), error)
                continue
            self._delete(names[:index])
            return timestep
        if self.any() or len(names) > 1:
            raise CheckpointError(
                f"none of the {len(names)} checkpoints in {self._url}/{_FOLDER} can be loaded; see the warnings. "
                "Delete them to begin again"
            )
        return None

    def _verify(self, name: str, trust: bool, data: bytes) -> None:
        """Refuse pickles that somebody else may have written.

        Raises:
            DamagedCheckpointError: There are such.
        """
        if trust or not parse_manifest(data, name).pickles:
            return
        if reason := self._origin.foreign(self._key(name), data):
            raise DamagedCheckpointError(
                f"the checkpoint {self._url_of(name)!r} has pickles, which can run code, and is not known to be of "
                f"this user ({reason}); pass --trust if you trust it"
            )

    def _url_of(self, name: str) -> str:
        return f"{self._url}/{_FOLDER}/{name}"

    def _key(self, name: str) -> str:
        return f"{_FOLDER}/{name}/{MANIFEST}"

    def _names(self, pattern: re.Pattern[str] = _NAME) -> list[str]:
        """Return the names of the checkpoints, the newest first."""
        names = list_names(self._filesystem, f"{self._path}/{_FOLDER}")
        return sorted(filter(pattern.fullmatch, names), reverse=True)

    def _delete(self, names: list[str]) -> None:
        try:
            with named_errors():
                for name in names:
                    self._filesystem.rm(f"{self._path}/{_FOLDER}/{name}", recursive=True)
            self._origin.forget(map(self._key, names))
        except OSError as error:
            _logger.warning("old checkpoints in %s/%s cannot be deleted: %s", self._url, _FOLDER, error)
