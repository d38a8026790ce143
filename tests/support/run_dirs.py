"""A run directory whose numbers tell the scope and the timestep that they belong to."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

__all__ = ["TAGS", "add_rows", "make_run"]

TAGS = {
    "Episode / Return (mean)": 0.0,
    "Rate / Environment steps per second": 0.25,
    "Stats / Env stepping time (ms)": 0.5,
    "Loss / Policy loss": 0.75,
}
"""Tags, and what they add to the values."""


def make_run(
    folder: Path, scopes: int = 2, timesteps: Iterable[int] = (10, 20, 30), config: dict[str, Any] | None = None
) -> Path:
    """Write a finished run of 30 timesteps with a value of ``100 scope + timestep`` for the returns; return `folder`.

    Args:
        folder: Where to.
        scopes: Number of simultaneous agents.
        timesteps: Timesteps of the metrics.
        config: Changes of the configuration.
    """
    folder.mkdir(parents=True)
    known = {
        "env": {"id": "CartPole-v1", "num_envs": 4 * scopes},
        "agents": [{"agent": "ppo", "cfg": {"learning_rate": 0.001}} for _ in range(scopes)],
        "trainer": {"timesteps": 30},
        "seed": 0,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump({**known, **(config or {})}))
    (folder / "versions.json").write_text(json.dumps({"python": "3.11.1", "skrl": None}))
    (folder / "status.json").write_text(json.dumps({"state": "finished", "timestep": 30}))
    (folder / "metrics.csv").write_text("timestep,scope,tag,value\n")
    for timestep in timesteps:
        add_rows(folder, timestep, scopes)
    evaluation = [{"scope": scope, "weights": "ab" * 32, "returns": [100.0 * scope]} for scope in range(scopes)]
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    for name in ("checkpoints/000000000020", "checkpoints/000000000030", "recoveries"):
        (folder / name).mkdir(parents=True)
    return folder


def add_rows(folder: Path, timestep: int, scopes: int, tags: dict[str, float] = TAGS) -> None:
    """Append the metrics of a timestep."""
    with (folder / "metrics.csv").open("a") as file:
        for scope in range(scopes):
            for tag, more in tags.items():
                file.write(f"{timestep},{scope},{tag},{100.0 * scope + timestep + more}\n")
