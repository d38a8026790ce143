"""What becomes of a run when cables are pulled and processes die, seen by whoever follows the job."""

from __future__ import annotations

import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.conftest import alive_nodes, commands, results, wait_until
from tests.cluster.lab import LAPTOP, Lab

CONFIG = "examples/cartpole.yaml"
THREE = "agents=[" + ", ".join(["{agent: ppo, scope: 16}"] * 3) + "]"
RUN = f"env.num_envs=48 {shlex.quote(THREE)} trainer.timesteps=6000 evaluation.episodes=5 logging.interval=100"
SPREAD = "orchestrator.options.strategy=STRICT_SPREAD"

NAMED = 15.0
"""Seconds within which a lost host is named."""

_TRAINING = 120.0
"""Seconds within which a job has begun to train."""


class Followed:
    """A job that is followed from the laptop, with the time of each line."""

    def __init__(self, hosts: Lab, overrides: str) -> None:
        submit = f"lockstep submit {CONFIG} --cluster cluster.yaml --set {RUN} {SPREAD} {overrides}"
        self.lines: list[tuple[float, str]] = []
        self._process = subprocess.Popen(
            hosts.command(LAPTOP, f"exec {submit}", env={"PYTHONUNBUFFERED": "1"}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append((time.monotonic(), line.rstrip("\n")))

    @property
    def text(self) -> str:
        """All lines."""
        return "\n".join(line for _, line in self.lines)

    def host_of(self, scope: int) -> str:
        """Return the host on which a scope's worker lives, as soon as it is told."""
        wait_until("the run has a directory", _TRAINING, lambda: "\nrun directory: " in self.text)
        return re.findall(rf"^  scope {scope}: .* on (\w+) \(pid", self.text, re.MULTILINE)[-1]

    def seconds_until(self, words: str, since: float) -> float:
        """Return how long after `since` the first line with these words came."""
        return next(at for at, line in self.lines if words in line) - since

    def end(self, timeout: float) -> int:
        """Wait for the end, and return the exit code."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise AssertionError(f"it has not ended within {timeout:.0f} s:\n{self.text}") from None
        self._reader.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return code


@pytest.fixture
def whole(cluster: Lab) -> Iterator[Lab]:
    """The cluster, in which all hosts are alive again at the end."""
    wait_until("three nodes are alive", 300, lambda: alive_nodes(cluster) == 3)
    yield cluster
    for host in cluster.servers:
        cluster.plug(host, connected=True)
    wait_until("three nodes are alive again", 300, lambda: alive_nodes(cluster) == 3)


def away_from_head(job: Followed) -> tuple[int, str]:
    """Return a scope whose worker does not live on the head, and its host."""
    return next((scope, host) for scope in range(3) if (host := job.host_of(scope)) != "h1")


def at_work(job: Followed) -> tuple[int, str]:
    """Wait until the workers train; return a scope and its host as `away_from_head`."""
    found = away_from_head(job)
    time.sleep(4)  # in the middle of the training, wherever that is
    return found


def test_a_cable_that_is_pulled_for_20_seconds_costs_no_more(whole: Lab):
    job = Followed(whole, "")
    scope, host = at_work(job)
    pulled = time.monotonic()
    whole.plug(host, connected=False)
    time.sleep(20)  # the fault itself
    whole.plug(host, connected=True)
    assert job.end(300) == 0, job.text
    address = whole.addresses[host]
    assert job.seconds_until(f"scope {scope} on {address} cannot be reached any more", pulled) <= NAMED, job.text
    assert job.seconds_until(f"scope {scope} on {address} is connected again", pulled) <= 26, job.text
    local = whole.run(LAPTOP, f"lockstep train {CONFIG} --set {RUN} logging.directory=/tmp/undisturbed", timeout=300)
    assert results(job.text) == results(local.stdout) != []


def pull(hosts: Lab, host: str) -> None:
    """Pull a cable for good."""
    hosts.plug(host, connected=False)


def kill_worker(hosts: Lab, host: str) -> None:
    """Kill the worker of a host."""
    for pid in hosts.processes(host, "ray::WorkerActor"):
        hosts.kill(host, pid)


def kill_raylet(hosts: Lab, host: str) -> None:
    """Kill the raylet of a host, with which its workers end."""
    for pid in hosts.processes(host, "/raylet/raylet --"):
        hosts.kill(host, pid)


def stop_worker(hosts: Lab, host: str) -> None:
    """Stop the worker of a host, which then neither answers nor ends."""
    for pid in hosts.processes(host, "ray::WorkerActor"):
        hosts.kill(host, pid, "STOP")


@pytest.mark.parametrize(
    ("fault", "named", "seconds", "back"),
    [
        (pull, "scope {scope} on {address} cannot be reached any more", NAMED, 60),
        (kill_worker, "scope {scope} on {host} (pid", NAMED, 20),
        (kill_raylet, "scope {scope} on {host} (pid", NAMED, 60),
        (stop_worker, "has not answered a ping for", 20 + NAMED, 60),
    ],
)
def test_a_run_survives_a_fault_with_the_same_numbers(
    whole: Lab, fault: Callable[[Lab, str], None], named: str, seconds: float, back: float
):
    """Whatever is lost, two hosts have room for all three workers."""
    options = "orchestrator.options.strategy=SPREAD orchestrator.options.hang_timeout=20"
    job = Followed(whole, f"{options} trainer.timesteps=8000")
    scope, host = at_work(job)
    since = time.monotonic()
    fault(whole, host)
    assert job.end(400) == 0, job.text
    told = named.format(scope=scope, address=whole.addresses[host], host=host)
    assert job.seconds_until(told, since) <= seconds, job.text
    took = job.seconds_until(": back after ", since)
    assert took <= back, job.text
    print(f"{fault.__name__}: named after {job.seconds_until(told, since):.1f} s, back after {took:.1f} s")
    again = f"logging.directory=/tmp/undisturbed-{fault.__name__} trainer.timesteps=8000"
    local = whole.run(LAPTOP, f"lockstep train {CONFIG} --set {RUN} {again}", timeout=300)
    assert results(job.text) == results(local.stdout) != []


def kill_driver(hosts: Lab) -> None:
    """Kill the program that trains."""
    for pid in hosts.processes("h1", "lockstep train"):
        hosts.kill("h1", pid)


def lose_head(hosts: Lab) -> None:
    """Kill all of Ray on the head, with which the cluster ends, and bring the cluster up again, as after a reboot."""
    for name in ("gcs_server", "raylet", "dashboard", "lockstep"):
        for pid in hosts.processes("h1", name):
            hosts.kill("h1", pid)
    [up] = commands("ray up")
    hosts.run(LAPTOP, up, timeout=900)
    wait_until("three nodes are alive again", 300, lambda: alive_nodes(hosts) == 3)


def test_a_job_that_is_submitted_again_goes_on_from_its_run_directory(whole: Lab):
    options = "logging.directory=runs/again checkpoint.interval=2s trainer.timesteps=12000"
    resumed = []
    for fault in (kill_driver, lose_head, None):
        job = Followed(whole, options)
        if fault is not None:
            at_work(job)
            fault(whole)
        code = job.end(300)
        assert code == (0 if fault is None else 1), job.text
        resumed += [int(found) for found in re.findall(r"^resumed at timestep (\d+)$", job.text, re.MULTILINE)]
        if fault is kill_driver:
            assert "to go on with it: submit it again, with --set logging.directory=runs/again" in job.text
    assert len(resumed) == 2, resumed
    assert 0 < resumed[0] < resumed[1] < 12000
    again = "logging.directory=/tmp/undisturbed-again trainer.timesteps=12000"
    local = whole.run(LAPTOP, f"lockstep train {CONFIG} --set {RUN} {again}", timeout=300)
    assert results(job.text) == results(local.stdout) != []
