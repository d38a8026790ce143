"""Placement groups: reserve the resources of every worker before any worker starts."""

from __future__ import annotations

import logging
from time import monotonic

from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from orchestrator.ray.cluster import Cluster
from orchestrator.ray.starting import StartTime
from workers.errors import ClusterError

__all__ = ["lacking", "release", "reserve"]

_logger = logging.getLogger("lockstep")

_BUSY_TIMEOUT = 60.0
"""Seconds to wait for resources that others use."""

_LOOK_INTERVAL = 1.0
_UNIT = 10_000
"""Ray counts resources in steps of 1 / 10,000."""


def reserve(cluster: Cluster, *, workers: int, num_cpus: float, num_gpus: float, time: StartTime) -> PlacementGroup:
    """Reserve one bundle per worker, on as few nodes as possible.

    Args:
        cluster: The connected cluster.
        workers: Number of workers.
        num_cpus: CPUs of each worker.
        num_gpus: GPUs of each worker.
        time: Time of the start. All of it is waited for a cluster that may grow until the workers fit.

    Raises:
        ClusterError: The workers do not fit on the nodes of a cluster that cannot grow, or there is no room in time.
    """
    asked = {name: amount for name, amount in (("CPU", num_cpus), ("GPU", num_gpus)) if amount}
    fitting = _fitting(asked, cluster.nodes)
    request = f"{workers} workers with {_text(asked, asked)} each"
    timeout = time.left
    if fitting >= workers:
        timeout = min(timeout, _BUSY_TIMEOUT)
    elif cluster.may_grow:
        _logger.warning("waiting up to %.0f s for the cluster to fit %s; now it fits %d", timeout, request, fitting)
    else:
        raise _no_room(cluster, request, asked, fitting)
    # a bundle must ask for something; a byte is free on every node
    group = placement_group([asked or {"memory": 1}] * workers, strategy="PACK")
    started = monotonic()
    try:
        while not group.wait(timeout_seconds=min(_LOOK_INTERVAL, timeout)):
            waited = monotonic() - started
            if waited >= timeout:
                raise _no_room(cluster, request, asked, fitting, f" (waited {waited:.0f} s)")
            time.say(f"waiting for room for {request} ({waited:.0f} s)")
    except BaseException:
        remove_placement_group(group)
        raise
    return group


def lacking(cluster: Cluster, *, workers: int, num_cpus: float, num_gpus: float) -> str:
    """Return what workers would need that the nodes of the cluster do not have; empty if they fit; see `reserve`."""
    asked = {name: amount for name, amount in (("CPU", num_cpus), ("GPU", num_gpus)) if amount}
    fitting = _fitting(asked, cluster.nodes)
    if fitting >= workers:
        return ""
    return (
        f"{workers} workers with {_text(asked, asked)} each are configured, but Ray has "
        f"{_text(cluster.resources, asked)}; at most {fitting:g} such workers fit on its nodes"
    )


def release(cluster: Cluster, group: PlacementGroup) -> None:
    """Release a reservation."""
    if cluster.is_connected:
        remove_placement_group(group)


def _fitting(asked: dict[str, float], nodes: list[dict[str, float]]) -> float:
    """Return how many workers fit on the nodes if nothing else runs there; a worker is on one node."""
    units = {name: round(amount * _UNIT) for name, amount in asked.items()}
    if not any(units.values()):
        return float("inf")
    return sum(min(round(node.get(name, 0) * _UNIT) // amount for name, amount in units.items()) for node in nodes)


def _no_room(cluster: Cluster, request: str, asked: dict[str, float], fitting: float, waited: str = "") -> ClusterError:
    return ClusterError(
        f"{request} were requested, but Ray has {_text(cluster.resources, asked)}, of which "
        f"{_text(cluster.available, asked)} are free{waited}; at most {fitting:g} such workers fit on its nodes; use "
        "fewer simultaneous agents, fewer resources for each (RayOrchestrator(num_cpus=…)) or a larger cluster, and "
        "close() unused trainers"
    )


def _text(resources: dict[str, float], asked: dict[str, float]) -> str:
    """Format the amounts of the requested resources."""
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in asked)
