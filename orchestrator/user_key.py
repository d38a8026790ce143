"""This user's key: a file that only this user can read, to sign what this user writes."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from workers.errors import ConfigError

__all__ = ["key_path", "user_key"]

_LENGTH = 32
"""Length of a key in bytes."""


def key_path() -> Path:
    """Return where this user's key is: ``$XDG_DATA_HOME/lockstep/key``, by default in ``~/.local/share``.

    Raises:
        OSError: This user has no home.
    """
    folder = os.environ.get("XDG_DATA_HOME", "")
    if not os.path.isabs(folder):  # a relative one must be ignored, as its specification says
        try:
            folder = str(Path.home() / ".local" / "share")
        except RuntimeError as error:
            raise OSError(str(error)) from error
    return Path(folder, "lockstep", "key")


def user_key(*, create: bool) -> bytes | None:
    """Return this user's key.

    Args:
        create: Whether to create the key if there is none.

    Returns:
        The key; None if there is none.

    Raises:
        ConfigError: What is there is not a file that only this user can read.
        OSError: The key cannot be read or created.
    """
    path = key_path()
    key = _read(path)
    if key is None and create:
        _create(path)
        key = _read(path)
    return key


def _read(path: Path) -> bytes | None:
    try:  # without following a link or waiting for a writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if os.path.lexists(path):
            raise _refused(path, f"cannot be opened ({error.strerror})") from error
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _refused(path, "is not a regular file")
        if status.st_uid != os.geteuid():
            raise _refused(path, f"belongs to the user with number {status.st_uid}")
        if status.st_mode & 0o077:
            raise _refused(path, f"can be used by others (its mode is {stat.S_IMODE(status.st_mode):o})")
        key = os.read(descriptor, _LENGTH + 1)
    finally:
        os.close(descriptor)
    if len(key) != _LENGTH:
        raise _refused(path, f"has {status.st_size} bytes")
    return key


def _refused(path: Path, found: str) -> ConfigError:
    return ConfigError(
        f"the key {str(path)!r} {found}; expected a file of {_LENGTH} bytes that belongs to this user, with mode 600. "
        "Fix it, remove it for a new one (then lockstep eval of earlier runs needs --trust), or set XDG_DATA_HOME"
    )


def _create(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(prefix="key-", dir=path.parent)  # private
    try:
        with open(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_LENGTH))
            file.flush()
            os.fsync(descriptor)
        with suppress(FileExistsError):
            os.link(draft, path)  # as a whole, and never over the key of a process that was faster
    finally:
        os.unlink(draft)
