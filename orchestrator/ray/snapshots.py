"""The last snapshot of each worker, away from its node, and when it is time for the next."""

from __future__ import annotations

import pickle
import secrets
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b
from time import monotonic
from typing import Any

from orchestrator.files import make_folder, named_errors, open_url, read_at, replace_at
from workers.errors import CheckpointError
from workers.storage.snapshot import Snapshot

__all__ = ["Schedule", "Snapshots", "too_large"]

_OFTEN, _COST = 1.0, 0.01
"""Without a number of iterations, the least seconds between two snapshots, and the part of the time that they may
take."""


_NO_LIMIT = 2**62


class Schedule:
    """When it is time for a snapshot."""

    def __init__(self, every: int | None) -> None:
        """Begin with the first iteration.

        Args:
            every: Number of iterations from one snapshot to the next. None: as many as take the least time above.
        """
        self._every = every
        self._interval = _OFTEN
        self._count = 0
        self._last = monotonic()

    def until_next(self) -> int:
        """Return how many iterations may run at once before it is time, as far as can be told."""
        if self._every is not None:
            return max(1, self._every - self._count)
        passed = monotonic() - self._last
        if not self._count:
            return 1
        return min(max(1, int(self._count * (self._interval - passed) / max(passed, 1e-9))), 4 * self._count)

    def is_due(self, count: int) -> bool:
        """Note further iterations, and return whether it is time."""
        self._count += count
        return self._count >= self._every if self._every is not None else monotonic() - self._last >= self._interval

    def begun(self) -> None:
        """Note the start of a snapshot."""
        self._count, self._last = 0, monotonic()

    def took(self, seconds: float) -> None:
        """Note how long a snapshot took."""
        self._interval = max(_OFTEN, seconds / _COST)


class Snapshots:
    """The last snapshot of each worker, in the memory of this process, or at a URL.

    Attributes:
        limit: Most bytes of all snapshots together.
    """

    def __init__(self, url: str | None, limit: int) -> None:
        """Begin without snapshots.

        Args:
            url: Folder for them, which fsspec supports; None keeps them in memory.
            limit: Most bytes of memory; for a moment, those before are there, too.
        """
        self.limit = limit if url is None else _NO_LIMIT
        self._kept: dict[int, Snapshot | _Stored] = {}
        self._written = 0
        self._folder: tuple[Any, str] | None = None
        if url is not None:
            _, filesystem, path = open_url(url, "folder for snapshots")
            self._folder = filesystem, f"{path}/{secrets.token_hex(8)}"

    def keep(self, taken: Mapping[int, Snapshot]) -> dict[int, int]:
        """Keep snapshots in place of those before.

        Args:
            taken: The snapshots, by the index of the worker.

        Returns:
            Those for which there is no room, with their bytes: the largest ones. Nothing is kept of them.

        Raises:
            OSError: They cannot be written.
        """
        if self._folder is not None:
            self._written += 1
            written: dict[int, Snapshot | _Stored] = {}
            try:
                for index, snapshot in taken.items():
                    written[index] = self._write(index, snapshot)
            except BaseException:
                _remove(written)
                raise
            before, self._kept = self._kept, written
            _remove(before)
            return {}
        sizes = {index: snapshot.size for index, snapshot in taken.items()}
        dropped: dict[int, int] = {}
        while sum(sizes.values()) > self.limit:
            largest = max(sizes, key=sizes.__getitem__)
            dropped[largest] = sizes.pop(largest)
        self._kept = {index: taken[index] for index in sizes}
        return dropped

    def has(self, index: int) -> bool:
        """Return whether there is a snapshot of a worker."""
        return index in self._kept

    def get(self, index: int) -> Snapshot | None:
        """Return the snapshot of a worker; None if none was taken.

        Raises:
            CheckpointError: It cannot be read, or is not what was written.
        """
        kept = self._kept.get(index)
        return kept if kept is None or isinstance(kept, Snapshot) else kept.read()

    def close(self) -> None:
        """Forget all snapshots, and remove what was written."""
        self._kept = {}
        if self._folder is not None:
            filesystem, path = self._folder
            with named_errors():
                if filesystem.exists(path):
                    filesystem.rm(path, recursive=True)

    def _write(self, index: int, snapshot: Snapshot) -> _Stored:
        assert self._folder is not None
        filesystem, folder = self._folder
        make_folder(filesystem, folder, private=True)
        content = pickle.dumps(snapshot, pickle.HIGHEST_PROTOCOL)
        stored = _Stored(filesystem, f"{folder}/{self._written}-{index}", blake2b(content).digest())
        replace_at(filesystem, stored.path, content)
        return stored


class _Stored:
    """A snapshot in a file. Its digest stays in memory: nobody else can put another pickle there."""

    def __init__(self, filesystem: Any, path: str, digest: bytes) -> None:
        self.path = path
        self._filesystem, self._digest = filesystem, digest

    def remove(self) -> None:
        """Remove the file. One that stays is removed at the end."""
        with suppress(OSError), named_errors():
            self._filesystem.rm(self.path)

    def read(self) -> Snapshot:
        try:
            content = read_at(self._filesystem, self.path)
        except Exception as error:  # filesystems of other packages may raise anything
            raise CheckpointError(f"the snapshot {self.path!r} cannot be read: {error}") from error
        if blake2b(content).digest() != self._digest:
            raise CheckpointError(f"the snapshot {self.path!r} is not what was written")
        snapshot: Snapshot = pickle.loads(content)
        return snapshot


def _remove(kept: Mapping[int, Snapshot | _Stored]) -> None:
    for each in kept.values():
        if isinstance(each, _Stored):
            each.remove()


def too_large(size: int, limit: int) -> str:
    """Return why there is no room for a snapshot."""
    return f"its snapshot has {size:,} bytes, and RayOrchestrator(snapshot_bytes={limit}) is for all of them"
