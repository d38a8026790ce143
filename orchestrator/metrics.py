"""MetricsWriter: writes the scalars of all scopes on the driver, for TensorBoard and as CSV."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from types import TracebackType
from typing import Self

from fsspec.implementations.local import LocalFileSystem
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from orchestrator.files import named_errors, open_url, read_at, replace_at
from workers.errors import ConfigError

__all__ = ["COLUMNS", "MetricsWriter"]

COLUMNS = ("timestep", "scope", "tag", "value")

_EVALUATION = "Evaluation / "
"""What the tags of evaluations begin with."""

Row = tuple[int, int, str, str]
"""Values of the columns."""


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
    scope, tag and value, and one row per scalar. Both are complete after every `write`. A loop that goes on from a
    checkpoint calls ``metrics.cut(trainer.metrics_timestep)`` after ``trainer.load(...)``.
    """

    def __init__(self, directory: str) -> None:
        """Set the directory; nothing is created before the first `write`.

        Args:
            directory: A folder, or a URL that fsspec supports. The rows of an earlier writer are kept, if
                they are of earlier timesteps.

        Raises:
            ConfigError: The kind of URL is unknown, or a package that it needs is not installed.
        """
        url, self._filesystem, path = open_url(directory)
        self._directory = path if isinstance(self._filesystem, LocalFileSystem) else url
        self._folder, self._csv = path, f"{path}/metrics.csv"
        self._events: dict[int, EventFileWriter] = {}
        self._continues = False  # whether what was there before ends earlier

    def write(self, timestep: int, scalars: Sequence[Mapping[str, float]]) -> None:
        """Write the scalars of every scope.

        Args:
            timestep: Number of timesteps that were done when the scalars were collected.
            scalars: The scalars of each scope, by tag, in scope order.

        Raises:
            ConfigError: An earlier writer has written this timestep or later ones.
            OSError: The files cannot be written.
        """
        rows: list[Row] = [
            (timestep, scope, tag, repr(float(value)))
            for scope, by_tag in enumerate(scalars)
            for tag, value in by_tag.items()
        ]
        if rows:
            if not self._continues:
                self._check_later(timestep)
            self._append(rows)
            for scope, by_tag in enumerate(scalars):
                self._write_events(timestep, scope, by_tag, time.time())

    def cut(self, timestep: int, *, evaluations: int | None = None) -> None:
        """Remove what was written after `timestep`, to go on from there.

        The events of TensorBoard are written again from ``metrics.csv``, because those of a process that was killed may
        be incomplete; they keep the times at which they were written first, as far as these can be read.

        Args:
            timestep: The last timestep to keep; see `trainer.worker_state.WorkerState.metrics_timestep`.
            evaluations: The last timestep whose evaluation is kept. None: `timestep`.

        Raises:
            ConfigError: ``metrics.csv`` has been damaged.
            OSError: The files cannot be read or written.
        """
        self.close()
        last = {True: timestep if evaluations is None else evaluations, False: timestep}
        with named_errors():
            self._filesystem.invalidate_cache()
            found = self._read() if self._filesystem.exists(self._csv) else ()
            rows = [row for row in found if row[0] <= last[row[2].startswith(_EVALUATION)]]
            old = [path for path in self._filesystem.find(f"{self._folder}/tensorboard") if "tfevents" in path]
            times = {key: seconds for path in old for key, seconds in self._times(path)}
            if rows:
                replace_at(self._filesystem, self._csv, _text([COLUMNS, *rows]))
            elif self._filesystem.exists(self._csv):
                self._filesystem.rm(self._csv)
            for (step, scope), group in groupby(rows, key=lambda row: row[:2]):
                by_tag = {tag: float(value) for _, _, tag, value in group}
                self._write_events(step, scope, by_tag, times.get((scope, step), time.time()))
            for path in old:
                self._filesystem.rm(path)
        self._continues = True

    def sync(self) -> None:
        """Make sure that ``metrics.csv`` outlasts a failure of the machine, if it is on a local disk.

        Raises:
            OSError: It cannot be written.
        """
        if isinstance(self._filesystem, LocalFileSystem) and os.path.exists(self._csv):
            with open(self._csv, "rb") as file:
                os.fsync(file.fileno())

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

    def _check_later(self, timestep: int) -> None:
        last = max((row[0] for row in self._read()), default=-1) if self._filesystem.exists(self._csv) else -1
        if timestep <= last:
            raise ConfigError(
                f"{self._csv} goes up to timestep {last}, and these metrics are of timestep {timestep}; use a new "
                "folder for each run, or call cut(timestep) to go on from there"
            )
        self._continues = True

    def _read(self) -> Iterator[Row]:
        """Yield the rows of ``metrics.csv``; the process that wrote it may have been killed within the last one."""
        data = read_at(self._filesystem, self._csv)
        whole = data[: data.rfind(b"\n") + 1]
        if not whole:
            return
        try:
            lines = csv.reader(io.StringIO(whole.decode(), newline=""))
            if tuple(next(lines, ())) != COLUMNS:
                raise ValueError(f"expected the columns {', '.join(COLUMNS)}")
            for timestep, scope, tag, value in lines:
                float(value)
                yield int(timestep), int(scope), tag, value
        except (ValueError, csv.Error) as error:
            raise ConfigError(f"{self._csv} is damaged: {error}") from error

    def _times(self, path: str) -> Iterator[tuple[tuple[int, int], float]]:
        """Yield when the events of each scope and step were written."""
        name = path.rpartition("/tensorboard/scope_")[2]
        with suppress(Exception):  # they may be damaged, and are not needed
            scope = int(name.partition("/")[0])
            for event in EventFileLoader(f"{self._directory}/tensorboard/scope_{name}").Load():
                if event.HasField("summary"):
                    yield (scope, event.step), event.wall_time

    def _append(self, rows: Sequence[Row]) -> None:
        is_new = not self._filesystem.exists(self._csv) or not self._filesystem.size(self._csv)
        if is_new:
            self._filesystem.makedirs(self._filesystem._parent(self._csv), exist_ok=True)
        added = _text([COLUMNS, *rows] if is_new else rows)
        if not isinstance(self._filesystem, LocalFileSystem):  # object stores cannot append
            before = b"" if is_new else self._filesystem.cat_file(self._csv)
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

    def _write_events(self, timestep: int, scope: int, by_tag: Mapping[str, float], wall_time: float) -> None:
        if scope not in self._events:
            self._events[scope] = EventFileWriter(f"{self._directory}/tensorboard/scope_{scope}")
        values = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in by_tag.items()]
        event = Event(step=timestep, wall_time=wall_time, summary=Summary(value=values))
        try:
            self._events[scope].add_event(event)
            self._events[scope].flush()
        except Exception:
            # this writer would raise the same error forever; the next write starts a new file
            broken = self._events.pop(scope)
            with suppress(Exception):
                broken.close()
            raise


def _text(rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
