"""Placement groups: reserve the resources of every worker before any worker starts."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from time import monotonic

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from orchestrator.ray.bundles import Bundle
from orchestrator.ray.cluster import Cluster
from orchestrator.ray.fitting import Strategy, asked, fit, nodes_text
from orchestrator.ray.starting import StartTime
from workers.errors import ClusterError

__all__ = ["release", "reserve", "reserve_elsewhere", "shortage"]

_logger = logging.getLogger("lockstep")

_BUSY_TIMEOUT = 60.0
"""Seconds to wait for resources that others use."""

_LEAST = {"memory": 1.0}
"""A byte, which every node has, because Ray has no empty bundles."""

_NODE_ID = "ray.io/node-id"
"""Label that has the id of a node."""

_LOOK_INTERVAL = 1.0


def reserve(cluster: Cluster, bundles: Sequence[Bundle], *, strategy: Strategy, time: StartTime) -> PlacementGroup:
    """Reserve a bundle for each worker.

    Args:
        cluster: The connected cluster.
        bundles: What each worker asks of its node.
        strategy: How they are distributed over the nodes; see `RayOrchestrator`.
        time: Time of the start. All of it is waited for a cluster that may grow until the workers fit.

    Raises:
        ClusterError: The workers do not fit on the nodes of a cluster that cannot grow, or there is no room in time.
    """
    request = asked(bundles, strategy)
    missing, is_certain = fit(bundles, cluster.nodes, strategy)
    timeout = time.left
    if missing and cluster.may_grow:
        details = _details(cluster, bundles, strategy)
        _logger.warning("waiting up to %.0f s for the cluster to fit %s:%s", timeout, request, details)
    elif missing and is_certain:
        raise _no_room(cluster, bundles, strategy)
    else:
        timeout = min(timeout, _BUSY_TIMEOUT)
    group = placement_group(
        [bundle.amounts or _LEAST for bundle in bundles],
        strategy=strategy,
        bundle_label_selector=[dict(bundle.label_selector) for bundle in bundles],
    )
    started = monotonic()
    try:
        while not group.wait(timeout_seconds=min(_LOOK_INTERVAL, timeout)):
            waited = monotonic() - started
            if waited >= timeout:
                raise _no_room(cluster, bundles, strategy, f" (waited {waited:.0f} s)")
            time.say(f"waiting for room for {request} ({waited:.0f} s)")
    except BaseException:
        remove_placement_group(group)
        raise
    return group


def reserve_elsewhere(
    cluster: Cluster, bundle: Bundle, away: Collection[str], node: str, *, time: StartTime
) -> PlacementGroup | None:
    """Reserve a bundle for a worker whose node does not answer.

    Args:
        cluster: The connected cluster.
        bundle: What it asks of its node.
        away: Ray's ids of nodes on which it may not be.
        node: The node that does not answer.
        time: Time of the restart.

    Returns:
        The reservation; None once Ray knows that the node is dead, and moves the bundle that was reserved before.

    Raises:
        ClusterError: There is no room in time.
    """
    selector = {_NODE_ID: f"!in({', '.join(sorted(away))})", **bundle.label_selector}
    group = placement_group([bundle.amounts or _LEAST], strategy="PACK", bundle_label_selector=[selector])
    started = monotonic()
    try:
        while not group.wait(timeout_seconds=min(_LOOK_INTERVAL, time.left)):
            if any(each["NodeID"] == node and not each["Alive"] for each in ray.nodes()):
                remove_placement_group(group)
                return None
            if not time.left:
                raise _no_room(cluster, [bundle], "PACK", f" on another node (waited {monotonic() - started:.0f} s)")
            time.say(f"waiting for another node with room for a worker ({monotonic() - started:.0f} s)")
    except BaseException:
        remove_placement_group(group)
        raise
    return group


def shortage(cluster: Cluster, bundles: Sequence[Bundle], strategy: Strategy) -> str:
    """Return what the nodes have and what workers with these bundles lack there; empty if they fit."""
    missing, _ = fit(bundles, cluster.nodes, strategy)
    return f"{asked(bundles, strategy)} do not fit:{_details(cluster, bundles, strategy)}" if missing else ""


def release(cluster: Cluster, group: PlacementGroup) -> None:
    """Release a reservation."""
    if cluster.is_connected:
        remove_placement_group(group)


def _no_room(cluster: Cluster, bundles: Sequence[Bundle], strategy: Strategy, waited: str = "") -> ClusterError:
    details = _details(cluster, bundles, strategy)
    request = asked(bundles, strategy)
    options = ", ".join(f"{name}=…" for name in Bundle._fields if any(getattr(bundle, name) for bundle in bundles))
    return ClusterError(
        f"{request} were requested, but Ray has no room for them{waited}:{details}\n"
        f"  use fewer simultaneous agents, fewer resources for each (RayOrchestrator({options})) or a larger cluster, "
        "and close() unused trainers"
    )


def _details(cluster: Cluster, bundles: Sequence[Bundle], strategy: Strategy) -> str:
    """Return what the nodes have and what is missing, in indented lines."""
    nodes = cluster.nodes
    missing, _ = fit(bundles, nodes, strategy)
    lines = [*nodes_text(bundles, nodes, strategy), *(f"missing: {one}" for one in missing)]
    return "".join(f"\n  {line}" for line in lines)
