"""`lockstep submit` to a head of its own, with a token, as a user runs it."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests

from tests.support.processes import PATIENCE, ROOT, still_alive
from tests.support.schedule import only_long

pytestmark = only_long

SHIM = f"""#!/bin/sh
exec {shlex.quote(sys.executable)} -m trainer "$@"
"""


@dataclass
class Head:
    """A head, and the environment of its user."""

    address: str
    env: dict[str, str]
    cwd: Path
    home: Path

    def submit(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """Run the command; its output and its messages come together."""
        command = [sys.executable, "-m", "trainer", "submit", *arguments, "--address", self.address]
        env = self.env | changes
        return subprocess.run(
            command, cwd=self.cwd, env=env, stdout=-1, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE
        )


def free_ports(number: int) -> list[int]:
    doors = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [int(door.getsockname()[1]) for door in doors]
    for door in doors:
        door.close()
    return ports


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("h")
    home, cwd, bin = folder / "home", folder / "project", folder / "bin"
    for one in (home / ".ray", cwd, bin):
        one.mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("0123456789abcdef" * 2)
    (home / ".ray" / "auth_token").chmod(0o600)
    (bin / "lockstep").write_text(SHIM)
    (bin / "lockstep").chmod(0o755)
    (cwd / "cartpole.yaml").write_text((ROOT / "examples" / "cartpole.yaml").read_text())
    gcs, dashboard, client, agent = free_ports(4)
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {
        "HOME": str(home),
        "PATH": f"{bin}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_autoscaler_v2": "0",
        "RAY_TMPDIR": str(folder),
    }
    ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    ports += [f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder / 't'}"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--num-cpus=2", "--block", *ports]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=env | {"RAY_AUTH_MODE": "token"}, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        wait_for_dashboard(address, process, folder / "log")
        yield Head(address, env, cwd, home)
    finally:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
        for left in psutil.wait_procs(family, timeout=10)[1]:
            left.kill()
        assert still_alive(family) == []


def wait_for_dashboard(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(int(PATIENCE)):
        assert process.poll() is None, log.read_text()
        try:
            if requests.get(f"{address}/api/version", timeout=5).status_code == 401:
                return
        except requests.RequestException:
            pass
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
    raise TimeoutError(log.read_text())


def test_a_job_is_refused_without_the_token(head: Head, tmp_path: Path):
    for changes, told in (
        ({"HOME": str(tmp_path)}, "this machine has no token"),
        ({"RAY_AUTH_TOKEN": "another"}, "the token of this machine is not that of the cluster"),
    ):
        done = head.submit("cartpole.yaml", **changes)
        assert done.returncode == 1
        assert told in done.stdout


def test_a_job_trains_and_its_run_directory_outlives_it(head: Head):
    options = ("orchestrator.options.num_cpus=0.5", "trainer.timesteps=300", "evaluation.episodes=2")
    done = head.submit("cartpole.yaml", "--set", *options)
    assert done.returncode == 0, done.stdout
    *_, told = done.stdout.splitlines()
    (run,) = (head.home / "runs").iterdir()
    assert told.startswith(f"run directory, on the head: {run}; ")
    assert (run / "evaluation.json").exists()
    assert f"job {run.name}: succeeded" in done.stdout


def test_a_stopped_job_has_stored_everything(head: Head):
    options = ("orchestrator.options.num_cpus=0.5", "trainer.timesteps=10000000", "logging.directory=runs/long")
    command = [sys.executable, "-m", "trainer", "submit", "cartpole.yaml", "--address", head.address, "--set", *options]
    with subprocess.Popen(
        command, cwd=head.cwd, env=head.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("run directory: "):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
        assert process.wait(PATIENCE) == 128 + signal.SIGINT, rest
    name = rest.partition("--stop ")[2].split()[0]
    done = head.submit("--stop", name)
    assert done.returncode == 0, done.stdout
    assert "the agents are stored in" in done.stdout
    assert f"job {name}: stopped" in done.stdout
    assert '"interrupted"' in (head.home / "runs" / "long" / "status.json").read_text()
