"""Running statistics of wrappers: found wherever they are, read by row, and loaded so that they stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import NormalizeObservation, NormalizeReward
from gymnasium.wrappers.utils import RunningMeanStd
from gymnasium.wrappers.vector import NormalizeReward as NormalizeRewards
from pettingzoo.utils import BaseParallelWrapper

from tests.support.agents import to_numpy
from tests.support.envs import CountingEnv
from tests.support.multi_agent_envs import CountingTeamEnv
from workers.envs import wrap_env
from workers.envs.statistics import load_statistics, read_statistics


def single(row: int) -> gymnasium.Env[Any, Any]:
    return NormalizeReward(NormalizeObservation(CountingEnv(row)))


def steps(env: Any, count: int) -> list[Any]:
    """Return the observations and rewards of a reset and some steps."""
    observations, _ = env.reset()
    seen = [to_numpy(observations)]
    for _ in range(count):
        observations, rewards, *_ = env.step(torch.zeros(env.num_envs, 1))
        seen.append(np.concatenate([to_numpy(observations), to_numpy(rewards)], axis=1))
    return seen


KINDS = {
    "list": lambda rows: [single(row) for row in rows],
    "sync": lambda rows: SyncVectorEnv([partial(single, row) for row in rows], autoreset_mode=AutoresetMode.SAME_STEP),
    "async": lambda rows: AsyncVectorEnv(
        [partial(single, row) for row in rows], autoreset_mode=AutoresetMode.SAME_STEP
    ),
    "vector": lambda rows: NormalizeRewards(
        SyncVectorEnv([partial(CountingEnv, row) for row in rows], autoreset_mode=AutoresetMode.SAME_STEP)
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_environments_go_on_with_the_statistics_of_their_rows_unchanged(kind: str):
    trained, fresh = (wrap_env(KINDS[kind](range(3)), framework="torch") for _ in range(2))
    bare = wrap_env([CountingEnv(row) for row in range(3)], framework="torch")
    try:
        assert all(one["count"] < 1 for row in read_statistics(fresh) for one in row.values())
        steps(trained, 20)
        rows = read_statistics(trained)
        assert load_statistics(fresh, rows) == []
        steps(fresh, 7), steps(bare, 7)
        shown, raw = steps(fresh, 1)[1], steps(bare, 1)[1]
        np.testing.assert_equal(read_statistics(fresh), rows)
    finally:
        for env in (trained, fresh, bare):
            env.close()
    for row, statistics in enumerate(rows):
        found = {name.rpartition(".")[2]: one for name, one in statistics.items()}
        assert set(found) == ({"return_rms"} if kind == "vector" else {"obs_rms", "return_rms"})
        expected = raw[row].astype(np.float64)
        if kind != "vector":
            expected[:4] = (expected[:4] - found["obs_rms"]["mean"]) / np.sqrt(found["obs_rms"]["var"] + 1e-8)
        expected[4] /= np.sqrt(found["return_rms"]["var"] + 1e-8)
        np.testing.assert_allclose(shown[row], expected, rtol=1e-5)


def test_rows_of_a_vector_wrapper_may_have_different_statistics():
    """In sharded mode each scope has a vector environment of its own, in the evaluation there is one."""
    scopes = [wrap_env(KINDS["vector"](range(*rows)), framework="torch") for rows in ((0, 1), (1, 3))]
    for env in scopes:
        steps(env, 10)
    rows = [row for env in scopes for row in read_statistics(env)]
    variances = [float(row["NormalizeReward.return_rms"]["var"]) for row in rows]
    assert variances[0] != variances[1] == variances[2]
    whole, bare = (
        wrap_env(KINDS["vector"](range(3)), framework="torch"),
        wrap_env([*map(CountingEnv, range(3))], framework="torch"),
    )
    assert load_statistics(whole, rows) == []
    np.testing.assert_allclose(steps(whole, 3)[-1][:, 4], steps(bare, 3)[-1][:, 4] / np.sqrt(variances), rtol=1e-5)


class Normalized(BaseParallelWrapper):
    """Wrapper of a team with a statistic of the library's own, and with attributes that look like one."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.running = RunningMeanStd(shape=(4,))
        self.array, self.tensor, self.lazy = np.zeros(3), torch.zeros(3), Lazy()


class Lazy:
    count = var = 0

    @property
    def mean(self) -> float:
        raise RuntimeError("not yet")


def test_wrappers_of_teams_and_several_of_one_kind_are_told_apart():
    env = wrap_env([Normalized(Normalized(CountingTeamEnv(row))) for row in range(2)], framework="torch")
    env.envs[1].env.running.update(np.full((8, 4), 5.0))
    rows = read_statistics(env)
    assert [list(row) for row in rows] == [["Normalized.running", "Normalized.running'"]] * 2
    assert [float(one["mean"][0]) for row in rows for one in row.values()] == [0, 0, 0, pytest.approx(5, rel=1e-3)]
    fresh = wrap_env([Normalized(Normalized(CountingTeamEnv(row))) for row in range(2)], framework="torch")
    assert load_statistics(fresh, rows) == []
    np.testing.assert_equal(read_statistics(fresh), rows)
    env.close()


@dataclass(frozen=True)
class Frozen:
    """Statistics that a wrapper replaces as a whole."""

    mean: float = 0.0
    var: float = 1.0
    count: int = 0


class Fields:
    """Statistics without an `update`."""

    def __init__(self) -> None:
        self.mean, self.var, self.count = 0.0, 1.0, 0


class Other(gymnasium.Wrapper[Any, Any, Any, Any]):
    def __init__(self, env: Any, held: Any) -> None:
        super().__init__(env)
        self.held = held


def test_what_cannot_be_carried_is_told_once_with_a_remedy():
    for held in (Frozen, Fields):
        env = wrap_env([Other(CountingEnv(row), held()) for row in range(3)], framework="torch")
        (note,) = load_statistics(env, read_statistics(env))
        assert note.startswith(
            f"the statistics of Other.held, a {held.__name__}, cannot be set and kept from changing ("
        )
        assert note.endswith("let the agents normalise instead, such as with normalize_observations of PPO")
    env = wrap_env([single(row) for row in range(3)], framework="torch")
    rows = read_statistics(env)
    assert load_statistics(env, [rows[0], {}, {}]) == [
        f"no statistics that fit are stored for {name}: the evaluation starts with empty ones, so the agents see other "
        "observations or rewards than in training; let the agents normalise instead, such as with "
        "normalize_observations of PPO"
        for name in ("NormalizeReward.return_rms", "NormalizeObservation.obs_rms")
    ]
    other = {name: dict.fromkeys(one, np.zeros((2, 2))) for name, one in rows[0].items()}
    assert len(load_statistics(env, [other] * 3)) == 2
    bare = wrap_env([CountingEnv(row) for row in range(3)], framework="torch")
    notes = load_statistics(bare, rows)
    assert [note.split(";")[0] for note in notes] == [
        f"no wrapper takes the stored statistics of {name} before the first reset" for name in rows[0]
    ]
    plain = wrap_env([CountingEnv(0)], framework="torch")
    assert read_statistics(plain) == [{}]
    assert load_statistics(plain, [{}]) == []
    plain.held = plain
    plain._env.env = plain._env
    assert read_statistics(plain) == [{}]
