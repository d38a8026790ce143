"""The connection of this process to Ray, and who must end it."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import warnings
from dataclasses import dataclass
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import ray

from workers.errors import ClusterError

__all__ = ["Cluster", "connect"]

_logger = logging.getLogger("lockstep")

_users = 0
"""Number of sessions that use a connection made by `connect`; the last one ends it."""


@dataclass(frozen=True)
class Cluster:
    """The Ray cluster that this process is connected to.

    Attributes:
        connected_here: Whether `connect` made the connection, so that `disconnect` may end it.
        started_here: Whether `connect` started Ray itself; such a cluster does not grow.
    """

    connected_here: bool
    started_here: bool

    @property
    def resources(self) -> dict[str, float]:
        """All resources of the cluster, such as ``"CPU"`` and ``"GPU"``."""
        resources: dict[str, float] = ray.cluster_resources()
        return resources

    @property
    def available(self) -> dict[str, float]:
        """The part of `resources` that is currently free."""
        available: dict[str, float] = ray.available_resources()
        return available

    def disconnect(self) -> None:
        """End the connection if it was made here and no other session uses it."""
        global _users
        if self.connected_here:
            _users = max(0, _users - 1)
            if not _users and ray.is_initialized():
                ray.shutdown()


_own = Cluster(connected_here=False, started_here=False)
"""The connection that `connect` made last."""


def connect(address: str | None, *, timeout: float) -> Cluster:
    """Use the Ray that this process is connected to, else the one at `address`, else start one on this machine.

    Args:
        address: ``"auto"``, ``"host:port"`` or ``"ray://host:port"``; None uses the environment variable
            ``RAY_ADDRESS``, or starts Ray on this machine if it is not set.
        timeout: Time to reach the cluster, in seconds.

    Raises:
        ClusterError: The cluster cannot be reached within `timeout`.
    """
    global _users, _own
    if ray.is_initialized():
        if not _users:
            return Cluster(connected_here=False, started_here=False)
        _users += 1
        return _own
    _users = 0  # Ray may have been shut down elsewhere
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address != "local":
        _check_health(address, timeout)
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        started = monotonic()
        doing = "starting Ray on this machine" if address == "local" else f"connecting to Ray at {address}"
        _logger.info("%s ...", doing)
        with warnings.catch_warnings():
            # JAX warns about forks, but the processes that Ray forks call exec at once
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            ray.init(address=address, logging_level=logging.WARNING, **options)
    except Exception as error:
        raise ClusterError(_unreachable(address, f"{type(error).__name__}: {error}")) from error
    _logger.info("Ray is ready after %.1f s", monotonic() - started)
    _users, _own = 1, Cluster(connected_here=True, started_here=address == "local")
    return _own


def _check_health(address: str, timeout: float) -> None:
    """Check the cluster in a subprocess, because connecting may block forever if something else listens there."""
    options: list[str] = []
    try:
        if address != "auto":
            parts = urlsplit(address if "://" in address else f"//{address}")
            if parts.hostname is None or parts.port is None:
                raise ClusterError(f"Ray's address is {address!r}; expected 'auto', 'host:port' or 'ray://host:port'")
            socket.create_connection((parts.hostname, parts.port), timeout=timeout).close()
            options = ["--address", f"{parts.hostname}:{parts.port}"]
            if parts.scheme == "ray":
                options += ["--component", "ray_client_server"]
        subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", "health-check", *options],
            capture_output=True,
            check=True,
            timeout=timeout,
        )
    except (OSError, ValueError) as error:
        raise ClusterError(_unreachable(address, f"{type(error).__name__}: {error}")) from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(_unreachable(address, f"no answer to a health check within {timeout:.0f} s")) from error
    except subprocess.CalledProcessError as error:
        last_line = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ClusterError(_unreachable(address, last_line or "not healthy")) from error


def _unreachable(address: str, reason: str) -> str:
    return (
        f"Ray cannot be reached at {address!r} ({reason}); check that it is running there (ray status), or omit the "
        "address to start Ray on this machine"
    )
