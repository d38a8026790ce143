"""The nodes of a cluster: what Ray says of each, and what each says of itself."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
from ray import cloudpickle
from ray.core.generated.common_pb2 import NodeDeathInfo
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.ray.deaths import uncoloured
from orchestrator.ray.orchestrator import RayOrchestrator
from workers import node_report
from workers.node_report import NodeReport

__all__ = ["NodeStatus", "ask_nodes", "orchestrator_on"]

_WORKER_MODULE = "workers.remote.actor"
"""What the process of a worker imports."""

_CLOCK_TIMEOUT, _CLOCK_ROUNDS = 10.0, 3

_RECENT = 3600.0
"""Seconds for which a dead node is told."""

_INTENDED = (NodeDeathInfo.EXPECTED_TERMINATION, NodeDeathInfo.AUTOSCALER_DRAIN_IDLE)
"""Reasons for which a node is gone that are no faults: somebody stopped it, or the cluster shrank."""

_START_TIMEOUT, _STEP_TIMEOUT = 30.0, 10.0


@dataclass(frozen=True, kw_only=True)
class NodeStatus:
    """A node.

    Attributes:
        id: Ray's id.
        address: Its address.
        host: Its host name.
        resources: What it has, by Ray's names: ``"CPU"``, ``"GPU"``, ``"memory"`` in bytes.
        death: How it died; empty if it is alive.
        report: What it says of itself; None if it does not answer.
        silence: Why there is no report.
        clock: Seconds by which its clock is ahead of that of this process; None if it does not answer.
        clock_error: Greatest error of `clock`, in seconds.
    """

    id: str
    address: str
    host: str
    resources: Mapping[str, float]
    death: str = ""
    report: NodeReport | None = None
    silence: str = ""
    clock: float | None = None
    clock_error: float = 0.0

    def __str__(self) -> str:
        return self.address if self.host in ("", self.address) else f"{self.address} ({self.host})"


def ask_nodes(packages: Sequence[str], *, timeout: float) -> list[NodeStatus]:
    """Ask all nodes of the connected cluster for a report at once, and compare their clocks with that of this process.

    Nodes that were lost in the last hour are listed, too, once for each address, unless it is in use again.

    Args:
        packages: Names of the packages whose versions to report.
        timeout: Time for all reports, in seconds.
    """
    ids = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    reports = _ask(ids, node_report.report, list(packages), _WORKER_MODULE, timeout=timeout)
    answering = [id for id in ids if not reports[id].error]
    # the first call of each may have to start a process
    rounds = [_ask(answering, node_report.clock, timeout=_CLOCK_TIMEOUT) for _ in range(_CLOCK_ROUNDS)]
    clocks = {id: [answers[id] for answers in rounds] for id in answering}
    known = ray.nodes()  # again, because a node may have died meanwhile
    alive = [node for node in known if node["Alive"] and node["NodeID"] in reports]
    nodes = [_alive(node, reports[node["NodeID"]], clocks.get(node["NodeID"], [])) for node in alive]
    nodes += _lost([node for node in known if not node["Alive"]], {node.address for node in nodes})
    return sorted(nodes, key=lambda node: _in_order(node.address))


def orchestrator_on(node: NodeStatus) -> RayOrchestrator:
    """Return an orchestrator that starts workers on one node, whether or not it has CPUs that are free."""
    place: dict[str, Any] = {"num_cpus": 0, "label_selector": {"ray.io/node-id": node.id}}
    return RayOrchestrator(**place, start_timeout=_START_TIMEOUT, step_timeout=_STEP_TIMEOUT)


class _Answer(NamedTuple):
    """A node's answer.

    Attributes:
        value: What the function returned.
        error: Why there is no value; empty if there is one.
        sent: When the node was asked, in seconds since 1970.
        received: When it had answered.
    """

    value: Any
    error: str
    sent: float
    received: float


def _ask(ids: Sequence[str], function: Callable[..., Any], *args: Any, timeout: float) -> dict[str, _Answer]:
    """Call a function of `node_report` on nodes at the same time. It needs no CPU that is free, and no Lockstep."""
    cloudpickle.register_pickle_by_value(node_report)
    try:
        task = ray.remote(num_cpus=0, max_retries=0)(function)
        calls, sent = {}, {}
        for id in ids:
            strategy = NodeAffinitySchedulingStrategy(id, soft=False)
            sent[id] = time.time()
            calls[task.options(scheduling_strategy=strategy).remote(*args)] = id
    finally:
        cloudpickle.unregister_pickle_by_value(node_report)
    answers: dict[str, _Answer] = {}
    waiting, end = list(calls), time.monotonic() + timeout
    while waiting and time.monotonic() < end:
        done, waiting = ray.wait(waiting, timeout=max(0.0, end - time.monotonic()))
        received = time.time()
        for call in done:
            value, error = _result(call)
            answers[calls[call]] = _Answer(value, error, sent[calls[call]], received)
    for call in waiting:
        ray.cancel(call, force=True)
        answers[calls[call]] = _Answer(None, f"no answer within {timeout:g} s", sent[calls[call]], time.time())
    return answers


def _result(call: Any) -> tuple[Any, str]:
    """Return the result of a call that has ended, or its error."""
    try:
        return ray.get(call, timeout=10.0), ""
    except (RayError, GetTimeoutError) as error:
        return None, f"{type(error).__name__}: {uncoloured(error).strip()}"


def _alive(node: Mapping[str, Any], report: _Answer, clocks: Sequence[_Answer]) -> NodeStatus:
    told = [
        ((clock.received - clock.sent) / 2, clock.value - (clock.sent + clock.received) / 2)
        for clock in clocks
        if not clock.error
    ]
    error, ahead = min(told, default=(0.0, None))
    return NodeStatus(
        id=node["NodeID"],
        address=node["NodeManagerAddress"],
        host=node["NodeManagerHostname"],
        resources=node["Resources"],
        report=report.value,
        silence=report.error,
        clock=ahead,
        clock_error=error,
    )


def _ends() -> dict[str, float]:
    """Return when nodes died, in seconds since 1970, by id; empty where Ray does not tell, as through ``ray://``."""
    client = getattr(ray._private.worker.global_worker, "gcs_client", None)
    if client is None:
        return {}
    return {id.hex(): info.end_time_ms / 1000 for id, info in client.get_all_node_info(timeout=10.0).items()}


def _lost(dead: Sequence[Mapping[str, Any]], in_use: Container[str]) -> list[NodeStatus]:
    """Return the dead nodes that were lost not long ago, once for each address that is not in use."""
    ends, now = _ends(), time.time()
    last = {node["NodeManagerAddress"]: node for node in sorted(dead, key=lambda node: ends.get(node["NodeID"], now))}
    return [
        _dead(node, ends)
        for address, node in last.items()
        if address not in in_use
        and node["DeathReason"] not in _INTENDED
        and now - ends.get(node["NodeID"], now) < _RECENT
    ]


def _in_order(address: str) -> list[str | int]:
    """Return a key that sorts numbers in addresses by their value."""
    return [int(part) if part.isdecimal() else part for part in re.split("([0-9]+)", address)]


def _dead(node: Mapping[str, Any], ends: Mapping[str, float]) -> NodeStatus:
    end = ends.get(node["NodeID"])
    since = "" if end is None else f"since {time.strftime('%H:%M:%S', time.localtime(end))}: "
    reason = node["DeathReasonMessage"].strip() or "Ray does not say why"
    return NodeStatus(
        id=node["NodeID"],
        address=node["NodeManagerAddress"],
        host=node["NodeManagerHostname"],
        resources=node["Resources"],
        death=f"{since}{reason}",
    )
