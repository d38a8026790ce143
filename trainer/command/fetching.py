"""Where a cluster is, and how the run directory of a job comes from there."""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.origin import run_of
from orchestrator.run_dir import RunDirectory
from trainer._console import shown
from trainer._redaction import redacted
from workers.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.ray.jobs import Jobs

__all__ = ["DIRECTORY", "Place", "fetched"]

_logger = logging.getLogger("lockstep")

DIRECTORY = "lockstep_run_directory"
"""Key of the run directory in the metadata of a job."""


@dataclass(frozen=True)
class Place:
    """A cluster: where its dashboard is.

    Attributes:
        address: Address of the dashboard; None: through a tunnel.
        cluster: The configuration for `ray up`; None: directly.
    """

    address: str | None = None
    cluster: str | None = None

    @classmethod
    def of(cls, address: str | None, cluster: str | None) -> Place:
        """Return the place that the options name, else the environment variables of Ray.

        Raises:
            ConfigError: There is none, or it is not the address of a dashboard.
        """
        if cluster is not None:
            if not Path(cluster).is_file():
                raise ConfigError(f"--cluster is {cluster!r}, which is no file; expected the file that `ray up` takes")
            return cls(cluster=cluster)
        variables = [os.environ.get(name, "") for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")]
        found = [one for one in variables if one.startswith("http")]
        address = address or (found[0] if found else None)
        expected = (
            "expected --cluster cluster.yaml, or the address of the dashboard, such as --address http://HOST:8265"
        )
        if address is None:
            raise ConfigError(f"no cluster is given; {expected}")
        if not re.match(r"https?://[^/@\s]+(/|$)", address):
            raise ConfigError(f"--address is {redacted(address)!r}; {expected}")
        return cls(address=address)

    @property
    def option(self) -> str:
        """The option of the command that names it."""
        return shlex.join(["--cluster", self.cluster] if self.cluster else ["--address", self.address or ""])

    @contextmanager
    def jobs(self) -> Iterator[Jobs]:
        """Connect to its Jobs API.

        Raises:
            ClusterError: It cannot be reached, or refuses the token.
        """
        from orchestrator.ray.jobs import Jobs
        from orchestrator.ray.launcher import Tunnel

        if self.cluster is None:
            yield Jobs(self.address or "")
            return
        with Tunnel(self.cluster) as tunnel:
            yield Jobs(tunnel.address, renew=tunnel.renew)


def fetched(directory: str | None, name: str, jobs: Jobs, place: Place) -> Iterator[str]:
    """Copy the run directory of a job, if it is on the head's disk and there is a way; say where it is otherwise."""
    if directory == "":  # it has none
        return
    if directory is None:
        _logger.warning("the job is not one of lockstep submit: its files stay where they are")
        return
    log = jobs.log(name).splitlines()
    said = [line.removeprefix("run directory: ") for line in log if line.startswith("run directory: ")]
    parts = Path(directory).parts
    on_head = [Path(one) for one in said if one.startswith("/") and Path(one).parts[-len(parts) :] == parts]
    is_inside = parts and parts[0] != "/" and ".." not in parts
    if not on_head or not is_inside:  # an absolute path, which may be shared, a URL, or a trick of a stranger
        yield from [f"run directory: {shown(one)}" for one in said[-1:]]
        return
    source, target = str(on_head[-1]), Path("runs", on_head[-1].name)
    if place.cluster is None:
        yield f"run directory, on the head: {shown(source)}; copy it from there, or use --cluster cluster.yaml"
        return
    from orchestrator.ray.launcher import fetch

    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        fetch(place.cluster, source, target)
        yield f"run directory: {target}"
        return
    copies = (target.with_name(f"{target.name}.fetched{number or ''}") for number in count())
    copy = next(path for path in copies if not path.exists())
    fetch(place.cluster, source, copy)
    if _is_newer(copy, target):  # of a job that went on with the run
        shutil.rmtree(target)
        copy.rename(target)
    else:
        _logger.warning("%s exists already, and is no earlier copy of this run", target)
        target = copy
    yield f"run directory: {target}"


def _is_newer(copy: Path, target: Path) -> bool:
    """Return whether a copy is of the same run, and as far at least, and nobody trains in the other one."""
    if run_of(target) is None or run_of(target) != run_of(copy):
        return False
    try:
        one, other = (RunDirectory(str(path)) for path in (copy, target))
        with other.locked():
            return bool(one.status()["timestep"] >= other.status()["timestep"])
    except ConfigError:
        return False
