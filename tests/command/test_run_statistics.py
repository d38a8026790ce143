"""Wrappers with running statistics: the evaluation shows the stored agents what they were trained on, in every mode."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from gymnasium.wrappers import NormalizeObservation
from gymnasium.wrappers.utils import RunningMeanStd

from orchestrator.run_dir import RunDirectory
from tests.command.test_cli import COUNTING, Spared
from tests.support.command import RAY, run

LEVEL, LENGTH, STEPS = 1000.0, 3, 20


class LevelEnv(gymnasium.Env[Any, Any]):
    """Observation ``1000 + 10 row + step``; the reward is the action; an episode has three steps."""

    observation_space = Box(-np.inf, np.inf, (1,), np.float32)
    action_space = Box(-np.inf, np.inf, (1,), np.float32)

    def __init__(self, row: int) -> None:
        self.row, self.count = row, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.count = 0
        return self.observation(), {}

    def step(self, action: Any) -> Any:
        self.count += 1
        return self.observation(), float(action[0]), self.count == LENGTH, False, {}

    def observation(self) -> Any:
        return np.array([LEVEL + 10 * self.row + self.count], np.float32)


def build(num_envs: int, first_env: int) -> list[Any]:
    return [NormalizeObservation(LevelEnv(first_env + i)) for i in range(num_envs)]


class Echo(Spared):
    """Agent whose actions are its observations, so that returns tell what it saw."""

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        return observations, {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def trained(row: int) -> RunningMeanStd:
    """Return the statistics of a row after training, computed from its observations."""
    statistics, env = RunningMeanStd(shape=(1,), dtype=np.float32), LevelEnv(row)
    statistics.update(env.reset()[0][None])
    for _ in range(STEPS):
        observation, _, ended, *_ = env.step([0.0])
        statistics.update(observation[None])
        if ended:
            statistics.update(env.reset()[0][None])
    return statistics


def expected_returns(row: int) -> float:
    statistics = trained(row)
    observations = LEVEL + 10 * row + np.arange(LENGTH)
    return float(np.sum((observations - statistics.mean) / np.sqrt(statistics.var + 1e-8)))


ENV = f"env={{factory: '{__name__}:build', num_envs: 4}}"
AGENTS = f"agents=[{', '.join(2 * [f'{{agent: {__name__}:Echo}}'])}]"


def test_the_evaluation_sees_what_training_saw(
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    ray_cluster: None,
):
    options = [
        ENV,
        AGENTS,
        "checkpoint.keep_last=0",
        f"trainer.timesteps={STEPS}",
        "logging.interval=7",
        "evaluation.episodes=4",
    ]
    printed, returns = {}, {}
    for name, overrides in (("local", ()), ("ray", RAY)):
        folder = tmp_path / name
        code, lines, _ = run(capsys, "train", config, "--set", f"logging.directory={folder}", *options, *overrides)
        assert code == 0
        printed[name] = lines[-2:]
        evaluation = json.loads((folder / "evaluation.json").read_text())
        returns[name] = [scope["returns"] for scope in evaluation]
        # the two rows of a scope end together, twice: later episodes do not change the statistics
        expected = [[expected_returns(row) for row in rows] * 2 for rows in ((0, 1), (2, 3))]
        np.testing.assert_allclose(returns[name], expected, rtol=1e-3)
        for scope in range(2):
            (first, _) = RunDirectory(str(folder)).statistics(scope)
            (statistics,) = first.values()
            np.testing.assert_allclose(statistics["mean"], trained(2 * scope).mean, rtol=1e-6)
        assert run(capsys, "eval", folder)[:2] == (0, printed[name])
    assert (returns["local"], printed["local"]) == (returns["ray"], printed["ray"])
    assert (tmp_path / "local/agents/1/statistics.safetensors").read_bytes() == (
        tmp_path / "ray/agents/1/statistics.safetensors"
    ).read_bytes()
    # more rows than in training, and a run without stored statistics
    assert run(capsys, "eval", tmp_path / "ray", "--set", "env.num_envs=8")[0] == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    (tmp_path / "ray/agents/1/statistics.safetensors").unlink()
    assert run(capsys, "eval", tmp_path / "ray")[0] == 0
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "no statistics that fit are stored for NormalizeObservation.obs_rms" in record.getMessage()


def test_a_run_without_such_wrappers_stores_nothing(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "run"
    assert run(capsys, "train", config, "--set", f"logging.directory={folder}", COUNTING)[0] == 0
    assert [path.name for path in (folder / "agents/0").iterdir()] == ["state.safetensors"]
