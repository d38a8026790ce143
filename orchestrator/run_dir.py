"""RunDirectory: all files of one run in one folder, on the driver or at any URL that fsspec supports."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import fsspec.core

from orchestrator.metrics import MetricsWriter
from orchestrator.origin import LARGEST, ORIGIN, Origin
from workers.envs.statistics import Statistics
from workers.errors import AgentError, ConfigError, DivergedError
from workers.frameworks import Framework, load_framework
from workers.storage.agent_file import FILE_NAMES, OWN, STATE, load_agent, offers_state
from workers.storage.state_file import decode_state, encode_state, nonfinite_values

__all__ = ["CONFIG", "RunDirectory"]

CONFIG = "config.yaml"
"""Name of the configuration in a run directory."""

_STATISTICS = "statistics.safetensors"
_MOST_TOLD = 5
"""Number of values of a diverged agent that an error names."""


class RunDirectory:
    """The directory of one run.

    Contents::

        config.yaml       the configuration from which `lockstep train` reproduces the run
        versions.json     the versions of everything that the numbers depend on
        metrics.csv       the scalars of all scopes; tensorboard/ has the same for TensorBoard
        status.json       whether the run is running, interrupted, failed or finished, and the timestep of agents/
        agents/0/         the learned state of scope 0's agent; see `workers.storage.agent_file.dump_agent`; and
                          statistics.safetensors, if wrappers of its environments hold any
        evaluation.json   the returns that were printed at the end
        origin.json       proof that this user wrote the files that can run code: config.yaml and every agent.bin

    Files are replaced as a whole, so they can be read at any time.

    Attributes:
        url: Location of the directory.
    """

    def __init__(self, url: str) -> None:
        """Point to a folder, which need not exist.

        Args:
            url: A path, or a URL that fsspec supports.

        Raises:
            ConfigError: The kind of URL is unknown, or a package that it needs is not installed.
        """
        self.url = url.rstrip("/")
        try:
            self._filesystem, path = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError, OSError) as error:
            raise ConfigError(f"the run directory {url!r} cannot be opened: {error}") from error
        self._path = path.rstrip("/")
        self._origin = Origin(self._read_origin, lambda record: self.write(ORIGIN, record))

    def check_new(self) -> None:
        """Check that the directory is empty or does not exist.

        Raises:
            ConfigError: It exists and is not empty.
        """
        files = self._filesystem
        if files.exists(self._path) and (not files.isdir(self._path) or files.ls(self._path, detail=False)):
            raise ConfigError(f"the run directory {self.url!r} already exists and is not empty; choose another one")

    def create(self, config: str) -> None:
        """Start a run.

        Args:
            config: The configuration of the run, as YAML.

        Raises:
            ConfigError: The directory is not empty, or cannot be written; or this user's key is not private.
        """
        self.check_new()
        try:
            self._origin.sign({CONFIG: config.encode()})
            self.write(CONFIG, config)
        except OSError as error:
            raise ConfigError(f"the run directory {self.url!r} cannot be written: {error}") from error

    def config(self) -> str:
        """Return the configuration of the run.

        Raises:
            ConfigError: This is not a run directory.
        """
        try:
            return self._read(CONFIG).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self.url!r} is not a run directory: it has no readable {CONFIG} ({error})") from error

    def status(self) -> dict[str, Any]:
        """Return the ``state`` of the run and the ``timestep`` of the stored agents.

        Raises:
            ConfigError: This is not a run directory.
        """
        try:
            status: dict[str, Any] = dict(json.loads(self._read("status.json")))
        except (OSError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{self.url!r} is not a run directory: it has no readable status.json ({error})"
            ) from error
        return status

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file, replacing it as a whole.

        Raises:
            OSError: The file cannot be written.
        """
        path = f"{self._path}/{name}"
        self._filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
        with self._filesystem.open(f"{path}.part", "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        self._filesystem.mv(f"{path}.part", path)

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
            AgentError: A state cannot be read.
            DivergedError: An agent holds NaN, or infinity where it held none, and the stored one holds no NaN.
            OSError: A file cannot be written.
        """
        self._check_finite(files)
        own = {f"agents/{scope}/{name}": data for scope, (name, data) in enumerate(files) if name == OWN}
        self._origin.sign(own)
        for scope, (name, data) in enumerate(files):
            self.write(f"agents/{scope}/{name}", data)
            for other in FILE_NAMES:  # an older file of another kind would be loaded instead
                if other != name and self._filesystem.exists(f"{self._path}/agents/{scope}/{other}"):
                    self._filesystem.rm(f"{self._path}/agents/{scope}/{other}")
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
        if not self._filesystem.exists(f"{self._path}/{name}"):
            return []
        rows: list[Statistics] = decode_state(self._read(name), load_framework("numpy"))
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
                f"{self.url}/{path} was not written by this user ({reason}), and loading it can run code; pass "
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
            if self._filesystem.exists(f"{self._path}/{name}"):
                return name, self._read(name)
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
            if not found or not self._filesystem.exists(f"{self._path}/{path}"):
                continue
            try:
                stored = nonfinite_values(self._read(path))
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

    def _read_origin(self) -> bytes:
        path = f"{self._path}/{ORIGIN}"
        if (kind := self._filesystem.info(path)["type"]) != "file":
            raise ValueError(f"it is not a regular file ({kind})")
        with self._filesystem.open(path, "rb") as file:
            data: bytes = file.read(LARGEST + 1)
        return data

    def _read(self, name: str) -> bytes:
        with self._filesystem.open(f"{self._path}/{name}", "rb") as file:
            data: bytes = file.read()
        return data
