"""Processes that are killed between any two writes to an object store: in memory, or a stand-in for S3."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import fsspec
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

__all__ = ["Killed", "Strikes", "killing_writes", "s3_server"]


class Killed(BaseException):
    """Stands for the end of the process: nothing is written after it."""


class Strikes:
    """Counts the writes, and ends the process at one of them.

    Attributes:
        count: Number of writes that were attempted.
    """

    def __init__(self, last: int | None = None) -> None:
        """Set the write at which the process ends; None: it does not."""
        self.count = 0
        self._last = last

    def write(self) -> None:
        """Note a write.

        Raises:
            Killed: The process has ended.
        """
        self.count += 1
        if self._last is not None and self.count >= self._last:
            raise Killed

    @property
    def struck(self) -> bool:
        """Whether the process has ended."""
        return self._last is not None and self.count >= self._last


def _noted(original: Callable[..., Any], strikes: Strikes) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        strikes.write()
        return original(self, *args, **kwargs)

    return call


def _noted_open(original: Callable[..., Any], strikes: Strikes) -> Any:
    def call(self: Any, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode != "rb":
            strikes.write()
        return original(self, path, mode, **kwargs)

    return call


def _note_request(method: str, strikes: Strikes) -> None:
    if not method.startswith(("get_", "head_", "list_")):
        try:
            strikes.write()
        except Killed as error:  # fsspec's thread would lose it
            raise ConnectionError("the process has ended") from error


def _noted_request(original: Callable[..., Any], strikes: Strikes) -> Any:
    def call(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        _note_request(method, strikes)
        return original(self, method, *args, **kwargs)

    return call


def _noted_async_request(original: Callable[..., Any], strikes: Strikes) -> Any:
    async def call(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        _note_request(method, strikes)
        return await original(self, method, *args, **kwargs)

    return call


@contextmanager
def killing_writes(strikes: Strikes) -> Iterator[None]:
    """Count the writes to ``memory://`` and ``s3://``."""
    from s3fs import S3FileSystem

    patches = [patch.object(MemoryFileSystem, "_open", _noted_open(MemoryFileSystem._open, strikes))]
    for kind, names in ((MemoryFileSystem, ("cp_file", "_rm", "pipe_file")), (MemoryFile, ("write",))):
        patches += [patch.object(kind, name, _noted(getattr(kind, name), strikes), create=True) for name in names]
    patches.append(patch.object(S3FileSystem, "_call_s3", _noted_async_request(S3FileSystem._call_s3, strikes)))
    patches.append(patch.object(S3FileSystem, "call_s3", _noted_request(S3FileSystem.call_s3, strikes)))
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()


@contextmanager
def s3_server() -> Iterator[str]:
    """Run a stand-in for S3 in this process, and yield the URL of a bucket."""
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    names = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    names["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
    try:
        with patch.dict(os.environ, names):
            S3FileSystem.clear_instance_cache()
            bucket = f"lockstep-{port}"  # moto keeps those of earlier servers of this process
            fsspec.filesystem("s3").mkdir(bucket)
            yield f"s3://{bucket}"
            S3FileSystem.clear_instance_cache()
    finally:
        server.stop()
