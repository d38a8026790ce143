"""Runs that are killed at random moments, and resumed each time: their results are those of an undisturbed run."""

from __future__ import annotations

import json
import random
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.support.dying import lockstep, results, seconds_of_training
from tests.support.parity import assert_same
from tests.support.schedule import IS_LONG, full_or_short

KILLS = 20


class Case(NamedTuple):
    """A configuration.

    Attributes:
        env: Its environments.
        agent: Its agents, without scope.
        timesteps: Number of timesteps.
        beside: What else is in it.
    """

    env: dict[str, Any]
    agent: dict[str, Any]
    timesteps: int
    beside: dict[str, Any] = {}  # noqa: RUF012 - read, never written


PPO = {"agent": "ppo", "cfg": {"rollouts": 16, "mini_batches": 2, "learning_epochs": 2, "hidden_sizes": [16]}}
TEAM = {"max_cycles": 60, "spawn_delay": 1, "max_zombies": 20, "line_death": True}
GROUPS = {"archers": ["archer_0", "archer_1"], "knights": ["knight_0", "knight_1"]}
BESIDE = {
    "evaluation": {"episodes": 5, "max_timesteps": 200, "every": 250},
    "callbacks": [
        {"callback": "population", "cfg": {"every": 100, "hyperparameters": {"learning_rate": [1e-5, 1e-2]}}}
    ],
}
"""Evaluations during the run, and agents that copy each other."""

CASES = {
    "CartPole": Case({"id": "CartPole-v1"}, PPO, 2000, BESIDE),
    "HalfCheetah": Case({"id": "HalfCheetah-v5", "kwargs": {"max_episode_steps": 50}}, PPO, 1500),
    "team": Case(
        {"id": "butterfly/knights_archers_zombies_v11", "kwargs": TEAM, "states": "none"},
        {**PPO, "agent": "ippo", "groups": GROUPS},
        500,
    ),
    "skrl PPO": Case({"id": "CartPole-v1"}, {"agent": "tests.support.own_agents:skrl_ppo"}, 3000),
    "skrl SAC": Case(
        {"id": "Pendulum-v1", "kwargs": {"max_episode_steps": 50}}, {"agent": "tests.support.own_agents:skrl_sac"}, 600
    ),
}


def written(case: str, framework: str, folder: Path, **changes: Any) -> Path:
    """Write the configuration of a case."""
    env, agent, timesteps, beside = CASES[case]
    config: dict[str, Any] = {
        "framework": framework,
        "env": {**env, "num_envs": 5},
        "agents": [{**agent, "scope": 2}, {**agent, "scope": 3}],
        "trainer": {"timesteps": timesteps, "headless": True, "disable_progressbar": True},
        "logging": {"interval": 10},
        "checkpoint": {"interval": 7},
        "evaluation": {"episodes": 5, "max_timesteps": 200},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config | beside | changes))
    return path


LONG = [
    (case, framework, mode)
    for case in CASES
    for framework in (("torch", "jax") if case in ("CartPole", "HalfCheetah") else ("torch",))
    for mode in ("local", "ray")
]
SHORT = [("CartPole", "torch", "local")]


@pytest.mark.parametrize(("case", "framework", "mode"), full_or_short(LONG, SHORT))
def test_a_run_that_is_killed_again_and_again_ends_with_the_numbers_of_one_that_was_not(
    case: str, framework: str, mode: str, tmp_path: Path, request: pytest.FixtureRequest
):
    overrides = []
    if mode == "ray":
        request.getfixturevalue("ray_cluster")
        import ray

        address = ray.get_runtime_context().gcs_address
        overrides = ["orchestrator.kind=ray", f"orchestrator.options.address={address}"]
    is_short = not IS_LONG
    kills = 2 if is_short else KILLS
    changes = {"trainer": {"timesteps": 300, "headless": True, "disable_progressbar": True}} if is_short else {}
    config = written(case, framework, tmp_path, **changes)
    whole, folder = tmp_path / "undisturbed", tmp_path / "run"
    seconds = seconds_of_training(whole, "train", config, "--set", f"logging.directory={whole}", *overrides)
    chance = random.Random(zlib.crc32(f"{case} {framework} {mode}".encode()))
    ended, passed_over, timesteps = [], 0, []
    moments = [
        f"KILL@{chance.uniform(0, seconds / 12):.3f}" if life % 2 else f"KILL#{chance.randrange(20, 250)}"
        for life in range(kills)
    ]
    arguments: list[object] = ["train", config, "--set", f"logging.directory={folder}", *overrides]
    stops = [f"{name}@{seconds / 40:.3f}" for name in ("TERM", "INT", "HUP")]
    for moment in [*moments, *stops, None]:
        done = lockstep(moment, *arguments)
        ended.append(done.returncode)
        passed_over += done.stderr.count("is passed over")
        timesteps += [int(line.rpartition(" ")[2]) for line in done.stdout.splitlines() if "resumed at" in line]
        assert done.returncode in (0, -9, 143, 130, 129), done.stderr
        if (folder / "config.yaml").exists():
            arguments = ["resume", folder]
        if done.returncode > 0:
            assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"
    assert ended == [-9] * kills + [143, 130, 129, 0]
    assert timesteps == sorted(timesteps)
    assert passed_over == 0  # on a disk, there are no torn checkpoints at all
    assert_same(results(folder), results(whole))
    assert not [path for path in folder.rglob("*") if "part" in path.name or "replaced" in path.name]
    assert len(list((folder / "checkpoints").iterdir())) == 2
    print(f"{case} {framework} {mode}: resumed at {timesteps}")
