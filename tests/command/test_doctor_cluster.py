"""`lockstep doctor --address`: the nodes of a cluster, the empty step to them, and a configuration there."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray

from orchestrator.ray import RayOrchestrator, nodes
from orchestrator.ray.nodes import NodeStatus
from tests.support.command import run
from tests.support.schedule import full_or_short, only_long
from trainer.command import doctor_cluster
from trainer.command.doctor import Finding
from trainer.command.empty_step import measure_empty_step
from trainer.command.run import build_orchestrator
from trainer.command.run_config import RunConfig
from workers.errors import ClusterError


@pytest.fixture
def plain_nodes(monkeypatch: pytest.MonkeyPatch, ray_cluster: None) -> None:
    """Accept any token, shared memory and limit, wherever the tests run."""

    def ask(packages: Sequence[str], *, timeout: float) -> list[NodeStatus]:
        found = nodes.ask_nodes(packages, timeout=timeout)
        for node in found:
            assert node.report is not None
            node.report.update({"token": "0600", "shared_memory": (2**30, 2**31), "open_files": 4096})
        return found

    monkeypatch.setattr(doctor_cluster, "ask_nodes", ask)
    # one machine has one node
    monkeypatch.setattr(doctor_cluster, "orchestrator_on", lambda node: RayOrchestrator(num_cpus=0))


@pytest.mark.parametrize("has_config", full_or_short([False, True], [False]))
def test_doctor_of_a_healthy_cluster(
    has_config: bool, config: Path, capsys: pytest.CaptureFixture[str], caplog: Any, plain_nodes: None
):
    """The agents live in the cluster, although the configuration says nothing of Ray."""
    given = [config, "--set", "agents=[{agent: ppo}]", "env.num_envs=2"] if has_config else []
    with caplog.at_level("INFO", logger="lockstep"):
        code, lines, _ = run(capsys, "doctor", "--address", "auto", *given)
    assert code == 0, lines
    assert re.fullmatch(r"ok   cluster: 1 node at auto, examined in \d+\.\d s", lines[0])
    header, row = (re.split(r"  +", line) for line in lines[1:3])
    told = dict(zip(header, row, strict=True))
    assert (told["alive"], told["CPUs"], told["GPUs"], told["token"]) == ("yes", "4", "0", "0600")
    assert told["/dev/shm free"] == "1.0 of 2.0 GiB"
    assert re.fullmatch(r"\d[\d,]* µs", told["empty step"])
    assert re.fullmatch(r"[+-]\d+\.\d ms", told["clock"])
    subjects = [line[5:].partition(":")[0] for line in lines[3:] if line.startswith("ok   ")]
    assert subjects == ["versions", "CPU types", "write access", *["configuration"] * has_config]
    assert re.search(r"^ok   write access: .* with \d+\.\d GiB free", "\n".join(lines), re.MULTILINE)
    assert ("scope 0: environments 0:2, PPO, on " in lines[-1]) == has_config
    assert caplog.text.count("ready after") == has_config  # the workers of empty steps are not told


@pytest.fixture
def no_nodes(monkeypatch: pytest.MonkeyPatch, ray_cluster: None) -> None:
    """Skip the nodes."""
    monkeypatch.setattr(doctor_cluster, "ask_nodes", lambda packages, timeout: [])


def test_agents_that_do_not_fit_are_not_waited_for(config: Path, capsys: pytest.CaptureFixture[str], no_nodes: None):
    options = ["orchestrator.kind=ray", "orchestrator.options={num_cpus: 7}"]
    code, lines, _ = run(capsys, "doctor", "--address", "auto", config, "--set", *options)
    assert code == 1
    assert "FAIL resources: 2 workers with 7 CPU each do not fit:" in lines
    assert lines[-2] == "  missing: a node with 7 CPU"
    assert lines[-1].startswith("     remedy: ")
    code, lines, _ = run(capsys, "doctor", "--address", "auto", "--no-build", config, "--set", *options)
    assert code == 0  # before a training: nodes may be joining
    assert "ok   resources: 2 workers with 7 CPU each do not fit:" in lines


@pytest.mark.parametrize("kind", ["local", "ray"])
def test_the_agents_live_in_this_cluster_whatever_the_configuration_says(
    kind: str, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, no_nodes: None
):
    tried: list[RunConfig] = []

    def can_run(config: RunConfig) -> Finding:
        tried.append(config)
        return Finding("configuration", "tried")

    monkeypatch.setattr(doctor_cluster, "can_run", can_run)
    options = ["num_threads: 3", *["address: '127.0.0.1:1'", "num_cpus: 0.5"] * (kind == "ray")]
    settings = [f"orchestrator.kind={kind}", f"orchestrator.options={{{', '.join(options)}}}"]
    code, lines, _ = run(capsys, "doctor", "--address", "auto", config, "--set", *settings)
    assert (code, lines[-1]) == (0, "ok   configuration: tried")
    orchestrator = build_orchestrator(tried[0].orchestrator)
    assert orchestrator == RayOrchestrator(num_threads=3, num_cpus=0.5 if kind == "ray" else 1)


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


def test_an_address_that_is_empty(capsys: pytest.CaptureFixture[str]):
    """As of a shell variable that is not set: no other Ray is looked for or started."""
    code, lines, messages = run(capsys, "doctor", "--address", "")
    assert (code, lines) == (2, [])
    assert messages == "lockstep: --address is ''; expected 'auto', 'host:port' or 'ray://host:port'\n"


def test_a_cluster_that_is_lost_meanwhile(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, ray_cluster: None
):
    def ask(packages: Sequence[str], *, timeout: float) -> list[NodeStatus]:
        raise ConnectionError("the head is gone")

    monkeypatch.setattr(doctor_cluster, "ask_nodes", ask)
    code, lines, _ = run(capsys, "doctor", "--address", "auto")
    assert (code, lines[0]) == (1, "FAIL cluster: ConnectionError: the head is gone")


def node(number: int, *, report: Any) -> NodeStatus:
    return NodeStatus(id=f"id{number}", address=f"10.0.0.{number}", host=f"h{number}", resources={}, report=report)


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


@pytest.fixture
def busy(ray_cluster: None) -> Iterator[None]:
    """All CPUs are in use."""

    @ray.remote(num_cpus=4)
    class Busy:
        def ready(self) -> None:
            pass

    actor = Busy.remote()  # type: ignore[attr-defined]
    ray.get(actor.ready.remote(), timeout=60)
    yield
    ray.kill(actor)


@only_long
@pytest.mark.parametrize("transport", ["connection", "ray"])
def test_an_empty_step_is_measured_on_a_busy_node(transport: Any, busy: None):
    started = time.monotonic()
    step = measure_empty_step(RayOrchestrator(num_cpus=0, transport=transport))
    assert 1e-6 < step.seconds < time.monotonic() - started
    assert (step.transport, step.unreachable) == (transport, "")


def test_a_worker_on_a_busy_node_that_cannot_be_connected_to(
    busy: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(*_: Any, **__: Any) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr("orchestrator.ray.connection.dial", refuse)
    step = measure_empty_step(RayOrchestrator(num_cpus=0))
    assert step.seconds > 1e-6
    assert (step.transport, step.unreachable) == ("ray", "TimeoutError: timed out")
    assert caplog.records == []
