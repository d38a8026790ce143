"""The examples run, and the main job prints the same lines in both modes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.processes import ROOT, python
from trainer.command.cli import main

EXAMPLES = ROOT / "examples"


@pytest.mark.parametrize("name", ["local.py", "ray_actors.py"])
def test_library_call_is_short_and_runs(name):
    assert len((EXAMPLES / name).read_text().splitlines()) < 40
    done = python(EXAMPLES / name)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-2].startswith("environments 0:32: ")
    assert lines[-1].startswith("environments 32:64: ")


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.yaml")))
def test_configurations_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.chdir(ROOT)
    short = [f"logging.directory={tmp_path / 'run'}", "trainer.timesteps=70", "evaluation.max_timesteps=70"]
    assert main(["train", str(EXAMPLES / f"{name}.yaml"), "--set", *short, "evaluation.episodes=1"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("scope ")]
    config = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text(encoding="utf-8"))
    assert len(lines) == len(config["agents"])


def test_main_job_prints_the_same_lines_in_both_modes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, ray_cluster: None
):
    monkeypatch.chdir(ROOT)
    lines = {}
    for kind in ("local", "ray"):
        changes = ["trainer.timesteps=300", "logging.interval=100", "seed=5", f"orchestrator.kind={kind}"]
        config = str(EXAMPLES / "cartpole.yaml")
        assert main(["train", config, "--set", f"logging.directory={tmp_path / kind}", *changes]) == 0
        lines[kind] = capsys.readouterr().out.splitlines()[-2:]
    assert lines["local"] == lines["ray"]
    number = r"\d+(\.\d+)?"
    for index, line in enumerate(lines["local"]):
        statistics = rf"return {number} ± {number} \(100 episodes of length {number}\)"
        assert re.fullmatch(rf"scope {index}: {statistics}, weights [0-9a-f]{{8}}", line)
    assert len({(tmp_path / kind / "evaluation.json").read_text(encoding="utf-8") for kind in lines}) == 1
    assert lines["local"][0].split()[-1] != lines["local"][1].split()[-1]
