"""RunDirectory: all files of one run in one folder, on the driver or at any URL that fsspec supports."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from orchestrator.files import LARGEST_TEXT, PARTIAL, make_folder, named_errors, open_url, read_at, replace_at
from orchestrator.metrics import MetricsWriter
from orchestrator.origin import LARGEST, ORIGIN, Origin
from orchestrator.run_checkpoints import RunCheckpoints
from workers.envs.statistics import Statistics, are_statistics
from workers.errors import AgentError, ConfigError, DivergedError
from workers.frameworks import Framework, load_framework
from workers.storage.agent_file import FILE_NAMES, OWN, STATE, load_agent, offers_state
from workers.storage.state_file import check_start, decode_state, encode_state, nonfinite_values

__all__ = ["CONFIG", "LOCK", "RunDirectory"]

CONFIG = "config.yaml"
"""Name of the configuration in a run directory."""

LOCK = ".lock"
_BEFORE = re.compile(rf"/({re.escape(ORIGIN)}|{re.escape(LOCK)})$|{PARTIAL.pattern}")
"""What is written before the configuration."""

_STATISTICS = "statistics.safetensors"
_STATES = ("running", "interrupted", "failed", "finished")
_MOST_TOLD = 5
"""Number of values of a diverged agent that an error names."""


class RunDirectory:
    """The directory of one run.

    Contents::

        config.yaml       the configuration from which `lockstep train` reproduces the run
        spaces.json       the spaces of one environment, from which agents can be built without it
        versions.json     the versions of everything that the numbers depend on
        metrics.csv       the scalars of all scopes; tensorboard/ has the same for TensorBoard
        status.json       whether the run is running, interrupted, failed or finished, and the timestep of agents/
        agents/0/         the learned state of scope 0's agent; see `workers.storage.agent_file.dump_agent`; and
                          statistics.safetensors, if wrappers of its environments hold any
        evaluation.json   the returns that were printed at the end
        best/             a run directory of the agents with the highest mean return in evaluations during training
        recoveries/       what was done about lost workers, by the timestep from which a process trained
        checkpoints/      the last checkpoints, from which the run can go on; see `orchestrator.run_checkpoints`
        origin.json       proof that this user wrote the files that can run code: config.yaml, every agent.bin, and
                          checkpoints with pickles
        .lock             held by the process that trains

    Files are replaced as a whole, so they can be read at any time. On a local disk only this user can enter the
    directory, unless it is shared or existed before. Whatever is there may come from somebody else: it is read within
    limits, and checked.

    Attributes:
        url: Location of the directory.
    """

    def __init__(self, url: str, *, shared: bool = False) -> None:
        """Point to a folder, which need not exist.

        Args:
            url: A path, or a URL that fsspec supports.
            shared: Whether other users may read the directory if it is made here, as far as the umask allows.

        Raises:
            ConfigError: The kind of URL is unknown, or a package that it needs is not installed.
        """
        self.url, self._filesystem, self._path = open_url(url)
        self._private = not shared
        self._origin = Origin(lambda: self._read(ORIGIN, LARGEST), lambda record: self.write(ORIGIN, record))

    def check_new(self) -> None:
        """Check that the directory is empty or does not exist, or that a run was killed there before it began.

        Raises:
            ConfigError: It exists and is not empty, or cannot be read.
        """
        files = self._filesystem
        try:
            taken = files.exists(self._path) and (
                not files.isdir(self._path)
                or any(not _BEFORE.search(path) for path in files.ls(self._path, detail=False))
            )
        except Exception as error:  # filesystems of other packages may raise anything
            raise ConfigError(f"the run directory {self.url!r} cannot be read: {error}") from error
        if taken:
            raise ConfigError(f"the run directory {self.url!r} already exists and is not empty; choose another one")

    def create(self, config: str) -> None:
        """Start a run.

        Args:
            config: The configuration of the run, as YAML.

        Raises:
            ConfigError: The directory is not empty, or cannot be written.
        """
        self.check_new()
        self.write_config(config)

    def write_config(self, config: str) -> None:
        """Write the configuration of the run.

        Raises:
            ConfigError: The directory cannot be written.
        """
        try:
            self._origin.sign({CONFIG: config.encode()})
            self.write(CONFIG, config)
            self._origin.settle([CONFIG])
        except OSError as error:
            raise ConfigError(f"the run directory {self.url!r} cannot be written: {error}") from error

    def config(self) -> str:
        """Return the configuration of the run.

        Raises:
            ConfigError: This is not a run directory, or does not exist.
        """
        try:
            return self._read(CONFIG, LARGEST_TEXT).decode()
        except (OSError, UnicodeDecodeError) as error:
            with suppress(OSError):
                if isinstance(error, FileNotFoundError) and not self.exists(""):
                    raise ConfigError(f"the run directory {self.url!r} does not exist") from error
            raise ConfigError(f"{self.url!r} is not a run directory: it has no readable {CONFIG} ({error})") from error

    def status(self) -> dict[str, Any]:
        """Return the ``state`` of the run, the ``timestep`` of the stored agents, and why a callback ``stopped`` it.

        Raises:
            ConfigError: This is not a run directory.
        """
        status = self.read_json("status.json")
        state, timestep = status.get("state"), status.get("timestep")
        if state not in _STATES or type(timestep) is not int or timestep < 0:
            raise ConfigError(
                f"{self.url!r} is not a run directory: its status.json has state {reprlib.repr(state)} and "
                f"timestep {reprlib.repr(timestep)}; expected one of {', '.join(_STATES)}, and an integer of at least 0"
            )
        stopped = status.get("stopped", "")
        return {"state": state, "timestep": timestep, "stopped": stopped if isinstance(stopped, str) else ""}

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file, replacing it as a whole.

        Raises:
            OSError: The file cannot be written.
        """
        path = f"{self._path}/{name}"
        make_folder(self._filesystem, self._path, private=self._private)
        make_folder(self._filesystem, path.rpartition("/")[0], private=False)
        replace_at(self._filesystem, path, content.encode() if isinstance(content, str) else content)

    def exists(self, name: str) -> bool:
        """Return whether a file is there.

        Raises:
            OSError: The directory cannot be read.
        """
        with named_errors():
            return bool(self._filesystem.exists(f"{self._path}/{name}"))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there.

        Raises:
            OSError: It cannot be removed.
        """
        if self.exists(name):
            with named_errors():
                self._filesystem.rm(f"{self._path}/{name}")

    def clean(self) -> None:
        """Remove what writers have left that were killed.

        Raises:
            OSError: The directory cannot be read or written.
        """
        with named_errors():
            self._filesystem.invalidate_cache()
            for path in self._filesystem.find(self._path):
                if PARTIAL.search(path):
                    self._filesystem.rm(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes of this machine from training in the directory, if it is on a local disk.

        Raises:
            ConfigError: Another process trains in it, or it cannot be written.
        """
        if not isinstance(self._filesystem, LocalFileSystem):
            yield
            return
        path = f"{self._path}/{LOCK}"
        try:
            make_folder(self._filesystem, self._path, private=self._private)
            lock = open(path, "ab")  # noqa: SIM115 - closed below
        except OSError as error:
            raise ConfigError(f"the run directory {self.url!r} cannot be written: {error}") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(
                    f"another process trains in {self.url!r}; stop it, or wait until it is done"
                ) from error
            except OSError:  # not every disk can lock
                pass
            try:
                yield
            finally:
                if not self.exists(CONFIG):  # nothing was begun
                    with suppress(OSError):
                        os.remove(path)
                        os.rmdir(self._path)

    def checkpoints(self) -> RunCheckpoints:
        """Return the checkpoints of the run."""
        return RunCheckpoints(self.url, self._filesystem, self._path, self._origin)

    def metrics(self) -> MetricsWriter:
        """Return a writer for the scalars of the run."""
        return MetricsWriter(self.url)

    def write_agents(self, files: Sequence[tuple[str, bytes]], statistics: Sequence[Sequence[Statistics]] = ()) -> None:
        """Store the files that `StepTrainer.agent_files` returned: those of all scopes, or none.

        An ``agent.bin`` is in its agent's own format and cannot be checked.

        Args:
            files: Name and content of each scope's agent file.
            statistics: The statistics of each scope's environments, by row. They are stored if there are any.

        Raises:
            AgentError: A state cannot be read, or a file has another name than an agent's.
            DivergedError: An agent holds NaN, or infinity where it held none, and the stored one holds no NaN.
            OSError: A file cannot be written.
        """
        if wrong := [name for name, _ in files if name not in FILE_NAMES]:
            raise AgentError(f"an agent's file has the name {wrong[0]!r}; expected one of {', '.join(FILE_NAMES)}")
        self._check_finite(files)
        own = {f"agents/{scope}/{name}": data for scope, (name, data) in enumerate(files) if name == OWN}
        self._origin.sign(own)
        for scope, (name, data) in enumerate(files):
            self.write(f"agents/{scope}/{name}", data)
            for other in FILE_NAMES:  # an older file of another kind would be loaded instead
                if other != name:
                    self.remove(f"agents/{scope}/{other}")
        self._origin.settle(own)
        for scope, rows in enumerate(statistics):
            if any(rows):
                self.write(f"agents/{scope}/{_STATISTICS}", encode_state(rows, load_framework("numpy")))

    def statistics(self, scope: int) -> list[Statistics]:
        """Return the stored statistics of a scope's environments, by row; an empty list if there are none.

        Raises:
            AgentError: The file is damaged.
        """
        name = f"agents/{scope}/{_STATISTICS}"
        if not self.exists(name):
            return []
        data = self._read_agent(name)
        try:
            rows: list[Statistics] = decode_state(data, load_framework("numpy"))
            if not are_statistics(rows):
                raise AgentError("the file does not hold the statistics of environments")
        except AgentError as error:
            raise AgentError(f"{self.url}/{name}: {error}") from error
        return rows

    def load_agent(self, agent: Any, scope: int, framework: Framework, *, trust: bool = False) -> None:
        """Load the stored state of a scope's agent into `agent`.

        Args:
            agent: An agent that was built like the stored one.
            scope: Index of the scope.
            framework: The agent's framework.
            trust: Whether to load an ``agent.bin`` that this user did not write. It can run code.

        Raises:
            AgentError: Nothing is stored, it does not fit the agent, or it is not trusted.
        """
        path, data = self.agent_file(scope)
        name = path.rpartition("/")[2]
        asks = name == OWN and not trust and not offers_state(agent, framework)
        if asks and (reason := self.foreign(path, data)):
            raise AgentError(
                f"{self.url}/{path} is not known to be of this user ({reason}), and loading it can run code; pass "
                "trust=True (lockstep eval --trust) if you trust it"
            )
        try:
            load_agent(agent, name, data, framework)
        except AgentError as error:
            raise AgentError(f"{self.url}/{path}: {error}") from error

    def foreign(self, name: str, data: bytes) -> str:
        """Return why a file may be somebody else's; empty if this user wrote it for this run.

        Args:
            name: Name of the file in the directory.
            data: Its content, as read.

        Raises:
            ConfigError: This user's key is not private.
        """
        return self._origin.foreign(name, data)

    def agent_file(self, scope: int) -> tuple[str, bytes]:
        """Return the name (in the directory) and the content of a scope's agent file.

        Raises:
            AgentError: Nothing is stored.
        """
        for name in (f"agents/{scope}/{file}" for file in FILE_NAMES):
            if self.exists(name):
                return name, self._read_agent(name)
        raise AgentError(f"{self.url}/agents/{scope} has none of {', '.join(FILE_NAMES)}: no agent is stored there")

    def digest(self, scope: int) -> str:
        """Return the SHA-256 of a scope's agent file.

        Raises:
            AgentError: Nothing is stored.
        """
        return hashlib.sha256(self.agent_file(scope)[1]).hexdigest()

    def _check_finite(self, files: Sequence[tuple[str, bytes]]) -> None:
        told = []
        for scope, (name, data) in enumerate(files):
            path = f"agents/{scope}/{name}"
            found = nonfinite_values(data) if name == STATE else {}
            if not found or not self.exists(path):
                continue
            try:
                stored = nonfinite_values(self._read_agent(path))
            except AgentError:  # damaged: nothing good is lost
                continue
            # an infinity may be a constant of the agent, such as a mask
            new = [f"{kind} in {value}" for value, kind in found.items() if stored.get(value) != kind]
            if new and "NaN" not in stored.values():
                new[_MOST_TOLD:] = [f"{len(new) - _MOST_TOLD} more"] if len(new) > _MOST_TOLD else []
                told.append(
                    f"the agent of scope {scope} holds {', '.join(new)}; {self.url}/{path} is the last good file, "
                    f"from timestep {self.status()['timestep']}"
                )
        if told:
            raise DivergedError("\n".join(told))

    def _read_agent(self, name: str) -> bytes:
        try:
            if name.endswith(".safetensors"):  # before a large file is read
                check_start(read_at(self._filesystem, f"{self._path}/{name}", only=8))
            return self._read(name)
        except OSError as error:
            raise AgentError(f"{self.url}/{name} cannot be read: {error}") from error
        except AgentError as error:
            raise AgentError(f"{self.url}/{name}: {error}") from error

    def read_json(self, name: str, without: str = "is not a run directory") -> dict[str, Any]:
        """Return the dictionary in a file.

        Args:
            name: Name of the file.
            without: What the directory is without it, for the error.

        Raises:
            ConfigError: There is none.
        """
        try:
            found = json.loads(self._read(name, LARGEST_TEXT))
            if not isinstance(found, dict):
                raise TypeError(f"it is a {type(found).__name__}; expected a dictionary")
        except (OSError, TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"{self.url!r} {without}: it has no readable {name} ({error})") from error
        return found

    def _read(self, name: str, most: int | None = None) -> bytes:
        """Return the content of a file of `most` bytes at most.

        Raises:
            OSError: It cannot be read, or is not such a file.
        """
        return read_at(self._filesystem, f"{self._path}/{name}", most)
