"""A cluster of three bare hosts in the lab, brought up and used by the commands of the README."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.lab import LAPTOP, LIFETIME, Lab, lab, missing_tools
from tests.support.processes import ROOT

# these tests need root and take minutes: only `make test-cluster` runs them
collect_ignore_glob = [] if os.environ.get("LOCKSTEP_TESTS") == "cluster" else ["test_*.py"]

_ADDRESSES = {"192.0.2.10": "10.99.0.2", "192.0.2.11": "10.99.0.3", "192.0.2.12": "10.99.0.4"}
"""The addresses in cluster.yaml, which are marked CHANGE, and those of the lab."""

_JOINED = 300.0
"""Seconds within which all hosts have joined the cluster after `ray up`."""

_GONE = 180.0
"""Seconds within which nothing of Ray runs any more after `ray down`."""


def commands(start: str) -> list[str]:
    """Return the commands of the README that begin with `start`, in their order."""
    page = (ROOT / "README.md").read_text(encoding="utf-8").split("## On a cluster", 1)[1]
    block = page.split("```sh\n", 1)[1].split("```", 1)[0]
    found = [re.sub(r"\s+# .*", "", line) for line in block.splitlines() if line.startswith(start)]
    assert found, f"README.md has no command that begins with {start!r}"
    return found


def wait_until(what: str, seconds: float, is_done: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not is_done():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(1)  # between looks from outside


def alive_nodes(hosts: Lab) -> int:
    """Return the number of nodes that have joined."""
    told = hosts.ssh("h1", "ray status", check=False).stdout
    found = re.search(r"Active:\n((?: \d+ .*\n)*)", told)
    return sum(int(line.split()[0]) for line in found[1].splitlines()) if found else 0


def left_over(hosts: Lab) -> dict[str, list[str]]:
    """Return what a bare host would not run, by host."""
    return {
        host: found
        for host in hosts.servers
        if (found := [args for args in hosts.processes(host).values() if not _is_of_a_bare_host(args)])
    }


def _is_of_a_bare_host(args: str) -> bool:
    return args == f"sleep {LIFETIME}" or args.startswith(("/bin/bash /", "sshd: ", "ps -eo "))


@pytest.fixture(scope="session")
def hosts() -> Iterator[Lab]:
    """A laptop and three bare hosts."""
    assert not (missing := missing_tools()), f"make test-cluster needs Linux and {missing}"
    folder = ROOT / "build" / "cluster" / "lab"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    with lab(3, folder, wheels=ROOT / "build" / "cluster" / "wheels") as found:
        file = found.home / "lockstep" / "cluster.yaml"
        text = file.read_text(encoding="utf-8")
        for given, own in _ADDRESSES.items():
            assert given in text
            text = text.replace(given, own)
        file.write_text(text, encoding="utf-8")
        yield found


@pytest.fixture(scope="session")
def cluster(hosts: Lab) -> Iterator[Lab]:
    """The hosts as a cluster. At the end nothing of it runs any more."""
    [token] = commands("(umask 077; ray get-auth-token")
    [up] = commands("ray up")
    [down] = commands("ray down")
    hosts.run(LAPTOP, token)
    hosts.run(LAPTOP, up, timeout=900)
    wait_until("three nodes are alive", _JOINED, lambda: alive_nodes(hosts) == 3)
    yield hosts
    hosts.run(LAPTOP, down, timeout=300)
    wait_until("nothing runs", _GONE, lambda: not left_over(hosts))


def results(output: str) -> list[str]:
    """Return the lines with the returns and the weights of each scope."""
    return re.findall(r"^scope \d+: .*return .* weights \w+$", output, re.MULTILINE)


def token_of(hosts: Lab) -> str:
    """Return the token of the cluster."""
    return Path(hosts.home, ".ray", "auth_token").read_text(encoding="utf-8").strip()
