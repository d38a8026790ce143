"""A checkpoint as a folder on a local disk, which appears as a whole.

It is written in ``.NAME.partial``, beside the place for ``NAME``, and renamed. One that is replaced is exchanged with
it; where the system cannot do that, it is ``.NAME.replaced`` until the new one is there.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import BinaryIO

from orchestrator.files import read_file
from orchestrator.manifest import LARGEST_MANIFEST, MANIFEST, Files, check_replaceable
from workers.errors import CheckpointError

__all__ = ["CheckpointFolder"]

_LOCK = "lock"


class CheckpointFolder:
    """A checkpoint as a folder on a local disk."""

    def __init__(self, path: str) -> None:
        """Point to a folder, which need not exist.

        Args:
            path: Its path, without links.
        """
        self._path = path
        self._parent, name = os.path.split(path)
        # its writer holds the lock on a file in it
        self._partial = os.path.join(self._parent, f".{name}.partial")
        # the one before it, until the new one is in its place
        self._replaced = os.path.join(self._parent, f".{name}.replaced")

    @property
    def where(self) -> str:
        """Path of the folder to read."""
        was_killed = not os.path.lexists(self._path) and os.path.isdir(self._replaced)  # a writer, between two renames
        return self._replaced if was_killed else self._path

    def write(self, files: Files, dump: Callable[[str], bytes]) -> None:
        """Write the checkpoint, replacing one that is there as a whole. Only this user can enter its folder.

        Args:
            files: The files.
            dump: Returns the manifest, given the folder of the files below it.

        Raises:
            CheckpointError: Something else is there, or another process is writing it.
            OSError: It cannot be written.
        """
        manifest = dump("")
        os.makedirs(self._parent, exist_ok=True)
        with _locked(self._partial):
            if os.path.lexists(self._path):
                check_replaceable(lambda: _read(self._path, MANIFEST, LARGEST_MANIFEST), self._path)
            new = os.path.join(self._partial, "new")
            _write(new, {**files, MANIFEST: (manifest,)})
            self._put_in_place(new)

    def exists(self) -> bool:
        """Return whether there is a folder."""
        return os.path.isdir(self.where)

    def size(self, name: str) -> int:
        """Return the number of bytes of a file.

        Raises:
            OSError: There is none, or it is a link.
        """
        return os.lstat(_checked_path(self.where, name)).st_size

    def read(self, name: str, most: int | None = None) -> bytes:
        """Return the content of a file of `most` bytes at most.

        Raises:
            OSError: It cannot be read, or is a link.
        """
        return _read(self.where, name, most)

    def _put_in_place(self, new: str) -> None:
        """Rename a checkpoint, and remove the one before it, unless it is now in the working folder."""
        if not os.path.lexists(self._path) and os.path.lexists(
            self._replaced
        ):  # a writer was killed between two renames
            os.rename(self._replaced, self._path)
        if os.path.lexists(self._path):
            if os.path.lexists(self._replaced):  # a writer was killed before it removed it
                shutil.rmtree(self._replaced)
            if _exchanged(new, self._path):
                _flush_folder(self._parent)
                return
            os.rename(self._path, self._replaced)
        try:
            os.rename(new, self._path)
        except BaseException:
            if os.path.lexists(self._replaced) and not os.path.lexists(self._path):
                os.rename(self._replaced, self._path)
            raise
        _flush_folder(self._parent)
        if os.path.lexists(self._replaced):
            shutil.rmtree(self._replaced)


def _read(folder: str, name: str, most: int | None = None) -> bytes:
    return read_file(_checked_path(folder, name), most)


def _checked_path(folder: str, name: str) -> str:
    path = os.path.join(folder, name)
    for part in (os.path.dirname(path), path):
        if part != folder and stat.S_ISLNK(os.lstat(part).st_mode):
            raise OSError(f"{part!r} is a link; expected a file")
    return path


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Make a working folder, or take one that a killed writer has left; keep others out of it; and remove it.

    Raises:
        CheckpointError: Another writer has it.
    """
    lock, path = _lock(folder), os.path.join(folder, _LOCK)
    new = os.path.join(folder, "new")
    try:
        if os.path.lexists(new):
            shutil.rmtree(new)
        yield
    finally:
        # only the one who holds the lock removes it, and last: then nobody removes the folder of somebody else
        shutil.rmtree(new, ignore_errors=True)  # what may be left, the next writer removes
        with suppress(OSError):
            os.remove(path)
            os.rmdir(folder)  # unless another writer has put its lock there
        lock.close()


def _lock(folder: str) -> BinaryIO:
    path = os.path.join(folder, _LOCK)
    while True:
        is_new = True
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            is_new = False
            if os.path.islink(folder):
                raise
        with ExitStack() as stack:
            try:
                lock = stack.enter_context(open(path, "ab", opener=_without_following))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(lock.fileno()), os.stat(path)):
                    stack.pop_all()
                    return lock
            except FileNotFoundError:  # another writer has removed it in the meantime
                continue
            except BlockingIOError as error:
                raise CheckpointError(f"another process is writing in {folder!r}; wait until it is done") from error
            except OSError:
                if is_new:
                    shutil.rmtree(folder, ignore_errors=True)
                raise


def _without_following(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def _write(folder: str, files: Files) -> None:
    """Write files into a new folder, and to the disk."""
    folders = [folder, *(os.path.join(folder, name) for name in ("agents", "environments"))]
    for path in folders:
        os.mkdir(path, 0o700)
    for name, pieces in files.items():
        with open(os.path.join(folder, name), "xb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    for path in folders:
        _flush_folder(path)


def _exchanged(one: str, other: str) -> bool:
    """Exchange two folders in one step, so that there always is one at both paths; return whether that is possible."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)  # Linux; not every filesystem can
    return renameat2 is not None and renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2) == 0


def _flush_folder(path: str) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
