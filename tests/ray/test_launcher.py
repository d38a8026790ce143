"""The tunnel to a cluster's dashboard and copies of its files, with a stand-in for Ray's commands."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import psutil
import pytest

from orchestrator.ray import launcher
from orchestrator.ray.launcher import Tunnel, fetch
from tests.support import fake_ray
from tests.support.processes import PATIENCE
from workers.errors import ClusterError


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(launcher, "RAY", fake_ray.COMMAND)
    with socket.create_server(("127.0.0.1", 0)) as head:
        path = tmp_path / "cluster.yaml"
        path.write_text(f"to {head.getsockname()[1]}")
        yield path


def processes(cluster: Path) -> list[psutil.Process]:
    """What the command started and has not ended."""
    found = []
    for pid in (cluster.with_name("pids").read_text().split()) if cluster.with_name("pids").exists() else []:
        try:
            found.append(psutil.Process(int(pid)))
        except psutil.NoSuchProcess:
            continue
    return found


def end(processes: list[psutil.Process]) -> bool:
    """Wait until all have ended: they may still be zombies, whom their new parent has not collected."""
    deadline = monotonic() + PATIENCE
    while any(map(lives, processes)):
        assert monotonic() < deadline, processes
        threading.Event().wait(0.01)
    return True


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_tunnel_ends_as_a_whole(cluster: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", logger="lockstep")
    with Tunnel(str(cluster)) as tunnel:
        started = processes(cluster)
        assert len(started) == 2
        assert tunnel.address.startswith("http://127.0.0.1:")
        (session,) = {os.getsid(process.pid) for process in started}
        assert session != os.getsid(0)  # Ctrl-C does not reach them
        tunnel.renew()
        assert processes(cluster) == started
        assert [record.getMessage() for record in caplog.records] == [
            f"opening an SSH tunnel to the head of {cluster} ..."
        ]
    assert end(started)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(tunnel.address, timeout=5)


def test_a_tunnel_that_broke_is_opened_again_at_the_same_address(cluster: Path):
    with Tunnel(str(cluster)) as tunnel:
        first, child = processes(cluster)
        address = tunnel.address
        first.send_signal(signal.SIGKILL)
        first.wait()
        tunnel.renew()
        assert tunnel.address == address
        _, *second = processes(cluster)[-3:]
        assert end([child])  # the rest of the first one
        assert len([process for process in second if process.is_running()]) == 2
    assert end(second)


def test_a_tunnel_that_cannot_be_opened_says_what_ray_says(cluster: Path, monkeypatch: pytest.MonkeyPatch):
    cluster.write_text("say no route to the host\nat all")
    with pytest.raises(ClusterError) as caught, Tunnel(str(cluster)):
        pass
    told = str(caught.value)
    assert f"the tunnel to the dashboard of {cluster} ended" in told
    assert f"`ray exec {cluster} true`" in told
    assert "ssh-add" in told
    assert told.endswith("Ray said:\nCommand failed: no route to the host\nat all")


def test_a_tunnel_that_does_not_open_has_a_deadline(cluster: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launcher, "_OPENING", 0.3)
    cluster.write_text("wait")
    with pytest.raises(ClusterError, match="is not open after 0 s"), Tunnel(str(cluster)):
        pass
    assert end(processes(cluster))


def test_the_token_is_not_sent_to_the_program_of_another_user(cluster: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    with pytest.raises(ClusterError, match="another user's program listens on port"), Tunnel(str(cluster)):
        pass
    assert end(processes(cluster))


@pytest.mark.parametrize("table", ["tcp", "tcp6"])
def test_a_port_that_somebody_else_has_taken_is_found(
    table: str, cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A socket of IPv6 that takes connections of IPv4 is in a table of its own; a tunnel that broke leaves its port."""
    tables = tmp_path / "tcp", tmp_path / "tcp6"
    for path in tables:
        path.write_text(row("local_address", "st", "uid"))
    with Tunnel(str(cluster)) as tunnel:
        monkeypatch.setattr(launcher, "_SOCKETS", tables)
        port = f":{int(tunnel.address.rpartition(':')[2]):04X}"
        (tmp_path / table).write_text(row("local_address", "st", "uid") + row(f"0{port}", "0A", str(os.getuid())))
        before = processes(cluster)
        tunnel.renew()
        assert processes(cluster) == before
        with (tmp_path / table).open("a") as file:
            file.write(row(f"0{port}", "0A", str(os.getuid() + 1)))
        with pytest.raises(ClusterError, match="another user's program listens on port"):
            tunnel.renew()
    assert end(processes(cluster))


def row(address: str, state: str, owner: str) -> str:
    """A line of a table of sockets."""
    return f"0: {address} 0:0 {state} 0:0 0:0 0 {owner} 0 0\n"


def test_a_port_on_which_nobody_listens_is_not_ours():
    assert not launcher._is_ours(launcher._free_port())
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        assert launcher._is_ours(server.getsockname()[1])


def test_a_tunnel_ends_when_its_program_is_killed(cluster: Path):
    code = f"""if True:
        import sys
        from orchestrator.ray import launcher
        launcher.RAY = {launcher.RAY!r}
        with launcher.Tunnel(sys.argv[1]):
            print("open", flush=True)
            sys.stdin.read()
    """
    program = [sys.executable, "-c", code, str(cluster)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        started = processes(cluster)
        process.kill()
    assert len(started) == 2
    assert end(started)


def test_a_folder_is_fetched_whole_or_not_at_all(cluster: Path, tmp_path: Path):
    source, target = tmp_path / "head" / "run", tmp_path / "runs" / "run"
    (source / "agents").mkdir(parents=True)
    (source / "agents" / "a").write_text("state")
    works = cluster.read_text()
    cluster.write_text("say connection lost")
    with pytest.raises(ClusterError, match=r"(?s)run cannot be copied .*connection lost"):
        fetch(str(cluster), str(source), target)
    assert not target.exists()
    cluster.write_text(works)
    fetch(str(cluster), str(source), target)
    assert [str(path.relative_to(target)) for path in sorted(target.rglob("*"))] == ["agents", "agents/a"]
    assert [path.name for path in target.parent.iterdir()] == ["run"]
