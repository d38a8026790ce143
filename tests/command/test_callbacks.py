"""Callbacks of a configuration: built by name or import path, in a run, and in one that is resumed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.run_dir import RunDirectory
from tests.support.command import run
from tests.support.dying import results
from trainer.callbacks import Callback, EarlyStopping, Evaluator, Loop, Population
from trainer.callbacks.loggers import Logger
from trainer.callbacks.view import duration
from trainer.command.callbacks import build_callbacks
from trainer.command.run_config import load_config
from trainer.command.trust import code
from trainer.evaluation import Evaluated
from workers.errors import ConfigError

CONFIG: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "num_envs": 4, "kwargs": {"max_episode_steps": 50}},
    "agents": [{"scope": 2, "cfg": {"rollouts": 16, "hidden_sizes": [8], "learning_rate": 1e-3}}] * 2,
    "trainer": {"timesteps": 120, "headless": True, "disable_progressbar": True},
    "logging": {"interval": 20},
    "evaluation": {"every": 30, "episodes": 4},
    "checkpoint": {"interval": 25},
}


class Counter(Callback):
    """Callback that stops at the second evaluation."""

    def __init__(self, limit: int = 2) -> None:
        self.limit, self.count = limit, 0

    def on_evaluation(self, loop: Loop, evaluation: Evaluated) -> None:
        self.count += 1
        if self.count == self.limit:
            loop.stop("enough\x1b[2J")


def not_a_callback() -> int:
    return 3


def calls_lockstep_wrongly() -> None:
    duration("long")  # type: ignore[arg-type]


def trained(capsys: pytest.CaptureFixture[str], folder: Path, *overrides: str, **changes: Any) -> list[str]:
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({**CONFIG, **changes}))
    number, lines, errors = run(capsys, "train", path, "--set", f"logging.directory={folder}", *overrides)
    assert number == 0, errors
    return lines


def rows(folder: Path, tag: str) -> list[tuple[int, int, float]]:
    lines = (folder / "metrics.csv").read_text().splitlines()
    found = [line.split(",") for line in lines if f",{tag}," in line]
    return [(int(timestep), int(scope), float(value)) for timestep, scope, _, value in found]


def test_evaluations_are_in_the_metrics_and_the_best_checkpoints_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "run"
    checkpoint = {"interval": 25, "keep_last": 1, "keep_best": 2}
    evaluation = {"every": 10, "episodes": 4}
    trained_lines = trained(capsys, folder, checkpoint=checkpoint, evaluation=evaluation)
    timesteps = range(10, 121, 10)
    found = rows(folder, "Evaluation / Return (mean)")
    assert [(timestep, scope) for timestep, scope, _ in found] == [(n, i) for n in timesteps for i in (0, 1)]
    final = json.loads((folder / "evaluation.json").read_text())
    for scope, result in enumerate(final):  # the evaluation at the end is that of the last timestep
        assert found[-2 + scope][2] == pytest.approx(sum(result["returns"]) / 4)
    means = {timestep: (found[2 * i][2] + found[2 * i + 1][2]) / 2 for i, timestep in enumerate(timesteps)}
    ranked = sorted(means, key=lambda timestep: (-means[timestep], timestep))
    kept = sorted(int(path.name) for path in (folder / "checkpoints").iterdir())
    assert kept == sorted({120, *ranked[:2]})
    assert json.loads((folder / "best" / "status.json").read_text())["timestep"] == ranked[0]
    number, lines, errors = run(capsys, "eval", folder / "best")
    assert number == 0, errors
    returns = [float(re.search("return (.*) ±", line)[1]) for line in lines]  # type: ignore[index]
    assert sum(returns) / 2 == pytest.approx(means[ranked[0]], rel=1e-3)
    assert sum(line.startswith("evaluation after ") for line in trained_lines) == 12


def test_evaluations_change_no_number_of_the_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    one = trained(capsys, tmp_path / "one")
    other = trained(capsys, tmp_path / "other", evaluation={"episodes": 4})
    assert [line for line in one if line.startswith("scope ")] == [line for line in other if line.startswith("scope ")]
    assert rows(tmp_path / "one", "Loss / Policy loss") == rows(tmp_path / "other", "Loss / Policy loss")


def test_a_run_that_a_callback_stops_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "run"
    lines = trained(capsys, folder, callbacks=[{"callback": f"{__name__}:Counter", "cfg": {"limit": 2}}])
    assert "stopped at timestep 60: enough\\x1b[2J" in lines
    assert json.loads((folder / "status.json").read_text())["timestep"] == 60
    number, lines, errors = run(capsys, "resume", folder)
    assert number == 0, errors
    assert "is finished, because 'enough\\x1b[2J'; to train on, change the callbacks" in lines[0]
    assert (folder / "evaluation.json").exists()
    number, lines, errors = run(capsys, "resume", folder, "--set", "callbacks=[]")
    assert number == 0, errors
    assert json.loads((folder / "status.json").read_text()) == {"state": "finished", "timestep": 120}


def test_callbacks_by_name():
    callbacks = [
        {"callback": "early_stopping", "cfg": {"patience": 3}},
        {"callback": "population", "cfg": {"every": 40, "hyperparameters": {"learning_rate": [1e-5, 1e-2]}}},
        {"callback": "wandb", "cfg": {"project": "mine"}},
    ]
    config = CONFIG | {
        "callbacks": callbacks,
        "env": {"id": "CartPole-v1", "num_envs": 4, "kwargs": {"password": "hunter22"}},
    }
    built = build_callbacks(load_config(yaml.safe_dump(config)))
    assert [type(one) for one in built[:2]] == [EarlyStopping, Population]
    _, _, logger, evaluator = built  # which evaluates what callbacks have changed
    assert isinstance(evaluator, Evaluator)
    assert evaluator.every == 30
    assert isinstance(logger, Logger)
    assert logger._options == {"project": "mine"}
    assert logger._config["env"]["kwargs"] == {"password": "***"}


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        ({"callback": "early"}, r"callbacks\.0\.callback is 'early'; expected one of 'early_stopping'"),
        ({"callback": "early_stoping"}, r"'package\.module:name'; did you mean 'early_stopping'\?$"),
        ({"callback": "early_stopping"}, r"callbacks\.0\.cfg: EarlyStopping has neither"),
        ({"callback": "early_stopping", "cfg": {"target": "475"}}, r"callbacks\.0\.cfg: target is '475'; expected a"),
        (
            {"callback": "population", "cfg": {"every": 40, "hyperparameters": {"learning_rate": 0.01}}},
            r"callbacks\.0\.cfg: hyperparameters\['learning_rate'\] is 0\.01; expected the least and the largest",
        ),
        (
            {"callback": "population", "cfg": {"every": 4, "hyperparameters": {"learning_rate": [0.01, 0.1]}}},
            r"callbacks\.0: metrics are collected every 20 timesteps",
        ),
        (
            {"callback": "early_stopping", "cfg": {"patient": 1}},
            r"called with patient: TypeError: .* argument 'patient'",
        ),
        ({"callback": "nowhere:Callback"}, r"callbacks\.0\.callback is 'nowhere:Callback', which cannot be imported"),
        ({"callback": f"{__name__}:calls_lockstep_wrongly"}, r"TypeError: .* \(at .*test_callbacks\.py:\d+\)$"),
        ({"callback": f"{__name__}:not_a_callback"}, "returned a int; expected a Callback"),
    ],
)
def test_refusals(callback: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        build_callbacks(load_config(yaml.safe_dump(CONFIG | {"callbacks": [callback]})))
    assert "trainer/" not in str(caught.value)  # a place in Lockstep says nothing to a user


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation": {"every": 0}}, r"evaluation\.every is 0"),
        ({"evaluation": {"every": 5, "episodes": 0}}, r"evaluation\.every is 5; expected null"),
        ({"evaluation": {}, "checkpoint": {"keep_best": 1}}, r"keep_best is 1; expected 0, or evaluation\.every"),
        ({"checkpoint": {"keep_best": 1, "keep_last": 0}}, "expected 0 if checkpoint.keep_last is 0"),
        ({"checkpoint": {"keep_best": -1}}, "keep_best is -1"),
    ],
)
def test_keys_that_do_not_fit(changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        load_config(yaml.safe_dump(CONFIG | changes))


class Fails(Callback):
    """Callback that raises something at one place."""

    every = 60

    def __init__(self, at: str, interrupts: bool = False) -> None:
        self.at, self.error = at, KeyboardInterrupt() if interrupts else ValueError("mine")

    def on_start(self, loop: Loop) -> None:
        if self.at == "start":
            raise self.error

    def on_step(self, loop: Loop) -> None:
        if self.at == "step" and loop.timestep == 60:
            raise self.error

    def on_end(self, loop: Loop) -> None:
        if self.at == "end":
            raise self.error


def failing(at: str, **cfg: Any) -> list[dict[str, Any]]:
    return [{"callback": f"{__name__}:Fails", "cfg": {"at": at, **cfg}}]


@pytest.mark.parametrize(("at", "timestep"), [("start", 0), ("step", 60), ("end", 120)])
def test_a_run_whose_callback_fails_has_failed(
    at: str, timestep: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path, folder = tmp_path / "run.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump({**CONFIG, "callbacks": failing(at)}))
    number, _, errors = run(capsys, "train", path, "--set", f"logging.directory={folder}")
    assert number == 1
    assert "ValueError: mine" in errors
    status = json.loads((folder / "status.json").read_text())
    assert status == {"state": "failed", "timestep": timestep}
    kept = [int(path.name) for path in (folder / "checkpoints").iterdir()] if at != "start" else []
    assert 60 not in kept  # callbacks after it were not called in timestep 60


@pytest.mark.parametrize("interval", [1000, 25])
def test_what_was_written_after_the_last_checkpoint_is_not_there_twice(
    interval: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    trained(capsys, tmp_path / "whole", checkpoint={"interval": interval})
    path, folder = tmp_path / "run.yaml", tmp_path / "run"
    changes = {"callbacks": failing("step", interrupts=True), "checkpoint": {"interval": interval}}
    path.write_text(yaml.safe_dump({**CONFIG, **changes}))
    number, _, _ = run(capsys, "train", path, "--set", f"logging.directory={folder}")
    assert number == 130
    assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"
    number, lines, errors = run(capsys, "resume", folder, "--set", "callbacks=[]")
    assert number == 0, errors
    assert f"resumed at timestep {50 if interval == 25 else 0}" in lines
    assert results(folder) == results(tmp_path / "whole")


def test_code_of_callbacks_is_for_training_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "run"
    trained(capsys, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["callbacks"] = [{"callback": "theirs:Callback"}, {"callback": "wandb", "cfg": {"project": "theirs"}}]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))  # it is not signed any more
    assert code(load_config(yaml.safe_dump(config))) == {}
    number, _, errors = run(capsys, "eval", folder)
    assert number == 0, errors
    number, _, errors = run(capsys, "resume", folder)
    assert number == 2
    assert "callbacks.0.callback = 'theirs:Callback', callbacks.1.callback = 'wandb'" in errors


def test_the_last_metrics_of_a_run_that_failed_at_its_end_are_there_after_a_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    odd = {**CONFIG["trainer"], "timesteps": 110}
    trained(capsys, tmp_path / "whole", trainer=odd)
    path, folder = tmp_path / "run.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump({**CONFIG, "trainer": odd, "callbacks": failing("end")}))
    number, _, _ = run(capsys, "train", path, "--set", f"logging.directory={folder}")
    assert number == 1
    number, lines, errors = run(capsys, "resume", folder, "--set", "callbacks=[]")
    assert number == 0, errors
    assert "resumed at timestep 110" in lines
    assert results(folder) == results(tmp_path / "whole")


class Diverges(Callback):
    """Callback that makes an agent hold NaN."""

    every = 45

    def on_step(self, loop: Loop) -> None:
        if loop.timestep == 45:
            agent = loop.trainer.agents[0]
            state = agent.state_dict()
            state["models"]["policy.network.0.weight"][:] = float("nan")
            agent.load_state_dict(state)


def test_an_agent_that_diverges_is_in_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, folder = tmp_path / "run.yaml", tmp_path / "run"
    changes = {
        "callbacks": [{"callback": f"{__name__}:Diverges"}],
        "checkpoint": {"interval": 45, "keep_last": 1},
        "evaluation": {"episodes": 0},
    }
    path.write_text(yaml.safe_dump({**CONFIG, **changes}))
    number, _, errors = run(capsys, "train", path, "--set", f"logging.directory={folder}")
    assert number == 1
    assert "holds NaN" in errors
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["000000000000"]
    number, _, errors = run(capsys, "resume", folder, "--set", "callbacks=[]")
    assert number == 0, errors


def test_a_full_disk_while_the_best_agents_are_stored_does_not_end_the_run(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    write = RunDirectory.write

    def full(self: RunDirectory, name: str, content: str | bytes) -> None:
        if self.url.endswith("/best"):
            raise OSError("no space left")
        write(self, name, content)

    monkeypatch.setattr(RunDirectory, "write", full)
    trained(capsys, tmp_path / "run")
    assert "cannot be written; training continues" in caplog.text
