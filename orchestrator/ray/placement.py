"""Reserving a place for every worker before any is started."""

from __future__ import annotations

import logging

import ray
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
        num_cpus: CPUs of each.
        num_gpus: GPUs of each.
        timeout: Time to get them, in seconds; a cluster may have to start nodes for it.

    Raises:
        ClusterError: The cluster cannot give them within `timeout`.
    """
    asked = {name: amount for name, amount in (("CPU", num_cpus), ("GPU", num_gpus)) if amount}
    total = cluster.resources
    fits = all(total.get(name, 0) >= amount * workers for name, amount in asked.items())
    may_grow = not cluster.started_here
    if not fits and may_grow:
        _logger.warning("waiting up to %.0f s for a cluster with %d times %s", timeout, workers, _text(asked, asked))
    group = placement_group([asked or {"CPU": 0.001}] * workers, strategy="PACK") if fits or may_grow else None
    if group is not None and group.wait(timeout_seconds=timeout):
        return group
    available = cluster.available
    if group is not None:
        remove_placement_group(group)
    raise ClusterError(
        f"{workers} workers with {_text(asked, asked)} each were asked for, but Ray has {_text(total, asked)}, of "
        f"which {_text(available, asked)} are free{'' if group is None else f' (waited {timeout:.0f} s)'}; use fewer "
        "simultaneous agents, RayOrchestrator(num_cpus=…) with less for each, or a larger cluster, and close() "
        "trainers that are not used any more"
    )


def release(group: PlacementGroup) -> None:
    """Give a reservation back."""
    if ray.is_initialized():
        remove_placement_group(group)


def _text(resources: dict[str, float], asked: dict[str, float]) -> str:
    """The amounts of what was asked for."""
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in asked)
