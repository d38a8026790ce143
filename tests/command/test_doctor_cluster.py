"""`lockstep doctor --address`: the nodes of a cluster, the empty step to them, and a configuration there."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from orchestrator.ray import RayOrchestrator, nodes
from orchestrator.ray.nodes import Node
from tests.support.command import run
from trainer.command import doctor_cluster
from trainer.command.empty_step import measure_empty_step
from workers.errors import ClusterError


@pytest.fixture
def plain_nodes(monkeypatch: pytest.MonkeyPatch, ray_cluster: None) -> None:
    """Accept any token, shared memory and limit, wherever the tests run."""

    def ask(packages: Sequence[str], *, timeout: float) -> list[Node]:
        return [replace(node, report={**node.report, **plain}) for node in nodes.ask_nodes(packages, timeout=timeout)]  # type: ignore[typeddict-item]

    plain = {"token": "0600", "shared_memory": (2**30, 2**31), "open_files": 4096}
    monkeypatch.setattr(doctor_cluster, "ask_nodes", ask)
    # one machine has one node
    monkeypatch.setattr(doctor_cluster, "orchestrator_on", lambda node: RayOrchestrator(num_cpus=0))


def test_doctor_of_a_healthy_cluster(config: Path, capsys: pytest.CaptureFixture[str], plain_nodes: None):
    """The agents live in the cluster, although the configuration says nothing of Ray."""
    agents = ["agents=[{agent: ppo}]", "env.num_envs=2"]
    code, lines, messages = run(capsys, "doctor", "--address", "auto", config, "--set", *agents)
    assert code == 0, lines
    assert re.fullmatch(r"ok   cluster: 1 node at auto, examined in \d+\.\d s", lines[0])
    header, row = (re.split(r"  +", line) for line in lines[1:3])
    told = dict(zip(header, row, strict=True))
    assert (told["alive"], told["CPUs"], told["GPUs"], told["token"]) == ("yes", "4", "0", "0600")
    assert told["/dev/shm free"] == "1.0 of 2.0 GiB"
    assert re.fullmatch(r"\d[\d,]* µs", told["empty step"])
    assert re.fullmatch(r"[+-]\d+\.\d ms", told["clock"])
    subjects = [line[5:].partition(":")[0] for line in lines[3:] if line.startswith("ok   ")]
    assert subjects == ["versions", "CPU types", "write access", "configuration"]
    assert re.search(r"^ok   write access: .* with \d+\.\d GiB free", "\n".join(lines), re.MULTILINE)
    assert "scope 0: environments 0:2, PPO, on " in lines[-1]
    assert messages.count("ready after") == 1  # the workers of empty steps are not told


@pytest.fixture
def no_nodes(monkeypatch: pytest.MonkeyPatch, ray_cluster: None) -> None:
    """Skip the nodes."""
    monkeypatch.setattr(doctor_cluster, "ask_nodes", lambda packages, timeout: [])


def test_agents_that_do_not_fit_are_not_waited_for(config: Path, capsys: pytest.CaptureFixture[str], no_nodes: None):
    options = ["orchestrator.kind=ray", "orchestrator.options={num_cpus: 7}"]
    code, lines, _ = run(capsys, "doctor", "--address", "auto", config, "--set", *options)
    assert code == 1
    assert lines[-2].startswith(
        "FAIL resources: 2 workers with 7 CPU each are configured, but Ray has 4 CPU; at most 0 "
    )
    assert lines[-1].startswith("     remedy: ")


@pytest.mark.parametrize(
    ("overrides", "finding"),
    [
        (["orchestrator.kind=ray", "orchestrator.options={nothing: 1}"], "FAIL configuration: ConfigError: "),
        (["env.id=Nothing-v0"], "FAIL configuration: ConfigError: env.id: "),
        (["env.num_envs=0"], "FAIL configuration: env.num_envs is 0; "),
        (
            ["logging.directory=/proc/nothing/run", "env.id=Nothing-v0"],
            "FAIL write access: '/proc/nothing/run' cannot ",
        ),
    ],
)
def test_a_fault_of_the_configuration(
    overrides: list[str], finding: str, config: Path, capsys: pytest.CaptureFixture[str], no_nodes: None
):
    code, lines, _ = run(capsys, "doctor", "--address", "auto", config, "--set", *overrides)
    assert code == 1
    assert any(line.startswith(finding) for line in lines), lines
    assert any(line.startswith("ok   cluster: 0 nodes at auto") for line in lines)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "Ray cannot be reached at '127.0.0.1:1' (ConnectionRefusedError: "),
        ("nonsense", "Ray's address is 'nonsense'; expected 'auto', 'host:port' or "),
        ("", "Ray's address is ''; expected "),
    ],
)
def test_a_cluster_that_cannot_be_reached(
    address: str, reason: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    code, lines, _ = run(capsys, "doctor", "--address", address)
    assert code == 1
    assert lines[0].startswith(f"FAIL cluster: {reason}")
    assert lines[1].startswith("     remedy: ")
    assert len(lines) == 2


def test_a_cluster_that_is_lost_meanwhile(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, ray_cluster: None
):
    def ask(packages: Sequence[str], *, timeout: float) -> list[Node]:
        raise ConnectionError("the head is gone")

    monkeypatch.setattr(doctor_cluster, "ask_nodes", ask)
    code, lines, _ = run(capsys, "doctor", "--address", "auto")
    assert (code, lines[0]) == (1, "FAIL cluster: ConnectionError: the head is gone")


def node(number: int, *, report: Any) -> Node:
    return Node(id=f"id{number}", address=f"10.0.0.{number}", host=f"h{number}", resources={}, report=report)


def test_steps_are_measured_one_after_the_other_as_long_as_there_is_time(monkeypatch: pytest.MonkeyPatch):
    healthy: Any = {"import_error": ""}
    cluster = [
        node(1, report=healthy),
        node(2, report=None),
        node(3, report={"import_error": "oh no"}),
        node(4, report=healthy),
        node(5, report=healthy),
    ]
    now = [0.0]

    def measure(orchestrator: str) -> str:
        now[0] += 35
        if orchestrator == "on id4":
            raise ClusterError("no room")
        return "a step"

    monkeypatch.setattr(doctor_cluster, "monotonic", lambda: now[0])
    monkeypatch.setattr(doctor_cluster, "orchestrator_on", lambda node: f"on {node.id}")
    monkeypatch.setattr(doctor_cluster, "measure_empty_step", measure)
    assert doctor_cluster._steps(cluster) == {"id1": "a step", "id4": "ClusterError: no room"}


@pytest.mark.parametrize("transport", ["connection", "ray"])
def test_an_empty_step_is_measured_on_a_busy_node(transport: Any, ray_cluster: None):
    """All CPUs are in use."""

    @ray.remote(num_cpus=4)
    class Busy:
        def ready(self) -> None:
            pass

    busy = Busy.remote()  # type: ignore[attr-defined]
    ray.get(busy.ready.remote(), timeout=60)
    started = time.monotonic()
    step = measure_empty_step(RayOrchestrator(num_cpus=0, transport=transport))
    assert 1e-6 < step.seconds < time.monotonic() - started
    assert (step.transport, step.unreachable) == (transport, "")
    ray.kill(busy)


def test_a_worker_that_cannot_be_connected_to(ray_cluster: None, monkeypatch: pytest.MonkeyPatch, caplog: Any):
    def refuse(*_: Any, **__: Any) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr("orchestrator.ray.connection.dial", refuse)
    step = measure_empty_step(RayOrchestrator(num_cpus=0))
    assert (step.transport, step.unreachable) == ("ray", "TimeoutError: timed out")
    assert caplog.records == []
