"""The connection of this process to Ray, and who must end it."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass
from time import monotonic
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.exceptions import RayError

from orchestrator.ray.address import check_address, unreachable
from orchestrator.ray.fitting import Node

__all__ = ["Cluster", "connect"]

_logger = logging.getLogger("lockstep")

_HEALTH_TIMEOUT = 30.0
"""Seconds within which a cluster answers."""

_ATTEMPTS = 3
"""How often Ray is asked to connect, as its client server sometimes fails to start the process for a client."""


@dataclass
class Cluster:
    """The Ray cluster that this process is connected to.

    Attributes:
        connection: Identity of the connection.
        users: Number of sessions that use a connection that `connect` made; the last one ends it. 0 for a connection
            that the program made.
    """

    connection: Any = None
    users: int = 0

    @property
    def is_connected(self) -> bool:
        """Whether the connection still exists: the program may have called ``ray.shutdown()``."""
        return self.connection is not None and self.connection == _connection()

    @property
    def resources(self) -> dict[str, float]:
        """All resources of the cluster, such as ``"CPU"`` and ``"GPU"``."""
        resources: dict[str, float] = ray.cluster_resources()
        return resources

    @property
    def nodes(self) -> list[Node]:
        """The nodes that are alive."""
        # a client of Ray cannot ask
        free: dict[str, Any] = {} if ray.util.client.ray.is_connected() else available_resources_per_node()
        return [
            Node(node["NodeManagerAddress"], node["Resources"], free.get(node["NodeID"]), node["Labels"])
            for node in ray.nodes()
            if node["Alive"]
        ]

    @property
    def may_grow(self) -> bool:
        """Whether nodes may join the cluster; not if this process started Ray, as ``ray.init()`` does."""
        node = ray._private.worker._global_node
        return node is None or not node.head

    def disconnect(self) -> None:
        """End the connection if it was made here, no other session uses it, and the program has not ended it."""
        self.users -= 1
        if self.users == 0 and _connection() in (None, self.connection):
            ray.shutdown()


_own = Cluster()
"""The cluster with the connection that `connect` made last."""


def _connection() -> Any:
    """Return the identity of this process's connection to Ray; None if there is none, or it does not answer."""
    if not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    try:
        return context.get_node_id(), context.get_job_id()
    except (ConnectionError, RayError):  # a client asks its server
        return None


def connect(address: str | None, *, timeout: float) -> Cluster:
    """Use the Ray that this process is connected to, else the one at `address`, else start one on this machine.

    Args:
        address: ``"auto"``, ``"host:port"`` or ``"ray://host:port"``; None uses the environment variable
            ``RAY_ADDRESS``, or starts Ray on this machine if it is not set. Ignored if this process is already
            connected to Ray.
        timeout: Time to reach the cluster, in seconds, at most 30.

    Raises:
        ClusterError: The cluster cannot be reached in time.
    """
    global _own
    if (current := _connection()) is not None:
        if address not in (None, "auto") and not address.startswith("ray://"):
            _warn_of_other(address)
        if current != _own.connection:
            return Cluster(current)
        _own.users += 1
        return _own
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    started = monotonic()
    doing = "starting Ray on this machine" if address == "local" else f"connecting to Ray at {address}"
    _logger.info("%s ...", doing)
    if address == "local":
        _init(address, include_dashboard=False)
    else:
        check_address(address, min(timeout, _HEALTH_TIMEOUT))
        _init(address)
    _logger.info("Ray is ready after %.1f s", monotonic() - started)
    _own = Cluster(_connection(), users=1)
    return _own


def _init(address: str, **options: Any) -> None:
    with warnings.catch_warnings():
        # JAX warns about forks, but the processes that Ray forks call exec at once
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        for attempt in range(_ATTEMPTS):
            try:
                ray.init(address=address, logging_level=logging.WARNING, **options)
                return
            except ConnectionAbortedError as error:
                if attempt == _ATTEMPTS - 1:
                    raise unreachable(address, f"{type(error).__name__}: {error}") from error
            except Exception as error:
                raise unreachable(address, f"{type(error).__name__}: {error}") from error


def _warn_of_other(address: str) -> None:
    """Warn if this process is connected to another Ray than the one at `address`."""
    connected = ray.get_runtime_context().gcs_address
    if address != connected:
        _logger.warning("address %r is ignored: this process is already connected to Ray at %s", address, connected)
