"""The checks of `lockstep doctor --address`: every node of a cluster, and whether a configuration can run there."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import NamedTuple

from orchestrator.ray.cluster import Cluster, connect
from orchestrator.ray.nodes import Node, ask_nodes, missing_resources, orchestrator_on
from trainer.command.doctor import Finding, LEAST_SHARED_MEMORY, can_run, write_access
from trainer.command.empty_step import measure_empty_step
from trainer.command.run import build_orchestrator
from trainer.command.run_config import OrchestratorConfig, RunConfig
from trainer.command.versions import PACKAGES
from workers import node_report
from workers.errors import ClusterError, ConfigError, LockstepError

__all__ = ["Step", "examine_cluster", "findings", "table"]

_CONNECT_TIMEOUT = 30.0
_ANSWER_TIMEOUT = 30.0
_STEPS_TIMEOUT = 60.0
"""Seconds after which no further empty step is measured: nodes take a second each."""

_MOST_CLOCK = 1.0
_LEAST_OPEN_FILES, _FEW_OPEN_FILES = 1024, 4096
_MOST_NAMED = 4

_FRAMEWORKS = {"torch": "torch", "jax": "jax", "warp": "warp-lang"}
_HEADER = ("node", "host", "alive", "CPUs", "GPUs", "memory", "/dev/shm", "token", "clock", "empty step")


class Step(NamedTuple):
    """The empty step to one node.

    Attributes:
        seconds: Median time; None if there is none.
        transport: What carried it: ``"connection"`` or ``"ray"``.
        error: Why there is no time; empty if there is one.
    """

    seconds: float | None
    transport: str = ""
    error: str = ""


def examine_cluster(address: str, config: RunConfig | None) -> Iterator[Finding]:
    """Run the checks of a cluster one after the other.

    Args:
        address: Address of the cluster, as for `RayOrchestrator`.
        config: A configuration to check as well, or None. Its agents live on this cluster, whatever it says.
    """
    started = monotonic()
    try:
        cluster = connect(address, timeout=_CONNECT_TIMEOUT)
    except ClusterError as error:
        remedy = "correct the address, start Ray there, open its ports, or take the cluster's token, as the reason says"
        yield Finding("cluster", str(error), remedy)
        return
    try:
        nodes = ask_nodes(PACKAGES, timeout=_ANSWER_TIMEOUT)
        seconds = monotonic() - started
        here = node_report.report(PACKAGES, "workers")
        steps = _steps(nodes)
        counted = f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}"
        yield Finding("cluster", f"{address}: {counted}, asked in {seconds:.1f} s\n{table(nodes, steps)}")
        yield from findings(nodes, steps, here, config.framework if config else None)
        yield write_access(config.logging.directory if config else None)
        if config is not None:
            yield _configuration(cluster, config)
    finally:
        cluster.disconnect()
