"""How the run directory of a job comes from the head of a cluster, against a stand-in for Ray's dashboard."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from orchestrator.ray import launcher
from tests.support.command import Shown
from tests.support.jobs_api import JobsAPI
from tests.support.schedule import full_or_short

pytestmark = pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")  # by Ray's client


def head(api: JobsAPI, tmp_path: Path, folder: str = "runs/x") -> Path:
    """A run on the head, and its line in the log."""
    place = tmp_path / "head" / folder
    place.mkdir(parents=True)
    (place / "status.json").write_text('{"state": "finished", "timestep": 4}')
    (place / "origin.json").write_text(json.dumps({"run": "0" * 32, "macs": {}}))
    api.log += f"run directory: {place}\n"
    return place


@pytest.mark.parametrize("status", full_or_short(["SUCCEEDED", "FAILED"], ["FAILED"]))
def test_the_run_directory_is_fetched(status: str, api: JobsAPI, cluster: Path, tmp_path: Path, command: Shown):
    head(api, tmp_path)
    api.status = status
    options = ("--cluster", cluster, "--set", "logging.directory=./runs//x/")
    code, lines, messages = command.run("submit", "my cart's.yaml", *options)
    assert (code, messages) == (int(status == "FAILED"), "")
    told = ["run directory: runs/x"]
    if status == "FAILED":
        told.append("to go on with it: submit it again, with --set logging.directory=./runs//x/")
    assert lines[-len(told) :] == told
    assert [path.name for path in Path("runs").iterdir()] == ["x"]
    assert "finished" in (Path("runs") / "x" / "status.json").read_text()
    ((name, _),) = api.submitted.items()
    (Path("runs") / "x" / "mine").touch()
    (Path("runs") / "x" / "origin.json").unlink()
    _, lines, messages = command.run("submit", "--follow", name, "--cluster", cluster)
    assert "runs/x exists already, and is no earlier copy of this run" in messages
    assert "run directory: runs/x.fetched" in lines
    assert (Path("runs") / "x" / "mine").exists()


def test_a_copy_of_the_same_run_is_replaced(api: JobsAPI, cluster: Path, tmp_path: Path, command: Shown):
    place = head(api, tmp_path)
    options = ("--cluster", cluster, "--set", "logging.directory=runs/x")
    statuses = ['{"state": "running", "timestep": 4}', '{"state": "finished", "timestep": 9}']
    for status in statuses:
        (place / "status.json").write_text(status)
        api.submitted.clear()
        code, lines, messages = command.run("submit", "my cart's.yaml", *options)
        assert (code, messages, lines[-1]) == (0, "", "run directory: runs/x")
        assert (Path("runs") / "x" / "status.json").read_text() == status
        assert [path.name for path in Path("runs").iterdir()] == ["x"]
    # a run that went on here
    (Path("runs") / "x" / "status.json").write_text('{"state": "finished", "timestep": 20}')
    for number in ("", "1"):
        api.submitted.clear()
        code, lines, messages = command.run("submit", "my cart's.yaml", *options)
        assert (code, lines[-1]) == (0, f"run directory: runs/x.fetched{number}")
        assert "runs/x exists already, and is no earlier copy of this run" in messages
        assert '"timestep": 20' in (Path("runs") / "x" / "status.json").read_text()


@pytest.mark.parametrize("how", ["signal", "error"])
def test_a_fetch_that_breaks_says_how_to_fetch_again(
    how: str, api: JobsAPI, cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Shown
):
    head(api, tmp_path)
    options = ("--cluster", cluster, "--set", "logging.directory=runs/x")

    def wait(self: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if timeout == launcher._FETCHING:
            os.kill(os.getpid(), signal.SIGTERM)
        return waited(self, timeout)

    waited = subprocess.Popen.wait
    with monkeypatch.context() as patch:
        if how == "signal":
            patch.setattr(subprocess.Popen, "wait", wait)
        else:
            api.at_end = lambda: (tmp_path / "head" / "runs" / "x").rename(tmp_path / "gone")
        code, _, messages = command.run("submit", "my cart's.yaml", *options)
    ((name, _),) = api.submitted.items()
    assert code == (128 + signal.SIGTERM if how == "signal" else 1)
    assert f"to fetch it again: lockstep submit --follow {name} --cluster {cluster}\n" in messages + "\n"
    assert "detached" not in messages
    if how == "error":
        (tmp_path / "gone").rename(tmp_path / "head" / "runs" / "x")
    api.at_end = lambda: None
    assert command.run("submit", "--follow", name, "--cluster", cluster)[0] == 0
    assert (Path("runs") / "x" / "status.json").exists()


def test_without_a_tunnel_the_place_on_the_head_is_told(api: JobsAPI, tmp_path: Path, command: Shown):
    place = head(api, tmp_path)
    options = ("--address", api.address, "--set", "logging.directory=runs/x")
    _, lines, _ = command.run("submit", "my cart's.yaml", *options)
    assert lines[-1] == f"run directory, on the head: {place}; copy it from there, or use --cluster cluster.yaml"


def test_a_line_that_imitates_a_run_directory_is_not_fetched(
    api: JobsAPI, cluster: Path, tmp_path: Path, command: Shown
):
    head(api, tmp_path, "other")
    code, lines, _ = command.run("submit", "my cart's.yaml", "--cluster", cluster)
    assert code == 0
    assert lines[-1] == f"run directory: {tmp_path}/head/other"
    assert not Path("runs").exists()


@pytest.mark.parametrize("directory", full_or_short(["..", "../..", ".", "/", ""], ["..", "/"]))
def test_a_strangers_job_is_fetched_into_runs_only(
    directory: str, api: JobsAPI, cluster: Path, tmp_path: Path, command: Shown
):
    metadata = {"lockstep_run_directory": directory}
    api.submitted["theirs"] = {"submission_id": "theirs", "entrypoint": "", "metadata": metadata}
    api.log += f"run directory: {tmp_path}/head/../..\nrun directory: {tmp_path}/head/.\nrun directory: /\n"
    (tmp_path / "head").mkdir()
    before = sorted(tmp_path.rglob("*"))
    command.run("submit", "--follow", "theirs", "--cluster", cluster)
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] == [tmp_path / "pids"]


def test_a_stopped_job_stores_everything_and_is_fetched(api: JobsAPI, cluster: Path, tmp_path: Path, command: Shown):
    head(api, tmp_path)
    options = ("--detach", "--cluster", cluster, "--set", "logging.directory=runs/x")
    assert command.run("submit", "my cart's.yaml", *options)[0] == 0
    ((name, _),) = api.submitted.items()
    code, lines, messages = command.run("submit", "--stop", name, "--cluster", cluster)
    assert (code, messages) == (0, "")
    told = f"job {name}: stopped: Job was intentionally stopped."
    assert lines == ["stored", told, "run directory: runs/x"]
    assert api.stopped == [name]
    _, lines, messages = command.run("submit", "--stop", name, "--cluster", cluster)
    assert f"job {name} is not running" in messages
    assert lines == [told, "run directory: runs/x"]
