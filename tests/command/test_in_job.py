"""Training without a terminal, as in a Ray job: where its run directory lies, and what it tells."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.command import Shown
from trainer.callbacks.view import progress
from trainer.command import job

IN_JOB = json.dumps({"runtime_env": {}, "metadata": {"job_submission_id": "x", "job_name": "x"}})


@pytest.mark.parametrize(
    ("directory", "expected"),
    [
        ("runs/x", "{home}/runs/x"),
        ("file://runs/x", "{home}/runs/x"),
        ("local://runs/x", "{home}/runs/x"),
        ("/data/x", "/data/x"),
        ("file:///data/x", "/data/x"),
        ("~/x", "~/x"),
        ("memory://runs/x", "memory://runs/x"),
    ],
)
def test_relative_run_directories_of_jobs_outlive_their_working_directory(
    directory: str, expected: str, project: Path, monkeypatch: pytest.MonkeyPatch
):
    for text in ("", "no json", "{}", "[]", '{"metadata": null}', '{"metadata": {"job_name": "x"}}'):
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", text)
        assert job.lasting(directory) == directory
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", IN_JOB)
    assert job.lasting(directory) == expected.format(home=os.environ["HOME"])


def test_a_job_of_another_version_is_told(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Shown
):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", IN_JOB)
    options = ("train", "my cart's.yaml", "--set", "trainer.timesteps=1", "evaluation.episodes=0")
    monkeypatch.setenv("LOCKSTEP_SUBMITTED_BY", "99.0")
    code, lines, messages = command.run(*options)
    assert code == 0
    assert "submitted by Lockstep 99.0, but this cluster has" in messages
    (line,) = [line for line in lines if line.startswith("run directory: ")]
    assert line.startswith(f"run directory: {tmp_path}/home/runs/my cart's-20")


def test_progress_is_told_where_there_is_no_terminal(project: Path, monkeypatch: pytest.MonkeyPatch, command: Shown):
    options = ("train", "my cart's.yaml", "--set", "evaluation.episodes=0")
    _, lines, _ = command.run(*options)
    assert not any(line.startswith("timestep ") for line in lines)  # a short run stays tidy
    monkeypatch.setattr("trainer.callbacks.console._TELLING", 0.0)
    _, lines, _ = command.run(*options)
    told = [line for line in lines if line.startswith("timestep ")]
    assert [line.partition(":")[0] for line in told] == [f"timestep {i} of 120" for i in range(20, 121, 20)]
    assert told[-1].endswith(" environment steps/s")


def test_progress_is_one_line_for_any_number_of_scopes():
    def scalars(*returns: float | None) -> list[dict[str, float]]:
        rate = {"Rate / Environment steps per second": 10_670.0}
        return [rate | ({} if one is None else {"Episode / Return (mean)": one}) for one in returns]

    assert progress(scalars(112.52, 98.1)) == "returns 112.5 and 98.1; 21,340 environment steps/s"
    assert progress(scalars(-2.0)) == "return -2; 10,670 environment steps/s"
    assert progress(scalars(1.0, None, 3.0)) == "returns 1, (no episode ended) and 3; 32,010 environment steps/s"
    assert progress(scalars(None, None)) == "no episode ended; 21,340 environment steps/s"
    assert progress(scalars(*range(16))) == "returns 0 to 15 in 16 scopes; 170,720 environment steps/s"
