"""A checkpoint at a URL, such as in an object store, where nothing can be renamed as a whole.

Its files are in a folder with a random name, and ``manifest.json``, which is written last, names the folder. Until
then, the files that the manifest before names are there, untouched.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from typing import Any

from orchestrator.files import PARTIAL, list_names, named_errors, read_at, replace_at
from orchestrator.manifest import LARGEST_MANIFEST, MANIFEST, Files, check_replaceable
from workers.errors import CheckpointError

__all__ = ["CheckpointStore"]

_OURS = re.compile(rf"[0-9a-f]{{32}}|{re.escape(MANIFEST)}{PARTIAL.pattern}")
"""What a writer that was killed may leave."""


class CheckpointStore:
    """A checkpoint at a URL. Only one process may write it at a time.

    Attributes:
        where: The URL.
    """

    def __init__(self, url: str, filesystem: Any, path: str) -> None:
        """Point to a folder, which need not exist.

        Args:
            url: Its URL.
            filesystem: Its filesystem.
            path: Its path there.
        """
        self.where, self._filesystem, self._path = url, filesystem, path

    def write(self, files: Files, dump: Callable[[str], bytes]) -> None:
        """Write the checkpoint, replacing one that is there as a whole.

        Args:
            files: The files.
            dump: Returns the manifest, given the folder of the files below it.

        Raises:
            CheckpointError: Something else is there.
            OSError: It cannot be written.
        """
        folder = secrets.token_hex(16)
        manifest = dump(folder)
        with named_errors():
            names = list_names(self._filesystem, self._path)
            if MANIFEST in names:
                check_replaceable(lambda: self.read(MANIFEST, LARGEST_MANIFEST), self.where)
            elif other := [name for name in names if not _OURS.fullmatch(name)]:
                raise CheckpointError(
                    f"{self.where!r} is there already and is no checkpoint: it has {other[0]!r}; choose another URL"
                )
            for name, pieces in files.items():
                path = f"{self._path}/{folder}/{name}"
                self._filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
                with self._filesystem.open(path, "wb") as file:
                    for piece in pieces:
                        file.write(piece)
            replace_at(self._filesystem, f"{self._path}/{MANIFEST}", manifest)
            for name in list_names(self._filesystem, self._path):
                if name != folder and _OURS.fullmatch(name):
                    self._filesystem.rm(f"{self._path}/{name}", recursive=True)

    def exists(self) -> bool:
        """Return whether there is anything.

        Raises:
            OSError: The URL cannot be read.
        """
        return bool(list_names(self._filesystem, self._path))

    def size(self, name: str) -> int:
        """Return the number of bytes of a file.

        Raises:
            OSError: There is none.
        """
        with named_errors():
            return int(self._filesystem.size(f"{self._path}/{name}"))

    def read(self, name: str, most: int | None = None) -> bytes:
        """Return the content of a file of `most` bytes at most.

        Raises:
            OSError: It cannot be read.
        """
        return read_at(self._filesystem, f"{self._path}/{name}", most)
