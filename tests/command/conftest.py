"""A configuration for the tests of all verbs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support import fake_ray
from tests.support.command import CONFIG, Shown
from tests.support.jobs_api import TOKEN, JobsAPI, jobs_api
from tests.support.processes import ROOT


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    monkeypatch.chdir(ROOT)
    return path


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Shown:
    caplog.set_level("WARNING", logger="lockstep")
    return Shown(capsys, caplog)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a configuration."""
    folder = tmp_path / "my project"
    folder.mkdir()
    config = {**CONFIG, "agents": [{}, {}], "orchestrator": {"kind": "local", "options": {"num_threads": 1}}}
    (folder / "my cart's.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    for name in ("RAY_AUTH_MODE", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def api(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobsAPI]:
    """A stand-in for the dashboard of a cluster."""
    monkeypatch.setattr("orchestrator.ray.jobs._PAUSE", 0.01)
    with jobs_api() as api:
        yield api


@pytest.fixture
def cluster(api: JobsAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cluster whose head is this machine."""
    monkeypatch.setattr("orchestrator.ray.launcher.RAY", fake_ray.COMMAND)
    path = tmp_path / "cluster.yaml"
    path.write_text(f"to {api.address.rpartition(':')[2]}")
    return path
