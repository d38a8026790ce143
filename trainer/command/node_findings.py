"""What `lockstep doctor` says of the nodes of a cluster: a table, and what is wrong with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

from orchestrator.ray.nodes import NodeStatus
from trainer import __version__
from trainer.command.doctor import LEAST_SHARED_MEMORY, SHARED_MEMORY_REMEDY, Finding
from trainer.command.empty_step import Step
from workers.node_report import NodeReport

__all__ = ["node_findings", "node_table"]

_MOST_CLOCK = 1.0
"""Seconds by which a clock may differ from the driver's."""

_LEAST_OPEN_FILES = 1024
_MOST_NAMED = 4
_GIB = 2**30

_COLUMNS = ("node", "host", "alive", "CPUs", "GPUs", "memory", "/dev/shm free", "token", "clock", "empty step")
_PACKAGES = {"torch": "torch", "jax": "jax", "warp": "warp-lang"}
"""Package of each framework."""


def node_table(nodes: Sequence[NodeStatus], steps: Mapping[str, Step | str]) -> str:
    """Return a table with a row for each node.

    Args:
        nodes: The nodes.
        steps: The empty step to each node, by its id, or why it could not be measured.
    """
    rows = [_COLUMNS, *(_row(node, steps.get(node.id)) for node in nodes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in cells)


def _row(node: NodeStatus, step: Step | str | None) -> tuple[str, ...]:
    resources, report = node.resources, node.report
    alive = "no" if node.death else "silent" if report is None else "yes"
    has = ["-"] * 3
    if not node.death:
        has = [f"{resources.get('CPU', 0):g}", f"{resources.get('GPU', 0):g}", _size(resources.get("memory", 0))]
    shared = None if report is None else report["shared_memory"]
    return (
        node.address,
        node.host,
        alive,
        *has,
        "-" if shared is None else f"{shared[0] / _GIB:.1f} of {_size(shared[1])}",
        "-" if report is None else report["token"],
        "-" if node.clock is None else _apart(node.clock),
        _duration(step.seconds) if isinstance(step, Step) else "-",
    )


def node_findings(
    nodes: Sequence[NodeStatus], steps: Mapping[str, Step | str], driver: NodeReport, framework: str | None
) -> Iterator[Finding]:
    """Yield what is wrong with the nodes, and what is worth knowing. Nodes with the same fault share a finding.

    Args:
        nodes: The nodes.
        steps: See `node_table`.
        driver: The report of this process.
        framework: Name of the framework that the nodes need; None if any will do.
    """
    yield _equal_versions(nodes, driver)
    found: dict[Finding, list[NodeStatus]] = {}
    for node in nodes:
        for finding in _examined(node, steps.get(node.id), driver, framework):
            found.setdefault(finding, []).append(node)
    for finding, affected in found.items():
        where = "all nodes" if len(affected) == len(nodes) > 1 else _named(affected)
        yield dataclasses.replace(finding, detail=f"{where}: {finding.detail}")
    yield _cpus(nodes)


def _examined(
    node: NodeStatus, step: Step | str | None, driver: NodeReport, framework: str | None
) -> Iterator[Finding]:
    """Yield what is to be said of one node, without its name."""
    if node.death:
        remedy = "start Ray there again; /tmp/ray/session_latest/logs/raylet.out there may say why it ended"
        yield Finding("nodes", f"lost ({node.death})", remedy, hinders=False)
    elif node.report is None:
        remedy = "check the load and the memory there, and that the driver reaches it; then restart Ray there"
        yield Finding("nodes", f"alive according to Ray, but it cannot be asked: {node.silence}", remedy, hinders=False)
    else:
        yield from _of_packages(node.report, driver, framework)
        yield from _of_machine(node, node.report)
        yield from _of_step(step, node.report)


def _of_packages(report: NodeReport, driver: NodeReport, framework: str | None) -> Iterator[Finding]:
    if report["import_error"]:
        remedy = (
            f"pip install lockstep-rl=={__version__} into the environment of Ray there, "
            "or submit the job with --working-dir and the sources"
        )
        yield Finding("workers", f"Lockstep cannot be imported: {report['import_error']}", remedy)
    told, wanted = [], []
    for name, mine in driver["versions"].items():
        theirs = report["versions"].get(name)
        if theirs == mine:
            continue
        told.append(f"{name} {theirs or 'is not installed'} (driver: {mine or 'none'})")
        is_needed = name == _PACKAGES.get(framework or "")
        if mine and (is_needed if theirs is None else _public(theirs) != _public(mine)):
            wanted.append(f"{name}=={_public(mine)}")
    if told:
        remedy = f"install the driver's versions there: {' '.join(wanted)}" if wanted else ""
        yield Finding("versions", ", ".join(told), remedy)


def _of_machine(node: NodeStatus, report: NodeReport) -> Iterator[Finding]:
    shared, token, files = report["shared_memory"], report["token"], report["open_files"]
    if shared is not None and shared[0] < LEAST_SHARED_MEMORY:
        yield Finding(
            "shared memory", f"{shared[0] / _GIB:.1f} GiB free in /dev/shm", SHARED_MEMORY_REMEDY, hinders=False
        )
    if token == "none":
        yield Finding("token", "Ray asks for none: whoever reaches its ports can run code there")
    elif token.isdigit() and int(token, 8) & 0o077:
        path = report["token_file"]
        detail = f"other users of the machine can read it (mode {token})"
        yield Finding("token", detail, f"chmod 600 {path}, there", hinders=False)
    if node.clock is not None and abs(node.clock) - node.clock_error > _MOST_CLOCK:
        than = "ahead of" if node.clock > 0 else "behind"
        detail = f"{abs(node.clock):.1f} s {than} the driver's"
        yield Finding("clock", detail, "synchronise the clocks: start chrony or systemd-timesyncd there", hinders=False)
    if 0 <= files < _LEAST_OPEN_FILES:
        detail = f"a process may open {files} files and sockets; expected at least {_LEAST_OPEN_FILES}"
        yield Finding("open files", detail, "run `ulimit -n 65536` before `ray start` there", hinders=False)


def _of_step(step: Step | str | None, report: NodeReport) -> Iterator[Finding]:
    if isinstance(step, str):
        yield Finding("empty step", step, "correct what the message says; a trainer would fail there in the same way")
    elif step is None:
        if not report["import_error"]:
            yield Finding("empty step", "not measured: the other nodes took too long")
    elif step.unreachable:
        detail = f"the driver cannot connect to a worker there ({step.unreachable}); steps go through plain actor calls"
        remedy = (
            "open the TCP ports on which workers listen between the driver and the nodes, or run the driver on a node: "
            "`ray job submit` does"
        )
        yield Finding("empty step", detail, remedy, hinders=False)
    elif step.transport == "ray":
        yield Finding("empty step", "steps go through plain actor calls, because RAY_USE_TLS is set")


def _equal_versions(nodes: Sequence[NodeStatus], driver: NodeReport) -> Finding:
    """Return the versions that the driver and all nodes that answer have."""
    reports = [node.report for node in nodes if node.report is not None]
    equal = [
        f"{name} {mine}"
        for name, mine in driver["versions"].items()
        if mine and all(report["versions"].get(name) == mine for report in reports)
    ]
    return Finding("versions", f"the same on the driver and all nodes that answer: {', '.join(equal) or 'none'}")


def _cpus(nodes: Iterable[NodeStatus]) -> Finding:
    by_type: dict[str, list[NodeStatus]] = {}
    for node in nodes:
        if node.report is not None:
            by_type.setdefault(node.report["cpu"], []).append(node)
    if len(by_type) <= 1:
        return Finding("CPU types", f"{', '.join(by_type) or 'unknown'} on all nodes that answer")
    listed = "; ".join(f"{name}: {_named(having)}" for name, having in by_type.items())
    return Finding("CPU types", f"{listed}. Results are equal to the bit only on CPUs of one type")


def _public(version: str) -> str:
    """Return a version without what says how it was built, such as ``+cpu``."""
    return version.partition("+")[0]


def _named(nodes: Sequence[NodeStatus]) -> str:
    names = ", ".join(map(str, nodes[:_MOST_NAMED]))
    return names if len(nodes) <= _MOST_NAMED else f"{names} and {len(nodes) - _MOST_NAMED} more"


def _size(amount: float) -> str:
    return f"{amount / _GIB:.1f} GiB"


def _apart(seconds: float) -> str:
    return f"{seconds:+.1f} s" if abs(seconds) >= _MOST_CLOCK else f"{seconds * 1e3:+.1f} ms"


def _duration(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} µs"
