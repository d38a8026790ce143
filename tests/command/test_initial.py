"""`agents.0.init`: an agent starts from that of another run, with other scopes, or in another framework."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.run_dir import RunDirectory
from tests.command.test_cli import Counting
from tests.command.test_resume import short, train
from tests.support.command import RAY, Shown
from tests.support.dying import results
from tests.support.parity import assert_same
from workers.frameworks import load_framework
from workers.storage.state_file import decode_state

__all__ = ["short"]

NUMPY = load_framework("numpy")


def learnt(folder: Path, scope: int) -> Any:
    return in_single_precision(decode_state(RunDirectory(str(folder)).agent_file(scope)[1], NUMPY))


def in_single_precision(tree: Any) -> Any:
    """Return a state as JAX keeps it."""
    if isinstance(tree, dict):
        return {name: in_single_precision(value) for name, value in tree.items()}
    return np.float32(tree)


def started(command: Shown, config: Path, folder: Path, *overrides: str, code: int = 0) -> tuple[list[str], str]:
    ended, lines, messages = command.run("train", config, "--set", f"logging.directory={folder}", *overrides)
    assert ended == code, messages
    return lines, messages


@pytest.mark.parametrize(
    ("framework", "kind"),
    [("torch", ()), ("jax", ()), ("warp", ()), ("torch", RAY)],
    ids=["torch", "jax", "warp", "ray"],
)
def test_agents_start_from_those_of_another_run(
    framework: str, kind: tuple[str, ...], short: Path, tmp_path: Path, command: Shown, request: pytest.FixtureRequest
):
    if kind:
        request.getfixturevalue("ray_cluster")
    source, folder = tmp_path / "source", tmp_path / "run"
    train(command, short, source, "evaluation.episodes=0")
    overrides = ["env.num_envs=5", "agents.0.scope=2", f"agents.0.init={source}/agents/1", f"agents.1.init={source}"]
    overrides += ["trainer.timesteps=0", "evaluation.episodes=0", f"framework={framework}", *kind]
    lines, _ = started(command, short, folder, *overrides)
    for scope in (0, 1):
        told = (
            f"agents.{scope} starts from {source}/agents/1, after 60 timesteps in torch, with its models, optimizer, "
        )
        told += "learning_rate. Not carried over: rollouts, replay memories, random streams"
        assert told in lines
        assert_same(learnt(folder, scope), learnt(source, 1))


def test_a_run_that_started_from_another_is_resumed_without_it(short: Path, tmp_path: Path, command: Shown):
    source, whole, folder = tmp_path / "source", tmp_path / "whole", tmp_path / "run"
    train(command, short, source)
    for target, timesteps in ((whole, 90), (folder, 40)):
        started(command, short, target, f"agents.0.init={source}", f"trainer.timesteps={timesteps}")
    shutil.rmtree(source)
    code, lines, _ = command.run("resume", folder, "--set", "trainer.timesteps=90")
    assert (code, "resumed at timestep 40" in lines) == (0, True)
    assert_same(results(folder), results(whole))
    shutil.rmtree(folder / "checkpoints/000000000084")
    (folder / "checkpoints/000000000090").rename(folder / "checkpoints/000000000000")
    assert command.run("resume", folder, "--set", "trainer.timesteps=95")[0] == 0  # from what is called the first
    assert command.run("eval", folder)[0] == 0


REFUSED = {
    "agents.0.init=nowhere": "agents.0.init: 'nowhere' is not a run directory",
    "agents.0.init={source}/agents/2": "agents.0.init: {source}/agents/2 has none of state.safetensors, agent.bin",
    "agents.0={{agent: ppo, scope: 1, init: '{source}', cfg: {{hidden_sizes: [9]}}}}": "agents.0.init: PPO cannot load",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_no_agent_can_start_from(override: str, short: Path, tmp_path: Path, command: Shown):
    source = tmp_path / "source"
    train(command, short, source, "evaluation.episodes=0")
    _, messages = started(command, short, tmp_path / "run", override.format(source=source), code=2)
    assert REFUSED[override].format(source=source) in messages
    assert not (tmp_path / "run").exists()


class Own(Counting):
    """Agent that is stored by its own ``save``."""

    state_dict = load_state_dict = property()

    def save(self, path: str) -> None:
        Path(path).write_text(str(self.count))

    def load(self, path: str) -> None:
        self.count = int(Path(path).read_text())


def test_an_agent_that_could_run_code_is_only_loaded_from_this_user(short: Path, tmp_path: Path, command: Shown):
    source = tmp_path / "source"
    options = [f"agents=[{{agent: '{__name__}:Own'}}]", "checkpoint.keep_last=0", "evaluation.episodes=0"]
    train(command, short, source, *options)
    options += [f"agents.0.init={source}", "trainer.timesteps=5"]
    lines, _ = started(command, short, tmp_path / "run", *options)
    assert (
        f"agents.0 starts from {source}/agents/0, after 60 timesteps in torch, with whatever its save() has" in lines[2]
    )
    assert (tmp_path / "run/agents/0/agent.bin").read_text() == "65"
    (source / "agents/0/agent.bin").write_text("7")
    _, messages = started(command, short, tmp_path / "other", *options, code=2)
    assert "agents/0/agent.bin of " in messages
    assert "is not known to be of this user" in messages
    arguments = ["train", short, "--trust", "--set", f"logging.directory={tmp_path}/other", *options]
    assert command.run(*arguments)[0] == 0
    assert (tmp_path / "other/agents/0/agent.bin").read_text() == "12"
    assert json.loads((tmp_path / "other/status.json").read_text())["state"] == "finished"
