"""`lockstep resume`: what it goes on from, what it refuses, and disks that fail."""

from __future__ import annotations

import fcntl
import json
import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml

from orchestrator.run_dir import RunDirectory
from tests.command.test_cli import Counting
from tests.support.command import RAY, Shown
from tests.support.dying import results
from tests.support.parity import assert_same
from tests.support.schedule import examples
from tests.support.strikes import Killed, Strikes, killing_writes
from trainer.command.cli import main

AGENT = {"agent": "ppo", "cfg": {"rollouts": 16, "mini_batches": 2, "learning_epochs": 2, "hidden_sizes": [8]}}
CONFIG: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "num_envs": 4},
    "agents": [{**AGENT, "scope": 1}, {**AGENT, "scope": 3}],
    "trainer": {"timesteps": 60, "headless": True, "disable_progressbar": True},
    "logging": {"interval": 20},
    "checkpoint": {"interval": 14},
    "evaluation": {"episodes": 2, "max_timesteps": 30},
}


@pytest.fixture
def short(tmp_path: Path) -> Path:
    path = tmp_path / "short.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


def train(command: Shown, config: Path, folder: Any, *overrides: str, code: int = 0) -> str:
    ended, _, messages = command.run("train", config, "--set", f"logging.directory={folder}", *overrides)
    assert ended == code, messages
    return messages


def train_both(command: Shown, config: Path, folder: Path, timesteps: int, *overrides: str) -> tuple[Path, Path]:
    """Train a run of so many timesteps, and a shorter one with these overrides; return where they are."""
    whole, shorter = folder / "whole", folder / "run"
    train(command, config, whole, f"trainer.timesteps={timesteps}")
    train(command, config, shorter, *overrides)
    return whole, shorter


def saved(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_a_finished_run_is_extended(short: Path, tmp_path: Path, command: Shown):
    whole, folder = train_both(command, short, tmp_path, 130)
    assert saved(folder) == [56, 60]
    code, lines, _ = command.run("resume", folder)
    told = f"{folder} is finished; to train on, set trainer.timesteps to more than 60"
    assert (code, lines) == (0, [told, f"run directory: {folder}"])
    code, lines, _ = command.run("resume", folder, "--set", "trainer.timesteps=130")
    assert code == 0
    assert "resumed at timestep 60" in lines
    assert_same(results(folder), results(whole))
    assert saved(folder) == [126, 130]
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["timesteps"] == 130


def test_a_run_goes_on_in_ray(short: Path, tmp_path: Path, command: Shown, ray_cluster: None):
    whole, folder = train_both(command, short, tmp_path, 130)
    assert command.run("resume", folder, "--set", "trainer.timesteps=130", *RAY)[0] == 0
    assert_same(results(folder), results(whole))


def test_training_submitted_again_goes_on(short: Path, tmp_path: Path, command: Shown):
    folder = tmp_path / "run"
    options = [f"logging.directory={folder}", "trainer.timesteps=30"]
    for timesteps in (30, 60):
        options[1] = f"trainer.timesteps={timesteps}"
        code, lines, _ = command.run("train", short, "--resume", "--set", *options)
        assert code == 0
        assert ("resumed at timestep 30" in lines) == (timesteps == 60)
    train(command, short, tmp_path / "whole")
    assert_same(results(folder), results(tmp_path / "whole"))
    code, _, messages = command.run(
        "train", short, "--resume", "--set", *options, "seed=4", "env.kwargs.max_episode_steps=8"
    )
    assert code == 2
    assert "a run can only be resumed with the env.kwargs.max_episode_steps, seed that it was begun with" in messages


REFUSED = {
    "seed=1": "with the seed that it was begun with; start a new run instead",
    "framework=jax": "with the framework that it was begun with",
    "env.kwargs.max_episode_steps=5": "with the env.kwargs.max_episode_steps that",
    "agents.1.cfg.learning_rate=1e-4": "with the agents.1.cfg.learning_rate that",
    "checkpoint.interval=0": "checkpoint.interval: 0 is given; expected a number of timesteps, a time such as 90s",
    "checkpoint.interval=5 parsecs": "'5 parsecs' is given; expected",
    "checkpoint.keep_last=-1": "checkpoint.keep_last is -1; expected an integer of at least 0",
}


def test_what_a_run_cannot_be_resumed_with(short: Path, tmp_path: Path, command: Shown):
    folder = tmp_path / "run"
    train(command, short, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for override, told in REFUSED.items():
        code, _, messages = command.run("resume", folder, "--set", "trainer.timesteps=90", override)
        assert (code, told in messages) == (2, True), (override, messages)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    allowed = "checkpoint.interval=1.5min", "device=cpu"
    assert command.run("resume", folder, "--set", "trainer.timesteps=90", *allowed)[0] == 0
    assert saved(folder) == [60, 90]


def test_one_process_at_a_time(short: Path, tmp_path: Path, command: Shown):
    folder = tmp_path / "run"
    train(command, short, folder)
    with (folder / ".lock").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        code, _, messages = command.run("resume", folder, "--set", "trainer.timesteps=90")
    assert code == 2
    assert f"another process trains in '{folder}'" in messages


def test_a_damaged_checkpoint_is_passed_over(short: Path, tmp_path: Path, command: Shown):
    whole, folder = train_both(command, short, tmp_path, 130)
    (folder / "checkpoints/000000000060/agents/1.safetensors").write_bytes(b"")
    shutil.copytree(folder, tmp_path / "other")
    code, lines, messages = command.run("resume", folder, "--set", "trainer.timesteps=130")
    assert code == 0
    assert "resumed at timestep 56" in lines
    assert "the checkpoint of timestep 60 is passed over: " in messages
    assert_same(results(folder), results(whole))
    other = tmp_path / "other"
    (other / "checkpoints/000000000056/manifest.json").unlink()
    code, _, messages = command.run("resume", other, "--set", "trainer.timesteps=130")
    assert code == 1
    assert f"none of the 2 checkpoints in {other}/checkpoints can be loaded; see the warnings. Delete them" in messages


def test_without_a_checkpoint_a_run_begins_again_only_if_nothing_is_lost(short: Path, tmp_path: Path, command: Shown):
    whole, folder = train_both(command, short, tmp_path, 90, "checkpoint.keep_last=0")
    assert not (folder / "checkpoints").exists()
    before = results(folder)
    arguments = ("resume", folder, "--set", "trainer.timesteps=90", "checkpoint.keep_last=1")
    code, _, messages = command.run(*arguments)
    assert code == 1
    assert "has no checkpoint, so the run cannot be resumed; its agents are from timestep 60" in messages
    assert_same(results(folder), before)
    (folder / "status.json").unlink()  # as of a run that was killed while it began
    code, lines, _ = command.run(*arguments)
    assert code == 0
    assert "resumed at timestep 0" in lines
    assert_same(results(folder), results(whole))
    assert saved(folder) == [90]


def test_a_run_that_was_killed_during_its_evaluation(short: Path, tmp_path: Path, command: Shown):
    folder = tmp_path / "run"
    train(command, short, folder)
    before = results(folder)
    (folder / "evaluation.json").unlink()
    code, lines, _ = command.run("resume", folder)
    assert code == 0
    assert not [line for line in lines if "resumed" in line]
    assert_same(results(folder), before)


def test_what_was_written_beyond_the_checkpoint_is_cut(short: Path, tmp_path: Path, command: Shown):
    """Metrics of timestep 80, and half a row, of a process that was killed before its next checkpoint."""
    whole, folder = train_both(command, short, tmp_path, 100)
    with (folder / "metrics.csv").open("a") as file:
        file.write("80,0,Loss / Policy loss,0.5\n80,1,Loss / Pol")
    events = next((folder / "tensorboard/scope_1").iterdir())
    events.write_bytes(events.read_bytes()[:-7])
    (folder / "tensorboard/scope_0/events.out.tfevents.1.old").write_bytes(b"not events")
    assert command.run("resume", folder, "--set", "trainer.timesteps=100")[0] == 0
    assert_same(results(folder), results(whole))


def test_a_run_that_was_killed_before_it_began(short: Path, tmp_path: Path, command: Shown):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "origin.json").write_text("{")
    (folder / "config.yaml.0123456789abcdef.part").write_text("env")
    code, lines, _ = command.run("train", short, "--resume", "--set", f"logging.directory={folder}")
    assert code == 0
    assert not [line for line in lines if "resumed" in line]
    (folder / "config.yaml").unlink()
    assert "already exists and is not empty" in train(command, short, folder, code=2)


def test_a_run_of_an_older_version_without_a_field_of_its_agents(short: Path, tmp_path: Path, command: Shown):
    folder = tmp_path / "run"
    train(command, short, folder)
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    del stored["agents"][0]["cfg"]["value_clip"], stored["checkpoint"]
    (folder / "config.yaml").write_text(yaml.safe_dump(stored))
    assert command.run("resume", folder, "--set", "trainer.timesteps=70")[0] == 0
    assert "value_clip" in yaml.safe_load((folder / "config.yaml").read_text())["agents"][0]["cfg"]


def test_no_run_directory(tmp_path: Path, command: Shown):
    code, _, messages = command.run("resume", tmp_path)
    assert code == 2
    assert "is not a run directory: it has no readable config.yaml" in messages


class Pickled(Counting):
    """Agent that only pickle can keep."""


PICKLED = [f"agents=[{{agent: '{__name__}:Pickled'}}]", "evaluation.episodes=0"]


def test_pickles_are_loaded_only_if_this_user_wrote_them(short: Path, tmp_path: Path, command: Shown):
    folder = tmp_path / "run"
    messages = train(command, short, tmp_path / "without", *PICKLED)
    assert "this run writes no checkpoints, so it cannot be resumed: the agent of scope 0, Pickled, has no" in messages
    assert "checkpoint.allow_pickle = true lets it use pickle" in messages
    assert not (tmp_path / "without/checkpoints").exists()
    train(command, short, folder, *PICKLED, "checkpoint.allow_pickle=true")
    assert {"config.yaml", "checkpoints/000000000056/manifest.json", "checkpoints/000000000060/manifest.json"} <= {
        *json.loads((folder / "origin.json").read_text())["macs"]
    }
    shutil.copytree(folder, tmp_path / "foreign")
    code, lines, _ = command.run("resume", folder, "--set", "trainer.timesteps=80")
    assert (code, "resumed at timestep 60" in lines) == (0, True)
    agent = Pickled()
    from workers.frameworks import load_framework

    RunDirectory(str(folder)).load_agent(agent, 0, load_framework("torch"))
    assert agent.count == 80
    foreign = tmp_path / "foreign"
    origin = json.loads((foreign / "origin.json").read_text())
    del origin["macs"]["checkpoints/000000000060/manifest.json"]
    (foreign / "origin.json").write_text(json.dumps(origin))
    code, lines, messages = command.run("resume", foreign, "--set", "trainer.timesteps=80")
    assert (code, "resumed at timestep 56" in lines) == (0, True)
    assert "has pickles, which can run code, and is not known to be of this user" in messages


# Object stores: the process is killed before a write, and the next one goes on.


def copied(url: str, folder: Path) -> Path:
    filesystem, path = fsspec.core.url_to_fs(url)
    filesystem.invalidate_cache()
    names = filesystem.find(path)
    for name in names:
        if name.endswith("/"):  # an empty object that stands for a folder
            continue
        place = folder / name.removeprefix(f"{path}/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(filesystem.cat_file(name))
    return folder


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_a_run_at_a_url_that_is_killed_between_any_two_writes(
    kind: str, short: Path, tmp_path: Path, command: Shown, request: pytest.FixtureRequest
):
    url = "memory://runs-of-a-test/run" if kind == "memory" else f"{request.getfixturevalue('s3')}/run"
    train(command, short, tmp_path / "whole")
    counted = Strikes()
    with killing_writes(counted):
        train(command, short, f"{url}-counted")
    chance, lives = random.Random(3), []
    for life in range(examples(3, long=20)):
        arguments = ["train", str(short), "--set", f"logging.directory={url}-{life}"]
        last = chance.randrange(40, counted.count)
        for _ in range(9):  # later lives have fewer writes left
            strikes = Strikes(last)
            with killing_writes(strikes), suppress(Killed):
                main(arguments)
            lives.append(strikes.struck)
            if RunDirectory(f"{url}-{life}").exists("config.yaml"):
                arguments = ["resume", f"{url}-{life}"]
            if not strikes.struck:
                break
        assert main(arguments) == 0
        found = results(copied(f"{url}-{life}", tmp_path / str(life)))
        assert_same(found, results(tmp_path / "whole"))
    assert sum(lives) >= examples(3, long=20)
    assert "can be loaded" not in command.run("resume", f"{url}-0")[2]
    if kind == "memory":
        fsspec.filesystem("memory").rm("/runs-of-a-test", recursive=True)
