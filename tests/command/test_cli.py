"""The lockstep command: each verb, locally and in Ray, interrupted, and with invalid input."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.run_dir import RunDirectory
from tests.support.command import RAY, run
from tests.support.processes import PATIENCE, ROOT, descendants, still_alive
from trainer.command import cli
from trainer.command.cli import main
from trainer.command.evaluation import evaluate
from trainer.command.run_config import load_config

WALL_CLOCK = re.compile(r".*(time \(ms\)|per second)$")


def returns(lines: list[str]) -> list[str]:
    return [line for line in lines if re.match(r"scope \d+: return", line)]


def scalars(run_dir: Path) -> dict[tuple[str, str, str], str]:
    with (run_dir / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return {(row["timestep"], row["scope"], row["tag"]): row["value"] for row in csv.DictReader(file)}


def reproducible(run_dir: Path) -> dict[tuple[str, str, str], str]:
    return {key: value for key, value in scalars(run_dir).items() if not WALL_CLOCK.match(key[2])}


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_same_run_locally_in_ray_and_from_its_own_configuration(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_cluster: None
):
    local, ray, again = tmp_path / "local", tmp_path / "ray", tmp_path / "again"
    before = files(ROOT / "runs")
    printed = {}
    for folder, source, overrides in ((local, config, ()), (ray, config, RAY), (again, local / "config.yaml", ())):
        code, lines, _ = run(capsys, "train", source, "--set", f"logging.directory={folder}", *overrides)
        assert code == 0
        printed[folder] = returns(lines)
        assert f"run directory: {folder}" in lines
    assert len(printed[local]) == 2
    assert printed[local] == printed[ray] == printed[again]
    for folder in (ray, again):
        assert reproducible(folder) == reproducible(local)
        for scope in (0, 1):
            stored = f"agents/{scope}/state.safetensors"
            assert (folder / stored).read_bytes() == (local / stored).read_bytes()
    assert [name for name in files(local) if "tfevents" not in name and "checkpoints/" not in name] == [
        ".lock",
        "agents/0/state.safetensors",
        "agents/1/state.safetensors",
        "config.yaml",
        "evaluation.json",
        "metrics.csv",
        "origin.json",
        "spaces.json",
        "status.json",
        "versions.json",
    ]
    assert json.loads((local / "status.json").read_text()) == {"state": "finished", "timestep": 120}
    assert json.loads((local / "versions.json").read_text())["python"] == sys.version.split()[0]
    assert files(ROOT / "runs") == before  # skrl's agents write nothing
    stored = json.loads((local / "evaluation.json").read_text())
    for folder in (local, ray):
        assert json.loads((folder / "evaluation.json").read_text()) == stored
        code, lines, _ = run(capsys, "eval", folder)
        assert (code, returns(lines)) == (0, printed[local])
        results = evaluate(load_config((folder / "config.yaml").read_text()), RunDirectory(str(folder)))
        assert [result.returns for result in results] == [scope["returns"] for scope in stored]  # to the last digit
    for index, (line, scope) in enumerate(zip(printed[local], stored, strict=True)):
        assert scope["scope"] == index
        assert len(scope["returns"]) == len(scope["lengths"]) == 5
        assert len(scope["weights"]) == 64
        match = re.fullmatch(
            rf"scope {index}: return (\S+) ± (\S+) \(5 episodes of length (\S+)\), weights {scope['weights'][:8]}", line
        )
        assert match is not None, line
        shown = np.mean(scope["returns"]), np.std(scope["returns"]), np.mean(scope["lengths"])
        assert [float(text) for text in match.groups()] == pytest.approx(shown, rel=5e-4)
        assert all(len(text.replace(".", "")) <= 4 for text in match.groups())


def test_tensorboard_reads_what_the_csv_says(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    assert run(capsys, "train", config, "--set", f"logging.directory={folder}", "logging.interval=40")[0] == 0
    rows = scalars(folder)
    tags = {tag for _, _, tag in rows}
    ours = {"Loss / Policy loss", "Learning / Learning rate", "Episode / Return (mean)", "Stats / Inference time (ms)"}
    assert ours | {"Reward / Total reward (mean)", "Rate / Environment steps per second"} <= tags
    for scope in ("0", "1"):
        events = EventAccumulator(str(folder / "tensorboard" / f"scope_{scope}")).Reload()
        seen = {
            (str(event.step), scope, tag): event.value
            for tag in events.Tags()["scalars"]
            for event in events.Scalars(tag)
        }
        expected = {
            key: pytest.approx(float(value), rel=1e-6, nan_ok=True) for key, value in rows.items() if key[1] == scope
        }
        assert seen == expected
        assert {step for step, _, _ in seen} == {"40", "80", "120"}
    # a scalar that skrl's agent tracked itself
    assert ("40", "1", "Reward / Total reward (mean)") in rows


def test_a_run_directory_is_not_written_over(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "mine").write_text("precious")
    code, _, message = run(capsys, "train", config, "--set", f"logging.directory={folder}")
    assert code == 2
    assert f"the run directory {str(folder)!r} already exists and is not empty; choose another one" in message
    assert files(folder) == ["mine"]


def test_an_agent_that_cannot_be_stored_is_refused_at_the_start(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "run"
    agent = "agents.1={agent: 'tests.support.agents:NullAgent', scope: 4}"
    code, _, message = run(capsys, "train", config, "--set", f"logging.directory={folder}", agent)
    assert code == 2
    assert "NullAgent cannot be stored: it has neither state_dict() and load_state_dict(state), nor" in message
    assert not folder.exists()


def test_eval_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, _, message = run(capsys, "eval", tmp_path)
    assert code == 2
    assert f"lockstep: {str(tmp_path)!r} is not a run directory: it has no readable config.yaml" in message
    code, _, message = run(capsys, "train", tmp_path / "missing.yaml")
    assert (code, "missing.yaml' cannot be read" in message) == (2, True)


class Spared:
    """Agent whose required members do nothing."""

    def __getattr__(self, name: str) -> Any:
        if name in ("init", "enable_training_mode", "pre_interaction", "record_transition", "post_interaction"):
            return lambda *args, **kwargs: None
        if name == "track_data":
            return lambda tag, value: None
        raise AttributeError(name)


class Failing(Spared):
    """Agent that fails at timestep 7; what it learnt before must be stored."""

    def __init__(self) -> None:
        self.count = 0

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        import torch

        if timestep == 7:
            raise ValueError("seven")
        self.count += 1
        return torch.zeros(len(observations), 1), {}

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


@pytest.mark.parametrize("overrides", [(), RAY], ids=["local", "ray"])
def test_a_failing_run_says_where_and_stores_what_it_can(
    overrides: tuple[str, ...], config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_cluster: None
):
    folder = tmp_path / "run"
    agents = f"agents=[{{agent: '{__name__}:Failing'}}]"
    code, _, message = run(capsys, "train", config, "--set", f"logging.directory={folder}", agents, *overrides)
    assert code == 1
    assert "phase act, timestep 7" in message
    assert "ValueError: seven" in message
    assert json.loads((folder / "status.json").read_text()) == {"state": "failed", "timestep": 7}
    code, lines, message = run(capsys, "eval", folder, "--set", "evaluation.max_timesteps=5")
    assert (code, len(lines)) == (0, 1)
    assert lines[0].startswith("scope 0: no episode ended, weights ")


class Counting(Spared):
    """Agent that counts its timesteps. ``init`` makes the counter, as some agents make their networks."""

    def init(self, *, trainer_cfg: Any = None) -> None:
        self.count = 0

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        import torch

        return torch.full((len(observations), 1), int(self.count > 0)), {}

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


COUNTING = f"agents=[{{agent: '{__name__}:Counting'}}]"


@pytest.mark.parametrize(("broken", "call"), [("write_agents", 4), ("_append", 2), ("_write_events", 3)])
def test_a_write_that_fails_once_costs_no_agent(
    broken: str, call: int, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from orchestrator.metrics import MetricsWriter
    from workers.frameworks import load_framework

    owner: Any = RunDirectory if broken == "write_agents" else MetricsWriter
    working, calls = getattr(owner, broken), []

    def once_not(self: Any, *arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == call:
            raise OSError(28, "No space left on device")
        working(self, *arguments)

    monkeypatch.setattr(owner, broken, once_not)
    folder = tmp_path / "run"
    options = [f"logging.directory={folder}", "logging.interval=40", COUNTING]
    assert main(["train", str(config), "--set", *options]) == 0
    assert json.loads((folder / "status.json").read_text()) == {"state": "finished", "timestep": 120}
    agent = Counting()
    RunDirectory(str(folder)).load_agent(agent, 0, load_framework("torch"))
    assert agent.count == 120


def test_what_init_makes_is_there_before_the_stored_state(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "run"
    assert run(capsys, "train", config, "--set", f"logging.directory={folder}", COUNTING)[0] == 0
    # a trained agent always moves right, an untrained one always left
    code, (line,), _ = run(capsys, "eval", folder)
    untrained = tmp_path / "untrained"
    run(capsys, "train", config, "--set", f"logging.directory={untrained}", COUNTING, "trainer.timesteps=0")
    assert (code, line.split(" weights ")[0]) != (0, run(capsys, "eval", untrained)[1][0].split(" weights ")[0])


@pytest.mark.parametrize(
    ("overrides", "number"),
    [((), signal.SIGINT), (RAY, signal.SIGINT), ((), signal.SIGTERM)],
    ids=["local-ctrl-c", "ray-ctrl-c", "local-terminated"],
)
def test_a_signal_in_the_middle(
    overrides: tuple[str, ...],
    number: signal.Signals,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    before = {process.pid for process in descendants()}
    folder = tmp_path / "run"
    arguments = [
        "train",
        config,
        "--set",
        f"logging.directory={folder}",
        "trainer.timesteps=10000000",
        "agents.1.cfg={}",
    ]
    process = started(*arguments, "agents.1.agent=ppo", "trainer.timesteps=10000000", *overrides)
    wait_for(process, lambda: (folder / "metrics.csv").exists())
    os.killpg(process.pid, number)  # like Ctrl-C in a terminal
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number, err
    assert "stopping after the iterations under way" in err
    assert "Traceback" not in err
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "interrupted"
    assert f"stopped at timestep {status['timestep']}; the agents are stored in {folder}" in out
    assert {int(timestep) for timestep, _, _ in scalars(folder)} >= {20, status["timestep"]}
    code, lines, _ = run(capsys, "eval", folder, "--set", "evaluation.episodes=2")
    assert (code, len(returns(lines))) == (0, 2)
    assert f"the run is interrupted; the stored agents are from timestep {status['timestep']}" in caplog.text
    left = [one for one in descendants() if one.pid not in before]
    assert not still_alive(left)


def started(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(process: subprocess.Popen[str], ready: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        select.select([], [], [], 0.05)


def test_a_line_that_the_terminal_lacks_characters_for(monkeypatch: pytest.MonkeyPatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(cli, "parsed", lambda _: argparse.Namespace(verb=lambda _: iter(["return 500 ± 0", "end"])))
    assert cli.main([]) == 0
    assert output.buffer.getvalue() == b"return 500 \\xb1 0\nend\n"
