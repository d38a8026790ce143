"""Run directories from before `PPOCfg.action_bounds`, whose configuration and agents do not mention it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import yaml
from gymnasium.spaces import Box

from tests.support.command import run
from tests.support.ppo import BOUNDED, HALF_BOUNDED
from workers.frameworks import load_framework
from workers.storage.state_file import decode_state, encode_state

SPACES = {"bounded": BOUNDED, "half": HALF_BOUNDED}


class Sums(gymnasium.Env[Any, Any]):
    """Rewards the sum of the elements of the action, whatever the space says; episodes have 5 steps."""

    observation_space = Box(-1.0, 1.0, (3,), np.float32)

    def __init__(self, action_space: Box) -> None:
        self.action_space = action_space
        self.step_count = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.step_count = 0
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> Any:
        self.step_count += 1
        observation = self.np_random.uniform(-1.0, 1.0, 3).astype(np.float32)
        return observation, float(action.sum()), False, self.step_count == 5, {}


def build(num_envs: int, first_env: int, space: str) -> list[Sums]:
    return [Sums(SPACES[space]) for _ in range(num_envs)]


@pytest.mark.parametrize("space", list(SPACES))
def test_an_old_run_is_evaluated_without_bounds(space: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    cfg = {"rollouts": 4, "mini_batches": 1, "hidden_sizes": [4], "action_bounds": "none"}
    config: dict[str, Any] = {
        "env": {"factory": f"{__name__}:build", "num_envs": 2, "kwargs": {"space": space}},
        "agents": [{"agent": "ppo", "cfg": cfg}],
        "trainer": {"timesteps": 12, "headless": True, "disable_progressbar": True},
        "evaluation": {"episodes": 2},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    run_dir = tmp_path / "run"
    code, trained, _ = run(capsys, "train", tmp_path / "config.yaml", "--set", f"logging.directory={run_dir}")
    assert code == 0
    results = []
    for value in (None, "clip"):
        rewrite(run_dir, value)
        code, [line], _ = run(capsys, "eval", run_dir, "--trust")  # it was changed
        assert code == 0
        results.append(line.split(", weights")[0])
    assert results[0] == trained[-1].split(", weights")[0]
    assert results[1] != results[0]


def rewrite(run_dir: Path, action_bounds: str | None) -> None:
    """Remove `action_bounds` from the configuration, and set it in the stored agent; None removes it there, too."""
    stored = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    stored["agents"][0]["cfg"].pop("action_bounds", None)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(stored), encoding="utf-8")
    path, framework = run_dir / "agents" / "0" / "state.safetensors", load_framework("torch")
    state = decode_state(path.read_bytes(), framework)
    state.pop("action_bounds", None)
    if action_bounds is not None:
        state["action_bounds"] = action_bounds
    path.write_bytes(encode_state(state, framework))
