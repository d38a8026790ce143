"""The table and the findings of `lockstep doctor --address`, on nodes made up by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.ray.nodes import NodeStatus
from trainer import __version__
from trainer.command.empty_step import Step
from trainer.command.node_findings import node_findings, node_table
from workers.node_report import NodeReport

GIB = 2**30
DRIVER: NodeReport = {
    "host": "h1",
    "versions": {"python": "3.11.9", "lockstep-rl": "0.1.0", "torch": "2.13.0+cpu", "jax": None, "skrl": "2.1.1"},
    "import_error": "",
    "cpu": "EPYC",
    "shared_memory": (2 * GIB, 4 * GIB),
    "token": "0600",
    "token_file": "/home/u/.ray/auth_token",
    "open_files": 65536,
}
STEP = Step(1234.4e-6, "connection")


def node(number: int = 1, *, versions: Any = None, **changes: Any) -> NodeStatus:
    """A healthy node, with changes of its report by their names, and of itself."""
    known = {name: changes.pop(name) for name in list(changes) if name in DRIVER}
    report = NodeReport(**{**DRIVER, **known, "versions": {**DRIVER["versions"], **(versions or {})}})  # type: ignore[typeddict-item]
    made = NodeStatus(
        id=f"id{number}",
        address=f"10.0.0.{number}",
        host=f"h{number}",
        resources={"CPU": 4.0, "GPU": 0.5, "memory": 3 * GIB},
        report=report,
        clock=0.0012,
        clock_error=0.001,
    )
    return replace(made, **changes)


def lost(number: int) -> NodeStatus:
    return node(number, death="since 12:03:11: no heartbeat", report=None, resources={}, clock=None)


def silent(number: int) -> NodeStatus:
    return node(number, report=None, silence="no answer within 30 s", clock=None)


def told(*nodes: NodeStatus, framework: str | None = None, steps: Any = None) -> list[str]:
    """The findings, without what is told of healthy nodes."""
    steps = {node.id: STEP for node in nodes if node.report is not None} if steps is None else steps
    first, *found, last = node_findings(nodes, steps, DRIVER, framework)
    assert str(first).startswith("ok   versions: the same on the driver and all nodes that answer: ")
    assert str(last).startswith("ok   CPU types: ")
    return [str(finding) for finding in found]


def test_a_row_for_each_node():
    nodes = [node(1), node(22, token="none", clock=-3.21, shared_memory=None), lost(3), silent(4)]
    table = node_table(nodes, {"id1": STEP, "id22": "WorkerError: oh no"})
    assert table.splitlines() == [
        "node       host  alive   CPUs  GPUs  memory   /dev/shm free   token  clock    empty step",
        "10.0.0.1   h1    yes     4     0.5   3.0 GiB  2.0 of 4.0 GiB  0600   +1.2 ms  1,234 µs",
        "10.0.0.22  h22   yes     4     0.5   3.0 GiB  -               none   -3.2 s   -",
        "10.0.0.3   h3    no      -     -     -        -               -      -        -",
        "10.0.0.4   h4    silent  4     0.5   3.0 GiB  -               -      -        -",
    ]


def test_healthy_nodes_have_no_findings():
    assert told(node(1), node(2)) == []
    versions, cpus = node_findings([node(1), node(2)], {"id1": STEP, "id2": STEP}, DRIVER, "torch")
    assert versions.detail.endswith(": python 3.11.9, lockstep-rl 0.1.0, torch 2.13.0+cpu, skrl 2.1.1")
    assert (cpus.detail, cpus.healthy) == ("EPYC on all nodes that answer", True)


FAULTS: list[tuple[NodeStatus, str, str]] = [
    (lost(2), "nodes: 10.0.0.2 (h2): lost (since 12:03:11: no heartbeat)", "start Ray there again; "),
    (silent(2), "nodes: 10.0.0.2 (h2): alive according to Ray, but it cannot be asked: no answer", "check the load"),
    (
        node(2, import_error="ModuleNotFoundError: No module named 'workers'"),
        "workers: 10.0.0.2 (h2): Lockstep cannot be imported: ModuleNotFoundError: No module named 'workers'",
        f"pip install lockstep-rl=={__version__} into",
    ),
    (
        node(2, versions={"torch": "2.12.0", "skrl": None}),
        "versions: 10.0.0.2 (h2): torch 2.12.0 (driver: 2.13.0+cpu), skrl is not installed (driver: 2.1.1)",
        "install the driver's versions there: torch==2.13.0\n",
    ),
    (
        node(2, versions={"python": "3.11.8", "lockstep-rl": "0.0.9"}),
        "versions: 10.0.0.2 (h2): python 3.11.8 (driver: 3.11.9), lockstep-rl 0.0.9 (driver: 0.1.0)",
        "install the driver's versions there: python==3.11.9 lockstep-rl==0.1.0\n",
    ),
    (
        node(2, versions={"torch": None}),
        "versions: 10.0.0.2 (h2): torch is not installed (driver: 2.13.0+cpu)",
        "install the driver's versions there: torch==2.13.0\n",
    ),
    (
        node(2, shared_memory=(GIB // 4, GIB)),
        "shared memory: 10.0.0.2 (h2): 0.2 GiB free in /dev/shm",
        "give Ray at least 0.5 GiB: ",
    ),
    (
        node(2, token="0644"),
        "token: 10.0.0.2 (h2): other users of the machine can read it (mode 0644)",
        "chmod 600 /home/u/.ray/auth_token, there\n",
    ),
    (node(2, token="0640"), "token: 10.0.0.2 (h2): other users", "chmod 600 /home/u/.ray/auth_token, there\n"),
    (node(2, clock=3.21), "clock: 10.0.0.2 (h2): 3.2 s ahead of the driver's", "synchronise the clocks"),
    (node(2, clock=-3.21), "clock: 10.0.0.2 (h2): 3.2 s behind the driver's", "synchronise the clocks"),
    (node(2, open_files=256), "open files: 10.0.0.2 (h2): a process may open 256 files", "run `ulimit -n 65536`"),
]


@pytest.mark.parametrize(("broken", "finding", "remedy"), FAULTS)
def test_a_fault_has_its_node_and_its_remedy(broken: NodeStatus, finding: str, remedy: str):
    (text,) = told(node(1), broken, framework="torch")
    assert text.startswith(f"FAIL {finding}")
    assert f"\n     remedy: {remedy}" in f"{text}\n"


@pytest.mark.parametrize(
    ("unusual", "note"),
    [
        (node(2, versions={"torch": "2.13.0+cu130"}), "versions: 10.0.0.2 (h2): torch 2.13.0+cu130 (driver: 2.13.0+"),
        (node(2, versions={"jax": "0.10.2"}), "versions: 10.0.0.2 (h2): jax 0.10.2 (driver: none)"),
        (node(2, versions={"torch": None}), "versions: 10.0.0.2 (h2): torch is not installed (driver: 2.13.0+cpu)"),
        (node(2, token="none"), "token: 10.0.0.2 (h2): Ray asks for none: "),
    ],
)
def test_a_note_is_no_fault(unusual: NodeStatus, note: str):
    """For one, a framework that nobody has asked for may be missing."""
    (text,) = told(node(1), unusual)
    assert text.startswith(f"ok   {note}")


@pytest.mark.parametrize("changes", [{"clock": 1.5, "clock_error": 0.6}, {"open_files": -1}, {"token": "environment"}])
def test_what_may_be_right_is_not_told(changes: dict[str, Any]):
    """A slow answer says little about the clock, and -1 is no limit."""
    assert told(node(1), node(2, **changes)) == []


@pytest.mark.parametrize(
    ("step", "finding"),
    [
        ("ClusterError: no room", "FAIL empty step: 10.0.0.2 (h2): ClusterError: no room\n     remedy: "),
        (None, "ok   empty step: 10.0.0.2 (h2): not measured"),
        (Step(2e-3, "ray"), "ok   empty step: 10.0.0.2 (h2): steps go through plain actor calls, because RAY_USE_TLS"),
        (
            Step(2e-3, "ray", "TimeoutError: timed out"),
            "FAIL empty step: 10.0.0.2 (h2): the driver cannot connect to a worker there (TimeoutError: timed out)",
        ),
    ],
)
def test_a_step_that_is_not_as_it_should_be(step: Any, finding: str):
    (text,) = told(node(1), node(2), steps={"id1": STEP} if step is None else {"id1": STEP, "id2": step})
    assert text.startswith(finding)


def test_nodes_with_the_same_fault_share_a_finding():
    nodes = [node(1), *(node(number, token="0644") for number in range(2, 9))]
    (text,) = told(*nodes)
    assert "token: 10.0.0.2 (h2), 10.0.0.3 (h3), 10.0.0.4 (h4), 10.0.0.5 (h5) and 3 more: other users" in text
    (text,) = told(*nodes[1:])
    assert "token: all nodes: other users" in text


def test_different_cpus_are_told_but_no_fault():
    *_, cpus = node_findings([node(1), node(2, cpu="Xeon"), node(3), lost(4)], {}, DRIVER, None)
    assert cpus.healthy
    assert cpus.detail.startswith("EPYC: 10.0.0.1 (h1), 10.0.0.3 (h3); Xeon: 10.0.0.2 (h2). Results are equal")
