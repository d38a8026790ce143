"""Connecting to Ray, and knowing who started it."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import grpc
import ray

from workers.errors import ClusterError

__all__ = ["Cluster", "connect"]


@dataclass(frozen=True)
class Cluster:
    """The Ray that this process is connected to.

    Attributes:
        owned: Whether it was started here, and so is ours to shut down.
    """

    owned: bool

    @property
    def resources(self) -> dict[str, float]:
        """All CPUs, GPUs and other resources of the cluster."""
        return {name: amount for name, amount in ray.cluster_resources().items() if name in ("CPU", "GPU")}

    @property
    def available(self) -> dict[str, float]:
        """The part of `resources` that is free at the moment."""
        return {name: amount for name, amount in ray.available_resources().items() if name in ("CPU", "GPU")}

    def disconnect(self) -> None:
        """Shut Ray down if it was started here."""
        if self.owned and ray.is_initialized():
            ray.shutdown()


def connect(address: str | None, *, timeout: float) -> Cluster:
    """Use the Ray that this process is connected to, else the one at `address`, else start one on this machine.

    Args:
        address: ``"auto"``, ``"host:port"`` or ``"ray://host:port"``; None takes the environment variable
            ``RAY_ADDRESS``, and starts Ray on this machine if there is none.
        timeout: Time to reach it, in seconds.

    Raises:
        ClusterError: It cannot be reached within `timeout`.
    """
    if ray.is_initialized():
        return Cluster(owned=False)
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _check_reachable(address, timeout)
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, logging_level=logging.WARNING, **options)
    except Exception as error:
        raise ClusterError(_unreachable(address, f"{type(error).__name__}: {error}")) from error
    return Cluster(owned=True)


def _check_reachable(address: str, timeout: float) -> None:
    """Ray itself may wait without an end, or end the process, where nobody listens, or something else than Ray."""
    if address in ("auto", "local"):
        return
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        if parts.hostname is None or parts.port is None:
            raise ClusterError(f"Ray's address is {address!r}; expected 'auto', 'host:port' or 'ray://host:port'")
        socket.create_connection((parts.hostname, parts.port), timeout=timeout).close()
        if os.environ.get("RAY_USE_TLS", "0") not in ("1", "true"):
            with grpc.insecure_channel(f"{parts.hostname}:{parts.port}") as channel:
                grpc.channel_ready_future(channel).result(timeout=timeout)
    except (OSError, ValueError, grpc.FutureTimeoutError) as error:
        raise ClusterError(_unreachable(address, f"{type(error).__name__}: {error}")) from error


def _unreachable(address: str, reason: str) -> str:
    return (
        f"Ray cannot be reached at {address!r} ({reason}); check that it runs there (ray status), or leave the address "
        "out to start Ray on this machine"
    )
