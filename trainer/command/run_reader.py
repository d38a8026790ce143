"""RunReader: what a run directory says of its run, also while another process writes there."""

from __future__ import annotations

import copy
import csv
import fcntl
import io
import json
import math
import reprlib
import time
from array import array
from collections.abc import Collection
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any, NamedTuple, Self

from fsspec.implementations.local import LocalFileSystem

from orchestrator.files import LARGEST_TEXT, list_names, open_url, read_at
from orchestrator.metrics import COLUMNS
from orchestrator.run_dir import CONFIG, LOCK, RunDirectory
from trainer._redaction import redacted
from trainer.command.config_file import load_yaml
from workers.errors import ConfigError

__all__ = ["RunReader", "Series", "at", "returns_of"]

_LARGEST_METRICS, _LARGEST_RECORD = 2**30, 2**24
"""Most bytes of ``metrics.csv``, and of an evaluation or a file of recoveries."""

_BLOCK = 2**22
"""Bytes of ``metrics.csv`` that are in memory at once."""

_MOST_SCOPES, _MOST_SERIES = 10_000, 200_000
"""Most simultaneous agents, and most pairs of a scope and a tag."""

_LATEST = 2**62
"""Timesteps are less."""

_LARGEST = 1e30
"""Values from here on are as good as infinite, and would be in the way of a plot."""

_TAIL = 200
"""Bytes before the end of what was read that are read again, to see whether the file is still the same."""

_SILENCE = 5.0
"""Seconds without a write after which it is checked whether a process still trains."""


class Series(NamedTuple):
    """The values of one tag of one scope, in the order in which they were written; timesteps may go back."""

    timesteps: array[int]
    values: array[float]

    @property
    def finite(self) -> list[float]:
        """The values that are numbers."""
        return [value for value in self.values if math.isfinite(value)]


class RunReader:
    """Reader of a run directory, which may be somebody else's, damaged, or growing. It writes nothing there.

    Secrets are left out of everything but the tags of the metrics.

    Attributes:
        url: Location of the directory; on a disk its absolute path.
        config: The configuration as plain data.
        versions: Version by package.
        state: ``"running"``, ``"interrupted"``, ``"failed"`` or ``"finished"``; ``"unknown"`` if that is not known.
        stopped: Why a callback stopped the run; empty if none did.
        timestep: Number of timesteps that are known to be done.
        metrics: The series by tag and scope.
        recoveries: The recoveries; see `orchestrator.base.Recovered`.
        checkpoints: Timesteps of the checkpoints, the last one last.
        evaluation: The results of each scope in the final evaluation; empty if there is none.
        began: When the process that trains began, in seconds since the epoch; None if that is not known.
        written: When something was written last, likewise.
        is_held: Whether a process of this machine trains in the directory. None: not known, or it is writing.
        problems: What is missing or damaged, by file.
    """

    def __init__(self, url: str) -> None:
        """Read everything that is there.

        Args:
            url: A path, or a URL that fsspec supports.

        Raises:
            ConfigError: It is no run directory, or cannot be opened.
        """
        opened, self._filesystem, self._path = open_url(url)
        self._directory = RunDirectory(url)
        self.url: str = redacted(self._path if self.is_local else opened)
        self.problems: dict[str, str] = {}
        data = redacted(load_yaml(self._directory.config()))
        self.config: dict[str, Any] = data if isinstance(data, dict) else {}
        self.versions = self._json("versions.json", dict, LARGEST_TEXT)
        self.state, self.stopped, self.timestep = "unknown", "", 0
        self.metrics: dict[str, dict[int, Series]] = {}
        self.recoveries: list[dict[str, Any]] = []
        self.checkpoints: list[int] = []
        self.evaluation: list[dict[str, Any]] = []
        self.began: float | None = None
        self.written: float | None = None
        self.is_held: bool | None = None
        self._done, self._tail, self._count, self._damage = 0, b"", 0, ""
        self.read()

    @property
    def is_local(self) -> bool:
        """Whether the directory is on a disk."""
        return isinstance(self._filesystem, LocalFileSystem)

    @property
    def num_scopes(self) -> int:
        """Number of simultaneous agents."""
        agents = self.config.get("agents")
        seen = [scope + 1 for series in self.metrics.values() for scope in series]
        return max([1, *seen, len(agents) if isinstance(agents, list) else 1])

    def only(self, scopes: Collection[int]) -> Self:
        """Return a reader that knows the metrics of some scopes only."""
        part = copy.copy(self)
        part.metrics = {
            tag: {scope: series for scope, series in of_tag.items() if scope in scopes}
            for tag, of_tag in self.metrics.items()
        }
        return part

    @property
    def name(self) -> str:
        """Name of the directory."""
        return PurePosixPath(self.url).name or self.url

    @property
    def env(self) -> str:
        """Name of the environment."""
        return at(self.config, "env", "id", kind=str) or at(self.config, "env", "factory", kind=str) or "?"

    @property
    def timesteps(self) -> int:
        """Number of timesteps at which the run ends; 0 if that is not known."""
        return min(at(self.config, "trainer", "timesteps", kind=int) or 0, _LATEST)

    @property
    def num_envs(self) -> int:
        """Number of environments; 0 if that is not known."""
        return min(at(self.config, "env", "num_envs", kind=int) or 0, _LATEST)

    @property
    def is_killed(self) -> bool:
        """Whether the run did not come to its end, and no process trains it."""
        return self.state in ("running", "unknown") and self.is_held is False

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ("interrupted", "failed", "finished") or self.is_killed

    def read(self) -> None:
        """Read what is new. What cannot be read is among `problems`."""
        self.problems = {name: told for name, told in self.problems.items() if name == "versions.json"}
        with suppress(Exception):  # filesystems of other packages may raise anything
            self._filesystem.invalidate_cache()
        try:
            status = self._directory.status()
            self.state, self.stopped, self.timestep = status["state"], redacted(status["stopped"]), status["timestep"]
        except ConfigError as error:
            self.state = "unknown"
            self._note("status.json", error)
        try:
            self._read_metrics()
        except FileNotFoundError:
            self._note("metrics.csv", "there is none yet")
        except OSError as error:
            self._note("metrics.csv", error)
        self._read_folders()
        self.began = self._modified("versions.json")
        times = [self._modified(name) for name in ("metrics.csv", "status.json")]
        self.written = max((one for one in times if one is not None), default=self._modified(CONFIG))
        self.is_held = self._find_held()

    def _read_metrics(self) -> None:
        """Read the rows that were added. A run that was resumed may have replaced the file by another one.

        Raises:
            OSError: The file cannot be read.
        """
        while self._read_block():
            if self._done > _LARGEST_METRICS:
                self._damage = self._damage or f"it has more than {_LARGEST_METRICS} bytes, and the rest is left out"
                break
        if self._damage:
            self._note("metrics.csv", self._damage)

    def _read_block(self) -> bool:
        """Read a part of the rows that were added, and return whether there are more."""
        path = f"{self._path}/metrics.csv"
        data = read_at(self._filesystem, path, only=_BLOCK, start=self._done - len(self._tail))
        if not data.startswith(self._tail):
            self.metrics, self._done, self._tail, self._count, self._damage = {}, 0, b"", 0, ""
            data = read_at(self._filesystem, path, only=_BLOCK)
        whole = data[len(self._tail) : data.rfind(b"\n") + 1]  # the last row may be incomplete
        rows = csv.reader(io.StringIO(whole.decode(errors="replace"), newline=""))
        is_first, self._done, self._tail = not self._done, self._done + len(whole), (self._tail + whole)[-_TAIL:]
        while True:
            try:
                if is_first:
                    is_first = False
                    if tuple(next(rows, COLUMNS)) != COLUMNS:
                        raise ValueError(f"expected the columns {', '.join(COLUMNS)}")
                for row in rows:
                    self._add(row)
                return bool(whole) and len(data) == _BLOCK
            except (ValueError, csv.Error) as error:  # of this row; the next ones may be good
                self._damage = self._damage or f"it is damaged, and rows are left out: {error}"

    def _add(self, row: list[str]) -> None:
        try:
            timestep, scope, tag, value = int(row[0]), int(row[1]), row[2], float(row[3])
        except (ValueError, IndexError) as error:
            raise ValueError(f"expected {', '.join(COLUMNS)}, not {reprlib.repr(row)}") from error
        if not (0 <= timestep < _LATEST and 0 <= scope < _MOST_SCOPES):
            raise ValueError(f"expected a timestep, and fewer than {_MOST_SCOPES:,} scopes, not {reprlib.repr(row)}")
        series = self.metrics.get(tag, {}).get(scope)
        if series is None:
            if self._count == _MOST_SERIES:
                raise ValueError(f"it has more than {_MOST_SERIES:,} pairs of a scope and a tag")
            self._count += 1
            series = self.metrics.setdefault(tag, {})[scope] = Series(array("q"), array("d"))
        series.timesteps.append(timestep)
        series.values.append(value if abs(value) < _LARGEST else math.nan)
        self.timestep = max(self.timestep, timestep)

    def _read_folders(self) -> None:
        try:
            names = list_names(self._filesystem, f"{self._path}/checkpoints")
            self.checkpoints = sorted(int(name) for name in names if len(name) == 12 and name.isdecimal())
            names = list_names(self._filesystem, f"{self._path}/recoveries")
            top = list_names(self._filesystem, self._path)
        except OSError as error:
            self._note("the directory", error)
            return
        if "evaluation.json" in top:
            results = self._json("evaluation.json", list, _LARGEST_RECORD)
            self.evaluation = [one for one in results if isinstance(one, dict)]
        found = [self._json(f"recoveries/{name}", list, _LARGEST_RECORD) for name in sorted(names) if name[:1] != "."]
        known = [one for each in found for one in each if isinstance(one, dict)]
        self.recoveries = [one | {"timestep": _timestep(one.get("timestep"))} for one in known]

    def _json(self, name: str, kind: type[Any], most: int) -> Any:
        """Return the content of a file, or an empty one if it cannot be read."""
        try:
            found = json.loads(read_at(self._filesystem, f"{self._path}/{name}", most))
            if isinstance(found, kind):
                return redacted(found)
            self._note(name, f"it is a {type(found).__name__}; expected a {kind.__name__}")
        except (OSError, ValueError, RecursionError) as error:
            self._note(name, error)
        return kind()

    def _note(self, name: str, problem: object) -> None:
        self.problems[name] = redacted(str(problem))

    def _modified(self, name: str) -> float | None:
        with suppress(Exception):  # not every filesystem knows
            return float(self._filesystem.modified(f"{self._path}/{name}").timestamp())
        return None

    def _find_held(self) -> bool | None:
        """Return `is_held`. A lock is tried only after a silence, because whoever tries one holds it for a moment."""
        is_silent = self.written is not None and time.time() - self.written > _SILENCE
        if self.state not in ("running", "unknown") or not is_silent or not self.is_local:
            return None
        with suppress(OSError), open(f"{self._path}/{LOCK}", "rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False
        return None


def _timestep(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 <= value < _LATEST else None


def returns_of(result: dict[str, Any]) -> list[float]:
    """Return the returns of a scope's episodes in ``evaluation.json``, as far as they are numbers."""
    found = at(result, "returns", kind=list) or []
    return [float(one) for one in found if isinstance(one, (int, float)) and abs(one) < _LARGEST]


def at(data: Any, *keys: str, kind: type[Any]) -> Any:
    """Return a value of plain data, which may be anything; None if it is missing or of another kind."""
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, kind) else None
