"""`lockstep doctor`: its findings on a healthy machine, and where something is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.command import RAY, run
from tests.support.envs import NoisyEnv
from tests.support.processes import python
from workers.threads import THREAD_VARIABLES


@pytest.fixture
def plain_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept any amount of shared memory, wherever the tests run."""
    monkeypatch.setattr("trainer.command.doctor.LEAST_SHARED_MEMORY", 0)


@pytest.mark.parametrize("overrides", [(), RAY], ids=["local", "ray"])
def test_doctor_on_a_healthy_machine(
    overrides: tuple[str, ...],
    config: Path,
    capsys: pytest.CaptureFixture[str],
    ray_cluster: None,
    plain_machine: None,
):
    code, lines, _ = run(capsys, "doctor", config, "--set", *overrides, "seed=0")
    found = {match[1]: line for line in lines if (match := re.match(r"ok   ([a-z ]+): ", line))}
    subjects = {
        "versions",
        "torch",
        "jax",
        "warp",
        "shared memory",
        "write access",
        "ray",
        "configuration",
        "environments",
        "state",
    }
    assert set(found) == subjects
    assert "4 CPU" in found["ray"]
    assert "devices: cpu; compute threads: 1; CPUs: " in found["torch"]
    assert "builds, steps and can be stored (state.safetensors, state.safetensors)" in found["configuration"]
    assert "the first three keep the contract in 200 steps with random actions" in found["environments"]
    assert "kept by its generators, and actions that are played back, as a restored copy went on" in found["state"]
    assert code == 0


class LateFault(NoisyEnv):
    """Gives NaN after 50 steps."""

    count = 0

    def step(self, action: Any) -> Any:
        self.count += 1
        observation, *rest = super().step(action)
        return observation * np.float32(np.nan if self.count > 50 else 1), *rest


def build_late_fault(num_envs: int, first_env: int) -> Any:
    return [LateFault(discrete=True) for _ in range(num_envs)]


@pytest.mark.parametrize(
    ("overrides", "finding"),
    [
        (["logging.directory=/proc/nothing/run"], "FAIL write access: '/proc/nothing/run' cannot be written: "),
        (
            [*RAY, "orchestrator.options={num_cpus: 7, start_timeout: 1}"],
            "FAIL configuration: ClusterError: 2 workers with 7",
        ),
        (["env.id=Nothing-v0"], "FAIL configuration: ConfigError: env.id: gymnasium cannot make 'Nothing-v0'"),
        (["agents.0.agent=tests.support.agents:NullAgent", "agents.0.cfg={}"], "NullAgent cannot be stored"),
        (
            ["env.id=null", "env.factory=tests.command.test_doctor:build_late_fault"],
            "FAIL environments: EnvError: row 0: environment CheckedSyncVectorEnv(num_envs=3): observations are nan",
        ),
        (["env.num_envs=0"], "FAIL configuration: env.num_envs is 0; expected an integer of at least 1"),
        (["agents.0.agent=tests.support.agents:Nothing"], "FAIL configuration: ConfigError: agents.0.agent is"),
    ],
)
def test_doctor_names_what_is_wrong_and_the_remedy(
    overrides: list[str],
    finding: str,
    config: Path,
    capsys: pytest.CaptureFixture[str],
    ray_cluster: None,
    plain_machine: None,
):
    code, lines, _ = run(capsys, "doctor", config, "--set", *overrides)
    failed = [index for index, line in enumerate(lines) if line.startswith("FAIL")]
    assert code == 1
    assert len(failed) == 1
    assert finding in lines[failed[0]]
    assert any(line.startswith("     remedy: ") for line in lines[failed[0] + 1 :])


def test_doctor_without_a_reachable_ray(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    import ray

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    code, lines, _ = run(capsys, "doctor")
    failed = [line for line in lines if line.startswith("FAIL")]
    assert code == 1
    assert "ray: ClusterError: Ray cannot be reached at '127.0.0.1:1'" in failed[0]


def test_doctor_starts_xla_with_the_threads_of_the_trainer(tmp_path: Path):
    settings = ["framework=jax", "orchestrator.options={num_threads: 3}", f"logging.directory={tmp_path / 'run'}"]
    arguments = ["-m", "trainer", "doctor", "examples/pendulum.yaml", "--set", *settings]
    # an address without Ray: starting one would take half of the time
    done = python(*arguments, env={**dict.fromkeys(THREAD_VARIABLES), "RAY_ADDRESS": "127.0.0.1:1"})
    assert "ok   jax: devices: cpu; compute threads: 3; " in done.stdout, done.stderr
    assert "ok   configuration: " in done.stdout
    assert "XLA's number of threads" not in done.stderr


def test_a_finished_run_is_no_fault(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], plain_machine: None
):
    """The directory of an earlier run is reported, but the machine is healthy."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text("timestep\n", encoding="utf-8")
    directory = tmp_path / "run"
    code, lines, _ = run(capsys, "doctor", config, "--set", f"logging.directory={directory}")
    (found,) = [line for line in lines if "write access" in line]
    assert found.startswith("ok   write access: run directories can be created in ")
    assert f"; '{directory}' is not empty: lockstep train needs another one, or --resume" in found
    assert code == 0
    assert [path.name for path in directory.iterdir()] == ["metrics.csv"]
