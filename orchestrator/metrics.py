"""MetricsWriter: writes the scalars of all scopes on the driver, for TensorBoard and as CSV."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from fsspec.implementations.local import LocalFileSystem
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from orchestrator.files import open_url

__all__ = ["MetricsWriter"]

_COLUMNS = ("timestep", "scope", "tag", "value")


class MetricsWriter:
    """A writer for the scalars that `StepTrainer.collect_metrics` returns.

    Typical loop::

        with MetricsWriter("runs/mine") as metrics:
            trainer.collect_metrics()  # starts the measurement
            for timestep in range(50_000):
                trainer.train(timestep=timestep)
                if timestep % 500 == 499:
                    metrics.write(timestep + 1, trainer.collect_metrics())

    TensorBoard shows one run per scope: ``tensorboard/scope_0`` and so on. ``metrics.csv`` has the columns timestep,
    scope, tag and value, and one row per scalar. Both are complete after every `write`.
    """

    def __init__(self, directory: str) -> None:
        """Set the directory; nothing is created before the first `write`.

        Args:
            directory: A folder, or a URL that fsspec supports. Rows are appended to an existing ``metrics.csv``.

        Raises:
            ConfigError: The kind of URL is unknown, or a package that it needs is not installed.
        """
        url, self._filesystem, path = open_url(directory)
        self._directory = path if isinstance(self._filesystem, LocalFileSystem) else url
        self._csv = f"{path}/metrics.csv"
        self._events: dict[int, EventFileWriter] = {}

    def write(self, timestep: int, scalars: Sequence[Mapping[str, float]]) -> None:
        """Write the scalars of every scope.

        Args:
            timestep: Number of timesteps that were done when the scalars were collected.
            scalars: The scalars of each scope, by tag, in scope order.

        Raises:
            OSError: The files cannot be written.
        """
        rows = [
            (timestep, scope, tag, repr(float(value)))
            for scope, by_tag in enumerate(scalars)
            for tag, value in by_tag.items()
        ]
        if rows:
            self._append(rows)
            for scope, by_tag in enumerate(scalars):
                self._write_events(timestep, scope, by_tag)

    def close(self) -> None:
        """Close the event files."""
        for writer in self._events.values():
            writer.close()
        self._events.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, rows: Sequence[Sequence[object]]) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self._filesystem.exists(self._csv):
            self._filesystem.makedirs(self._filesystem._parent(self._csv), exist_ok=True)
            writer.writerow(_COLUMNS)
        writer.writerows(rows)
        added = text.getvalue().encode()
        if not isinstance(self._filesystem, LocalFileSystem):  # object stores cannot append
            before = self._filesystem.cat_file(self._csv) if self._filesystem.exists(self._csv) else b""
            self._filesystem.pipe_file(self._csv, before + added)
            return
        with open(self._csv, "ab", buffering=0) as file:
            size = file.tell()
            try:
                while added:
                    added = added[file.write(added) :]
            except OSError:
                file.truncate(size)  # a partial row would be read as a complete one
                raise

    def _write_events(self, timestep: int, scope: int, by_tag: Mapping[str, float]) -> None:
        if scope not in self._events:
            self._events[scope] = EventFileWriter(f"{self._directory}/tensorboard/scope_{scope}")
        values = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in by_tag.items()]
        event = Event(step=timestep, wall_time=time.time(), summary=Summary(value=values))
        try:
            self._events[scope].add_event(event)
            self._events[scope].flush()
        except Exception:
            # this writer would raise the same error forever; the next write starts a new file
            broken = self._events.pop(scope)
            with suppress(Exception):
                broken.close()
            raise
