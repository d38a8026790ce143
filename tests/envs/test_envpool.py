"""envpool environments: slices equal the full batch, and nothing survives close()."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from gymnasium.spaces import Discrete
from gymnasium.spaces.utils import flatdim
from gymnasium.vector import AutoresetMode

from tests.support.agents import NullAgent
from tests.support.parity import assert_same, copied_outputs, run
from workers.envs import EnvFactory, wrap_env
from workers.envs.envpool import build
from workers.envs.making import build_rows
from workers.errors import EnvError
from workers.spaces import action_width

ROWS = 4


def trace(env: Any, start: int = 0, stop: int = ROWS, *, steps: int = 300, seed: int | None = None) -> list[Any]:
    """Return the outputs of the rows; row i acts at random with its own generator."""
    space: Any = env.action_space
    generators = [np.random.default_rng(row) for row in range(start, stop)]
    outputs = [copied_outputs(env.reset(seed=seed))]
    for _ in range(steps):
        rows = np.array([generator.uniform(-1, 1, action_width(space)) for generator in generators])
        if isinstance(space, Discrete):
            rows = np.floor((rows + 1) / 2 * space.n)
        outputs.append(copied_outputs(env.step(torch.tensor(rows))))
    env.close()
    return outputs


def rows_of(tree: Any, start: int, stop: int) -> Any:
    if isinstance(tree, dict):
        return {key: rows_of(value, start, stop) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(rows_of(item, start, stop) for item in tree)
    return tree[start:stop]


def without_empty(tree: Any) -> Any:
    """Remove info entries that no row has, such as those of an end in another slice."""
    outputs = []
    for *arrays, infos in tree:
        gone = {key for key in infos if f"_{key}" in infos and not infos[f"_{key}"].any()}
        kept = {key: value for key, value in infos.items() if key not in gone and key.removeprefix("_") not in gone}
        outputs.append((*arrays, kept))
    return outputs


@pytest.mark.filterwarnings("ignore:.*(precision lowered|seeds are fixed):UserWarning")
def test_what_envpool_makes_itself_is_refused_with_a_remedy():
    env = wrap_env(pytest.importorskip("envpool").make_gymnasium("CartPole-v1", num_envs=2), framework="torch")
    with pytest.raises(EnvError, match=r"reset_mask.*build it with workers\.envs\.envpool\.build"):
        run(1, env=env, agents=NullAgent, seed=1)
    env.close()


@pytest.mark.parametrize("id", ["CartPole-v1", "CheetahRun-v1", "Taxi-v3"])
@pytest.mark.parametrize("fixed", [True, False], ids=["seed of the factory", "seed of the reset"])
def test_slices_are_the_full_batch(id, fixed):
    """Box, Dict and Discrete observations; row i has the seed ``7 + i``, from the factory or from ``reset``."""
    options = {"max_episode_steps": 60} if id == "CheetahRun-v1" else {}
    factory = EnvFactory(partial(build, id=id, seed=7 if fixed else None, **options), num_envs=ROWS)
    seed = None if fixed else 7
    whole = trace(build_rows(factory, ROWS, 0, framework="torch", seed=None), seed=seed)
    ends = sum(int(infos["_final_obs"].sum()) for *_, infos in whole if "_final_obs" in infos)
    assert ends >= ROWS
    for start, stop in ((0, 1), (1, ROWS)):
        env = build_rows(factory, stop - start, start, framework="torch", seed=None)
        part = trace(env, start, stop, seed=None if seed is None else seed + start)
        assert_same(part, without_empty(rows_of(whole, start, stop)))
    assert not np.array_equal(whole[5][0][0], whole[5][0][1])


def test_seed_of_the_factory_wins_and_without_any_they_differ():
    def start(seed: int | None, reset_seed: int | None) -> Any:
        env = build_rows(
            EnvFactory(partial(build, id="CartPole-v1", seed=seed), num_envs=2), 2, 0, framework="numpy", seed=0
        )
        observations, _ = env.reset(seed=reset_seed)
        env.close()
        return observations.tolist()

    assert start(7, 99) == start(7, None) == start(None, 7)
    assert start(None, None) != start(None, None)


def test_final_observations_are_those_of_the_end():
    """CartPole ends when the pole has fallen, and starts within 0.05 of the centre."""
    env = build_rows(
        EnvFactory(partial(build, id="CartPole-v1", seed=7), num_envs=ROWS), ROWS, 0, framework="torch", seed=None
    )
    ends = 0
    for observations, _, terminated, _, infos in trace(env)[1:]:
        elapsed = infos["elapsed_step"]
        ended = terminated[:, 0]
        assert_same(elapsed == 0, ended)
        assert (np.abs(observations[ended]) <= 0.05).all()
        assert set(infos) <= {"elapsed_step", "final_info", "_final_info", "final_obs", "_final_obs"}
        if ended.any():
            ends += int(ended.sum())
            final = np.abs(infos["final_obs"][ended])
            assert ((final[:, 2] > 0.2095) | (final[:, 0] > 2.4)).all()
            assert (infos["final_info"]["elapsed_step"][ended] > 7).all()
    assert ends > 20


def test_masked_reset_leaves_the_other_rows_as_they_are():
    env = build(ROWS, 0, id="CheetahRun-v1", seed=7)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    env.reset()
    actions = env.action_space.sample()
    observations, *_, infos = env.step(actions)
    before = copied_outputs((observations, infos))
    after = env.reset(options={"reset_mask": np.array([False, True, False, True])})
    assert_same(rows_of(list(after), 0, 1), rows_of(list(before), 0, 1))
    assert_same(rows_of(list(after), 2, 3), rows_of(list(before), 2, 3))
    assert after[1]["elapsed_step"].tolist() == [1, 0, 1, 0]
    assert not np.array_equal(after[0]["position"][1], before[0]["position"][1])
    assert_same((observations, infos), before)  # arrays returned earlier are not overwritten
    assert env.step(actions)[-1]["elapsed_step"].tolist() == [2, 1, 2, 1]
    env.close()


def test_trainer_on_envpool():
    factory = EnvFactory(partial(build, id="CartPole-v1", seed=7), num_envs=ROWS)
    outputs, _ = run(50, env=factory, agents=[NullAgent, NullAgent], scopes=[1, 3], seed=0)
    assert len(outputs) == 50
    assert outputs[-1][0].shape == (ROWS, 4)
    assert any(terminated.any() for _, _, terminated, _, _ in outputs)


def test_threads_end_with_close():
    """Thirty threads, to distinguish them from the few that other libraries start and end meanwhile."""
    threads = psutil.Process().num_threads()
    factory = EnvFactory(partial(build, id="CartPole-v1", num_threads=30), num_envs=30)
    env = build_rows(factory, 30, 0, framework="torch", seed=0)
    env.reset(seed=3)  # makes the environments again
    assert threads + 25 <= psutil.Process().num_threads() <= threads + 35
    env.close()
    assert psutil.Process().num_threads() <= threads + 5
    assert flatdim(env.observation_space) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"id": "NoSuchEnv-v0"}, r"cannot make 'NoSuchEnv-v0': NoSuchEnv-v0 is not supported.*list_all_envs"),
        ({"id": "CartPole-v1", "gravity": 3}, r"cannot make 'CartPole-v1': .*gravity"),
        ({"id": "CartPole-v1", "seed": 2**31 - 1}, r"cannot make 'CartPole-v1': Seed should be in range of int32"),
        ({"id": "CartPole-v1", "batch_size": 1}, r"CartPole-v1 has batch_size 1 .*expected batch_size 2"),
        ({"id": "IntersectionMultiAgent-v0"}, r"IntersectionMultiAgent-v0 has .* up to 2 players; .*1 player"),
    ],
)
def test_what_envpool_cannot_make_is_said_in_its_words(options, words):
    with pytest.raises(EnvError, match=words):
        build(2, 0, **options)


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(EnvError, match=r"need the package 'envpool'.*pip install 'lockstep-rl\[envpool\]'"):
        build(2, 0, id="CartPole-v1")
