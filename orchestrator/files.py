"""Files on a local disk or at any URL that fsspec supports: read within limits, and replaced as a whole."""

from __future__ import annotations

import os
import re
import secrets
import select
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from typing import Any

import fsspec.core
from fsspec.implementations.local import LocalFileSystem

from workers.errors import ConfigError, LockstepError

__all__ = [
    "LARGEST_TEXT",
    "PARTIAL",
    "check_writable",
    "list_names",
    "make_folder",
    "named_errors",
    "open_url",
    "read_at",
    "read_file",
    "replace_at",
]

LARGEST_TEXT = 2**19
"""Most bytes of a configuration or a status. Most have a few thousand."""

PARTIAL = re.compile(r"\.[0-9a-f]{16}\.part$")
"""How the name of a file ends that is being written; see `replace_at`."""

_PIPE_SECONDS = 0.8
"""Seconds within which a pipe must come to its end."""

_KINDS = {stat.S_IFDIR: "a directory", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a pipe"}


def open_url(url: str, what: str = "run directory") -> tuple[str, Any, str]:
    """Return a folder's URL without a slash at the end, its filesystem, and its path there.

    Args:
        url: A path, or a URL that fsspec supports. The folder need not exist.
        what: What errors call it.

    Raises:
        ConfigError: The kind of URL is unknown or malformed, or a package that it needs is not installed.
    """
    try:
        if not all(url.split("::")) or "\0" in url:  # :: joins the parts of a URL
            raise ValueError("a part of it is empty, or it contains a NUL character")
        filesystem, path = fsspec.core.url_to_fs(url)
    except Exception as error:  # filesystems of other packages may raise anything
        told = str(error) if isinstance(error, (ValueError, ImportError, OSError)) else _told(error)
        raise ConfigError(f"the {what} {url!r} cannot be opened: {told}") from error
    trimmed = url.rstrip("/")
    is_root = not trimmed or trimmed.endswith(":")  # such as / and memory://
    return url if is_root else trimmed, filesystem, path.rstrip("/") or path


def read_file(
    path: str, most: int | None = None, *, only: int = -1, start: int = 0, may_be_pipe: bool = False
) -> bytes:
    """Return the content of a file on this machine. Anything else, such as a device, is refused without waiting for it.

    Args:
        path: Path of the file.
        most: Most bytes that it may have; None: no limit.
        only: Number of bytes to read, where there is no limit; -1: all.
        start: Number of bytes to leave out at its start.
        may_be_pipe: Whether it may be a pipe, such as that of ``<(command)`` in a shell. A pipe needs a limit.

    Raises:
        OSError: It cannot be read, is larger, is not a file, or is a pipe whose end does not come.
    """
    with named_errors(), open(path, "rb", buffering=0, opener=_without_waiting) as file:
        found = os.fstat(file.fileno())
        if may_be_pipe and most is not None and stat.S_ISFIFO(found.st_mode):
            return _read_pipe(file, most)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{path!r} is {_KINDS.get(stat.S_IFMT(found.st_mode), 'something else')}; expected a file")
        _check_size(path, found.st_size, most)
        file.seek(start)
        data = file.read(only if most is None else most + 1) or b""
        _check_size(path, len(data), most)  # it may have grown, and files of /proc have size 0
        return data


def read_at(filesystem: Any, path: str, most: int | None = None, *, only: int = -1, start: int = 0) -> bytes:
    """Return the content of a file.

    Args:
        filesystem: Its filesystem.
        path: Its path there.
        most: See `read_file`.
        only: See `read_file`.
        start: See `read_file`.

    Raises:
        OSError: See `read_file`.
    """
    if isinstance(filesystem, LocalFileSystem):
        return read_file(path, most, only=only, start=start)
    with named_errors():
        found = filesystem.info(path)
        if found["type"] != "file":
            raise OSError(f"{path!r} is a {found['type']}; expected a file")
        _check_size(path, found.get("size") or 0, most)
        with filesystem.open(path, "rb") as file:
            file.seek(start)
            data: bytes = file.read(only if most is None else most + 1)
        _check_size(path, len(data), most)
        return data


def replace_at(filesystem: Any, path: str, content: bytes) -> None:
    """Write a file, replacing it as a whole. Its folder must exist.

    Args:
        filesystem: Its filesystem.
        path: Its path there.
        content: What to write.

    Raises:
        OSError: The file cannot be written. What was there before still is.
    """
    is_local = isinstance(filesystem, LocalFileSystem)
    temporary = f"{path}.{secrets.token_hex(8)}.part"
    with named_errors():
        # x: a link that somebody has put there is not followed
        file = filesystem.open(temporary, "xb" if is_local else "wb")
        try:
            with file:
                file.write(content)
                if is_local:  # else a failure of the machine may leave an empty file in the place of a good one
                    file.flush()
                    os.fsync(file.fileno())
            if is_local:
                os.replace(temporary, path)
            else:
                filesystem.mv(temporary, path)
        except BaseException:
            with suppress(Exception):
                filesystem.rm(temporary)
            raise


def make_folder(filesystem: Any, path: str, *, private: bool) -> None:
    """Make a folder, and those above it. One that exists is left as it is.

    Args:
        filesystem: Its filesystem.
        path: Its path there.
        private: Whether only this user may read it, on a local disk.

    Raises:
        OSError: It cannot be made.
    """
    with named_errors():
        if private and isinstance(filesystem, LocalFileSystem):
            os.makedirs(path, 0o700, exist_ok=True)  # the mode is that of the last one
        else:
            filesystem.makedirs(path, exist_ok=True)


def list_names(filesystem: Any, path: str) -> list[str]:
    """Return the names of what is in a folder now; none if there is no folder.

    Args:
        filesystem: Its filesystem.
        path: Its path there.

    Raises:
        OSError: It cannot be read.
    """
    with named_errors():
        filesystem.invalidate_cache()  # other processes write, too
        try:
            return [one.rstrip("/").rpartition("/")[2] for one in filesystem.ls(path, detail=False)]
        except FileNotFoundError:
            return []


def check_writable(filesystem: Any, path: str) -> str:
    """Write a file into a folder or, if it does not exist, into the closest one above it, and remove the file.

    Args:
        filesystem: The folder's filesystem.
        path: Its path there.

    Returns:
        The path of the folder that exists.

    Raises:
        OSError: It cannot be written.
    """
    with named_errors():
        while not filesystem.exists(path) and "/" in path.lstrip("/"):
            path = path.rpartition("/")[0]
        probe = f"{path}/.lockstep-{secrets.token_hex(8)}"
        replace_at(filesystem, probe, b"lockstep")
        filesystem.rm(probe)
        return path


def _without_waiting(path: str, flags: int) -> int:
    """Open a file. A pipe without a writer and a terminal would otherwise hold the caller."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def _read_pipe(file: FileIO, most: int) -> bytes:
    data, end = b"", time.monotonic() + _PIPE_SECONDS
    while len(data) <= most:
        chunk = file.read(most + 1 - len(data))
        if chunk == b"":  # all writers have closed it, or there was none
            break
        data += chunk or b""
        left = end - time.monotonic()
        if left <= 0:
            raise OSError(f"the end of the pipe did not come within {_PIPE_SECONDS} s; write to a file first")
        if chunk is None:
            select.select([file], [], [], left)
    if not data:
        raise OSError("nobody writes to the pipe")
    _check_size("the pipe", len(data), most)
    return data


def _check_size(name: str, size: int, most: int | None) -> None:
    if most is not None and size > most:
        raise OSError(f"{name!r} has {size} bytes or more; expected at most {most}")


@contextmanager
def named_errors() -> Iterator[None]:
    """Turn whatever a filesystem raises into an `OSError`."""
    try:
        yield
    except (OSError, LockstepError):
        raise
    except Exception as error:
        raise OSError(_told(error)) from error


def _told(error: Exception) -> str:
    text = str(error) or "this kind of URL does not allow it" * isinstance(error, NotImplementedError)
    return f"{type(error).__name__}: {text}"
