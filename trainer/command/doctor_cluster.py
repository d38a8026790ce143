"""The checks of `lockstep doctor --address`: every node of a cluster, and whether a configuration can run there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from time import monotonic

from orchestrator.ray import RayOrchestrator
from orchestrator.ray.cluster import Cluster, connect
from orchestrator.ray.nodes import NodeStatus, ask_nodes, orchestrator_on
from orchestrator.ray.placement import shortage
from trainer.command.doctor import Finding, can_run, write_access
from trainer.command.empty_step import Step, measure_empty_step
from trainer.command.node_findings import node_findings, node_table
from trainer.command.run_config import OrchestratorConfig, RunConfig, parse
from trainer.versions import PACKAGES
from workers import node_report
from workers.errors import ClusterError, ConfigError

__all__ = ["examine_cluster"]

_CONNECT_TIMEOUT = 30.0
_ANSWER_TIMEOUT = 30.0
_STEPS_TIMEOUT = 60.0
"""Seconds after which no further empty step is measured. One takes about a second."""


def examine_cluster(address: str, config: RunConfig | None, *, build: bool = True) -> Iterator[Finding]:
    """Run the checks of a cluster one after the other.

    Args:
        address: Address of the cluster, as for `RayOrchestrator`.
        config: A configuration to check as well, or None. Its agents live in this cluster, whatever it says.
        build: Whether to build its agents and environments. Otherwise, a lack of room is no fault: nodes may join.

    Raises:
        ConfigError: There is no address.
    """
    if address in ("", "local"):  # would start another Ray
        raise ConfigError(f"--address is {address!r}; expected 'auto', 'host:port' or 'ray://host:port'")
    started = monotonic()
    try:
        cluster = connect(address, timeout=_CONNECT_TIMEOUT)
    except ClusterError as error:
        yield Finding(
            "cluster", str(error), "do what the message says; `ray status` on the head shows whether Ray runs"
        )
        return
    try:
        try:
            nodes = ask_nodes(PACKAGES, timeout=_ANSWER_TIMEOUT)
        except Exception as error:  # any error is a finding
            yield Finding(
                "cluster", f"{type(error).__name__}: {error}", f"look at the cluster at {address}: `ray status`"
            )
            return
        steps = _steps(nodes)
        number = f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}"
        took = f"{monotonic() - started:.1f} s"
        yield Finding("cluster", f"{number} at {address}, examined in {took}\n{node_table(nodes, steps)}")
        driver = node_report.report(PACKAGES, __name__)
        yield from node_findings(nodes, steps, driver, config.framework if config else None)
        yield write_access(config.logging.directory if config else None)
        if config is not None:
            yield _configuration(cluster, config, build=build)
    finally:
        cluster.disconnect()


def _steps(nodes: Sequence[NodeStatus]) -> dict[str, Step | str]:
    """Measure the empty step to each node in turn, or say why that fails."""
    steps: dict[str, Step | str] = {}
    end = monotonic() + _STEPS_TIMEOUT
    for node in nodes:
        if node.report is not None and not node.report["import_error"] and monotonic() < end:
            try:
                steps[node.id] = measure_empty_step(orchestrator_on(node))
            except Exception as error:  # any error is a finding
                steps[node.id] = f"{type(error).__name__}: {error}"
    return steps


def _configuration(cluster: Cluster, config: RunConfig, *, build: bool) -> Finding:
    """Say whether there is room, and if so, build the workers in the cluster and do one iteration."""
    # without an address, this process's connection is used
    options = {**config.orchestrator.options, "address": None}
    try:
        orchestrator = parse(RayOrchestrator, options, "orchestrator.options")
        missing = shortage(cluster, orchestrator.bundles(len(config.agents)), orchestrator.strategy)
    except ConfigError as error:
        return Finding("configuration", f"ConfigError: {error}", "correct the configuration as the message says")
    if not build:
        return Finding("resources", missing or "there is room for all workers")
    if missing:
        remedy = "use fewer simultaneous agents or fewer resources for each, or add nodes"
        return Finding("resources", missing, remedy)
    return can_run(dataclasses.replace(config, orchestrator=OrchestratorConfig(kind="ray", options=options)))
