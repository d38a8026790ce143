"""Nodes are asked at once and within a deadline, whatever is installed there; dead ones are listed while it matters."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle
from ray.core.generated.common_pb2 import NodeDeathInfo

from orchestrator.ray import nodes
from tests.support.processes import python
from tests.support.schedule import only_long
from workers import node_report

PACKAGES = ["numpy", "torch", "no-such-package"]


def test_a_node_describes_itself(ray_cluster: None):
    (node,) = nodes.ask_nodes(PACKAGES, timeout=60)
    here = node_report.report(PACKAGES, "workers")
    free, total = node.report["shared_memory"] if node.report and node.report["shared_memory"] else (0, 0)
    assert node.report == {
        **here,
        "shared_memory": (free, total),
        "open_files": node.report and node.report["open_files"],
    }
    assert here["versions"]["no-such-package"] is None
    assert 0 < free <= total
    assert (node.resources["CPU"], node.host, node.death, node.silence) == (4, here["host"], "", "")
    assert node.clock is not None
    assert abs(node.clock) <= node.clock_error < 5


def hang(*_: Any) -> None:
    threading.Event().wait(600)


def fail(*_: Any) -> None:
    raise ValueError("oh no")


@pytest.mark.parametrize(
    ("function", "timeout", "silence"),
    [(hang, 0.3, "no answer within 0.3 s"), (fail, 60, "RayTaskError(ValueError): ")],
)
def test_a_node_that_does_not_answer_is_told(function, timeout, silence, ray_cluster, monkeypatch):
    monkeypatch.setattr(node_report, "report", function)
    started = time.monotonic()
    (node,) = nodes.ask_nodes(PACKAGES, timeout=timeout)
    assert time.monotonic() - started < 30
    assert (node.report, node.clock) == (None, None)
    assert node.silence.startswith(silence)


ELSEWHERE = """
import pickle, sys
sys.modules["workers"] = None  # as if it were not installed
report = pickle.loads(open(sys.argv[1], "rb").read())(["numpy"], "workers.remote.actor")
print(report["import_error"])
print(report["versions"]["numpy"])
"""


def test_a_node_without_lockstep_can_answer(ray_cluster, tmp_path, monkeypatch):
    """What is sent to it names no module of ours."""
    sent = []

    def remote(**options: Any) -> Any:
        def task(function: Any) -> Any:
            sent.append(cloudpickle.dumps(function))
            return real(**options)(function)

        return task

    real = ray.remote
    monkeypatch.setattr(ray, "remote", remote)
    nodes.ask_nodes(PACKAGES, timeout=60)
    (tmp_path / "report").write_bytes(sent[0])
    done = python("-c", ELSEWHERE, tmp_path / "report", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    error, version = done.stdout.splitlines()
    assert error.startswith("ModuleNotFoundError: ")
    assert version == node_report.versions(["numpy"])["numpy"]


def dead(name: str, *, address: str, reason: int = NodeDeathInfo.UNEXPECTED_TERMINATION) -> dict[str, Any]:
    return {
        "Alive": False,
        "NodeID": name,
        "NodeManagerAddress": address,
        "NodeManagerHostname": name,
        "Resources": {},
        "DeathReason": reason,
        "DeathReasonMessage": f"{name} fell over",
    }


def test_only_nodes_that_were_lost_lately_are_told(monkeypatch):
    """Not those that somebody stopped, that have come back, or that were lost long ago."""
    alive = {**dead("back", address="10.0.0.2"), "Alive": True}
    known = [
        alive,
        dead("returned", address="10.0.0.2"),
        dead("stopped", address="10.0.0.3", reason=NodeDeathInfo.EXPECTED_TERMINATION),
        dead("idle", address="10.0.0.4", reason=NodeDeathInfo.AUTOSCALER_DRAIN_IDLE),
        dead("preempted", address="10.0.0.5", reason=NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED),
        dead("old", address="10.0.0.6"),
        dead("lost", address="10.0.0.7"),
        dead("lost-before", address="10.0.0.7"),
        dead("unknown", address="10.0.0.8", reason=NodeDeathInfo.UNSPECIFIED),
    ]
    dying = dead("dying", address="10.0.0.10")
    looks = iter([[{**dying, "Alive": True}, *known], [dying, *known]])  # before and after the nodes are asked
    now = time.time()
    ends = {"old": now - 4000, "lost-before": now - 90, "lost": now - 60, "preempted": now - 5}
    monkeypatch.setattr(ray, "nodes", lambda: next(looks))
    monkeypatch.setattr(nodes, "_ends", lambda: ends)
    monkeypatch.setattr(
        nodes, "_ask", lambda ids, *_, timeout: dict.fromkeys(ids, nodes._Answer(None, "busy", now, now))
    )
    found = nodes.ask_nodes(PACKAGES, timeout=1)
    at = time.strftime("%H:%M:%S", time.localtime(now - 60))
    assert [(node.host, bool(node.death)) for node in found] == [
        ("back", False),
        ("preempted", True),
        ("lost", True),
        ("unknown", True),
        ("dying", True),
    ]
    assert found[2].death == f"since {at}: lost fell over"
    assert found[3].death == "unknown fell over"


@pytest.mark.parametrize(
    ("variables", "token"),
    [
        ({}, "0644"),
        ({"RAY_AUTH_MODE": None}, "none"),
        ({"RAY_AUTH_MODE": "disabled"}, "none"),
        ({"RAY_AUTH_TOKEN": "s3cret"}, "environment"),
        ({"RAY_AUTH_TOKEN_PATH": "/no/such/file"}, "missing"),
    ],
)
def test_the_token_is_described_but_not_read(variables, token, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "token"
    path.write_text("s3cret")
    path.chmod(0o644)
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": None, "RAY_AUTH_TOKEN_PATH": str(path), **variables}
    for name, value in settings.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    report = node_report.report([], "workers")
    assert report["token"] == token
    assert "s3cret" not in str(report)


ANOTHER_MACHINE = """
import importlib.metadata, sys
sys.modules["workers"] = None
version = importlib.metadata.version
importlib.metadata.version = lambda name: "2.12.0" if name == "torch" else version(name)
"""

CLUSTER = """
import sys
from ray.cluster_utils import Cluster
from orchestrator.ray import RayOrchestrator
from trainer.command import doctor_cluster
from trainer.command.cli import main

small = {"object_store_memory": 80_000_000}
cluster = Cluster(initialize_head=True, head_node_args={**small, "num_cpus": 2, "include_dashboard": False})
cluster.add_node(**small, num_cpus=0, node_ip_address="127.0.0.2", env_vars={"PYTHONPATH": sys.argv[1]})
code = main(["doctor", "--address", cluster.address, "examples/cartpole.yaml", "--set", sys.argv[2]])
cluster.shutdown()
raise SystemExit(code)
"""


@only_long
def test_a_cluster_in_which_a_node_is_another_machine(tmp_path):
    """Its second node has no Lockstep, and another torch."""
    (tmp_path / "sitecustomize.py").write_text(ANOTHER_MACHINE)
    done = python("-c", CLUSTER, tmp_path, f"logging.directory={tmp_path / 'run'}", env={"RAY_AUTH_MODE": None})
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ok   cluster: 2 nodes at ")
    header, elsewhere, here = (re.split("  +", line) for line in lines[1:4])
    assert header[2:5] == ["alive", "CPUs", "GPUs"]
    if elsewhere[0] != "127.0.0.2":  # rows are in the order of addresses
        elsewhere, here = here, elsewhere
    assert (here[2:5], elsewhere[2:5]) == (["yes", "2", "0"], ["yes", "0", "0"])
    assert here[-1].endswith(" µs")
    assert (elsewhere[0], elsewhere[-1]) == ("127.0.0.2", "-")
    failed = [line for line in lines if line.startswith("FAIL ")]
    assert len(failed) == 2
    assert re.match(r"FAIL workers: 127\.0\.0\.2 \(.*\): Lockstep cannot be imported: ModuleNotFoundError: ", failed[0])
    assert re.match(r"FAIL versions: 127\.0\.0\.2 \(.*\): torch 2\.12\.0 \(driver: 2\.13\.0", failed[1])
    assert any(line.startswith("ok   configuration: builds, steps and can be stored") for line in lines)
