"""Every example runs, in a short form; and the main job prints the same lines in both modes."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.processes import ROOT, python
from tests.support.schedule import only_long
from trainer.command.cli import main

EXAMPLES = ROOT / "examples"
SCOPES = r"environments 0:32: \d+ .*\nenvironments 32:64: \d+ .*\n"
RETURNS = r"timestep 20: return -\d+, -\d+\ntimestep 40: return -\d+, -\d+\n"
SCRIPTS = {"local": SCOPES, "ray_actors": SCOPES, "torch_env": RETURNS, "jax_env": RETURNS}
"""What the scripts without arguments print at their end."""

OURS = ("rollouts=8", "learning_epochs=1")
SHORT = {"ppo": OURS, "ippo": OURS, "mappo": OURS, "examples.skrl_ppo:make_agent": OURS[:1]}
"""Options that make the updates of an agent small."""

BESIDE = {"population": ("evaluation.every=12", "callbacks.0.cfg.every=12")}
"""Options that make callbacks act within a short run."""


def configuration(name: str) -> Any:
    return yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text(encoding="utf-8"))


def train(name: str, run_dir: Path, *changes: str) -> None:
    """Train for three short rollouts."""
    agents = [agent.get("agent", "ppo") for agent in configuration(name)["agents"]]
    options = [f"agents.{index}.cfg.{one}" for index, agent in enumerate(agents) for one in SHORT.get(agent, ())]
    short = ["trainer.timesteps=24", "evaluation.episodes=5", "evaluation.max_timesteps=50", *options]
    short += [*BESIDE.get(name, ()), *changes]
    settings = [f"logging.directory={run_dir}", "trainer.disable_progressbar=true", *short]
    assert main(["train", str(EXAMPLES / f"{name}.yaml"), "--set", *settings]) == 0


def run_script(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a script as Python does, with short episodes and few timesteps."""
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    for constant, value in (("TIMESTEPS", 40), ("STEPS_PER_EPISODE", 20)):
        text = re.sub(rf"^{constant} = \d+$", f"{constant} = {value}", text, flags=re.MULTILINE)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    exec(compile(text, f"{name}.py", "exec"), {"__name__": "__main__"})


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_every_example_is_run():
    texts = [path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.yaml")]
    used = set(re.findall(r"^[^#\n]*\bexamples\.(\w+):", "\n".join(texts), re.MULTILINE))
    assert {path.stem for path in EXAMPLES.glob("*.py")} == used | {*SCRIPTS, "use_policy"}
    assert {path.suffix for path in EXAMPLES.iterdir()} - {""} == {".py", ".yaml"}  # "" is __pycache__


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_run(name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any, ray_cluster: None):
    run_script(name, monkeypatch=monkeypatch)
    assert re.search(SCRIPTS[name] + "$", capsys.readouterr().out)


@pytest.mark.parametrize("name", ["local", "ray_actors"])
def test_a_library_call_is_short(name: str):
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 40


@only_long
@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_run_as_they_are(name: str):
    done = python(EXAMPLES / f"{name}.py")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.yaml")))
def test_configurations_run(name: str, tmp_path: Path, capsys: Any):
    train(name, tmp_path / "run")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("scope ")]
    assert len(lines) == len(configuration(name)["agents"])


def test_main_job_prints_the_same_lines_in_both_modes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, ray_cluster: None
):
    lines = {}
    for kind in ("local", "ray"):
        train("cartpole", tmp_path / kind, "seed=5", f"orchestrator.kind={kind}", "evaluation.max_timesteps=500")
        lines[kind] = capsys.readouterr().out.splitlines()[-2:]
    assert lines["local"] == lines["ray"]
    number = r"\d+(\.\d+)?"
    for index, line in enumerate(lines["local"]):
        statistics = rf"return {number} ± {number} \(5 episodes of length {number}\)"
        assert re.fullmatch(rf"scope {index}: {statistics}, weights [0-9a-f]{{8}}", line)
    assert len({(tmp_path / kind / "evaluation.json").read_text(encoding="utf-8") for kind in lines}) == 1
    assert lines["local"][0].split()[-1] != lines["local"][1].split()[-1]
    run_script("use_policy", str(tmp_path / "local"), monkeypatch=monkeypatch)
    assert re.fullmatch(r"return \d+\.0\n", capsys.readouterr().out)
