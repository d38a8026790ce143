"""Rendering in training: in every mode, all rows are rendered at the timesteps that the configuration names."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from orchestrator.ray import RayOrchestrator
from tests.support.agents import NullAgent
from tests.support.odd_envs import NullTeam
from tests.support.parity import CFG, step_trainer
from tests.support.rendered import PLAYERS, Broken, Pictured, PicturedTeam
from workers.envs import EnvFactory, wrap_env
from workers.errors import WorkerError

SCOPES = [1, 2]
NUM_ENVS = sum(SCOPES)


@pytest.fixture
def mode(request):
    if request.param != "local":
        request.getfixturevalue("ray_cluster")
    return request.param


def build(kind: Any, num_envs: int, first_env: int) -> list[Any]:
    return [kind(first_env + i, 100, "rgb_array") for i in range(num_envs)]


def trainer_of(mode: str, kind: Any) -> Any:
    env: Any = EnvFactory(partial(build, kind), num_envs=NUM_ENVS)
    if mode == "shared":
        env = wrap_env(build(kind, NUM_ENVS, 0), framework="torch")
    return step_trainer("torch")(
        env=env,
        agents=[NullTeam if kind is PicturedTeam else NullAgent] * len(SCOPES),
        scopes=SCOPES,
        cfg={**CFG, "timesteps": 8, "headless": False, "render_interval": 3},
        orchestrator="local" if mode == "local" else RayOrchestrator(num_cpus=0.5),
    )


def check(told: list[dict[str, Any]], players: tuple[str, ...] = ()) -> None:
    """Check the infos of consecutive timesteps: all rows were rendered at every third one."""
    for timestep, infos in enumerate(told):
        before = range(0, timestep, 3)
        last = before[-1] + 1 if before else 0  # in steps since the environment was built
        for row in [infos[player] for player in players] or [infos]:
            assert np.asarray(row["renders"]).tolist() == [len(before)] * NUM_ENVS
            assert np.asarray(row["rendered_at"]).tolist() == [last] * NUM_ENVS


@pytest.mark.parametrize("mode", ["local", "sharded", "shared"], indirect=True)
def test_all_rows_are_rendered_at_the_interval_and_an_error_names_its_place(mode: str):
    with trainer_of(mode, Broken) as trainer:
        check([trainer.train(timestep=timestep)[4] for timestep in range(6)])
        with pytest.raises(WorkerError) as caught:
            trainer.train(timestep=6)
    (failure,) = caught.value.failures
    assert (failure.scope, failure.rows, failure.phase, failure.timestep) == (1, (2, 3), "render", 6)
    assert "no graphics" in str(caught.value)


@pytest.mark.parametrize("method", ["train", "eval"])
@pytest.mark.parametrize("kind", [Pictured, PicturedTeam])
def test_teams_are_rendered_and_evaluations(kind: Any, method: str):
    with trainer_of("local", kind) as trainer:
        told = [getattr(trainer, method)(timestep=timestep)[4] for timestep in range(6)]
    check(told, PLAYERS if kind is PicturedTeam else ())
