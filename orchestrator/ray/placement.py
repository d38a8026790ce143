"""Placement groups: reserve the resources of every worker before any worker starts."""

from __future__ import annotations

import logging

from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from orchestrator.ray.cluster import Cluster
from workers.errors import ClusterError

__all__ = ["release", "reserve"]

_logger = logging.getLogger("lockstep")


def reserve(cluster: Cluster, *, workers: int, num_cpus: float, num_gpus: float, timeout: float) -> PlacementGroup:
    """Reserve one bundle per worker, on as few nodes as possible.

    Args:
        cluster: The connected cluster.
        workers: Number of workers.
        num_cpus: CPUs of each worker.
        num_gpus: GPUs of each worker.
        timeout: Time to wait for the reservation, in seconds; the cluster may have to start nodes for it.

    Raises:
        ClusterError: The cluster cannot provide the resources within `timeout`.
    """
    asked = {name: amount for name, amount in (("CPU", num_cpus), ("GPU", num_gpus)) if amount}
    total = cluster.resources
    fits = all(total.get(name, 0) >= amount * workers for name, amount in asked.items())
    may_grow = not cluster.started_here
    if not fits and may_grow:
        _logger.warning(
            "waiting up to %.0f s for the cluster to fit %d workers with %s each", timeout, workers, _text(asked, asked)
        )
    group = placement_group([asked or {"CPU": 0.001}] * workers, strategy="PACK") if fits or may_grow else None
    if group is not None and group.wait(timeout_seconds=timeout):
        return group
    available = cluster.available
    if group is not None:
        remove_placement_group(group)
    raise ClusterError(
        f"{workers} workers with {_text(asked, asked)} each were requested, but Ray has {_text(total, asked)}, of "
        f"which {_text(available, asked)} are free{'' if group is None else f' (waited {timeout:.0f} s)'}; use fewer "
        "simultaneous agents, fewer resources for each (RayOrchestrator(num_cpus=…)) or a larger cluster, and close() "
        "unused trainers"
    )


def release(cluster: Cluster, group: PlacementGroup) -> None:
    """Release a reservation."""
    if cluster.is_connected:
        remove_placement_group(group)


def _text(resources: dict[str, float], asked: dict[str, float]) -> str:
    """Format the amounts of the requested resources."""
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in asked)
