"""Final observations and infos are true even if an environment writes everything to the same objects."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from gymnasium.spaces import Dict as DictSpace
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from tests.support.agents import RecordingAgent, to_numpy
from tests.support.parity import run
from workers.envs import wrap_env

MODES = list(AutoresetMode)
ONE_FOR_ALL = np.zeros(3, np.float32)


class Rewriting(gymnasium.Env[Any, Any]):
    """Always returns the same array ``(row, episode, step)``, and infos with the same list and the same array.

    Row i ends after 2 + i steps. Variants: a Dict space, whose dictionary is also the same; one array for all copies.
    """

    def __init__(self, row: int, *, is_dict: bool = False, is_shared: bool = False) -> None:
        self.row, self.episode, self.count = row, -1, 0
        self.array = ONE_FOR_ALL if is_shared else np.zeros(3, np.float32)
        self.given: Any = {"a": self.array} if is_dict else self.array
        box = Box(-np.inf, np.inf, (3,), np.float32)
        self.observation_space = DictSpace(a=box) if is_dict else box
        self.action_space = Box(-1, 1, (1,), np.float32)
        self.infos: dict[str, Any] = {"log": [], "position": np.zeros(2)}

    def write(self) -> Any:
        self.array[:] = self.row, self.episode, self.count
        self.infos["log"].append(self.count)
        self.infos["position"][:] = self.count
        return self.given

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.episode, self.count = self.episode + 1, 0
        self.infos["log"].clear()
        return self.write(), self.infos

    def step(self, action: Any) -> Any:
        self.count += 1
        return self.write(), 0.0, self.count == 2 + self.row, False, self.infos


def build(way: Any, **options: Any) -> Any:
    copies = [Rewriting(row, **options) for row in range(3)]
    if way == "list":
        return copies
    env = SyncVectorEnv([lambda copy=copy: copy for copy in copies], autoreset_mode=way)  # type: ignore[misc]
    return RecordEpisodeStatistics(env) if options.get("is_dict") else env


@pytest.mark.parametrize("way", ["list", *MODES])
@pytest.mark.parametrize("options", [{}, {"is_dict": True}, {"is_shared": True}], ids=["Box", "Dict", "one for all"])
def test_final_observations_are_true(way, options, framework):
    env = wrap_env(build(way, **options), framework=framework)
    outputs, (agent,) = run(12, framework=framework, env=env, agents=RecordingAgent)
    episode, step = [0] * 3, [0] * 3
    for (observations, *_, infos), record in zip(outputs, agent.records(), strict=True):
        assert to_numpy(record["observations"]).tolist() == [[i, episode[i], step[i]] for i in range(3)]
        step = [count + 1 for count in step]
        true = [[i, episode[i], step[i]] for i in range(3)]
        assert to_numpy(record["next_observations"]).tolist() == true
        ended = [step[i] == 2 + i for i in range(3)]
        for row in np.flatnonzero(ended):
            assert to_numpy(infos["final_obs"])[row].tolist() == true[row]
            assert infos["final_info"]["log"][row] == list(range(step[row] + 1))
            assert infos["final_info"]["position"][row].tolist() == [step[row]] * 2
            episode[row], step[row] = episode[row] + 1, 0
        assert to_numpy(observations).tolist() == [[i, episode[i], step[i]] for i in range(3)]


class RewritingVector(VectorEnv[Any, Any, Any]):
    """Three rows ``(row, episode, step)`` in one batch; always returns the same arrays, which a reset changes."""

    num_envs = 3
    single_observation_space = Box(-np.inf, np.inf, (3,), np.float32)
    single_action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, mode: AutoresetMode) -> None:
        self.metadata = {"autoreset_mode": mode}
        self.batch = np.zeros((3, 3), np.float32)
        self.batch[:, 0], self.batch[:, 1] = range(3), -1
        self.rewards, self.flags, self.others = np.zeros(3), np.zeros(3, np.bool_), np.zeros(3, np.bool_)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        rows = (options or {}).get("reset_mask", np.ones(3, np.bool_))
        self.batch[rows, 1] += 1
        for array in (self.batch[:, 2], self.rewards, self.flags):
            array[rows] = 0
        return self.batch, {}

    def step(self, actions: Any) -> Any:
        self.batch[:, 2] += 1
        self.rewards[:] = self.batch[:, 2]
        self.flags[:] = self.batch[:, 2] == 2 + self.batch[:, 0]
        return self.batch, self.rewards, self.flags, self.others, {}


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_vector_environments_may_reuse_their_arrays(mode, framework):
    env = wrap_env(RewritingVector(mode), framework=framework)
    outputs, (agent,) = run(4, framework=framework, env=env, agents=RecordingAgent)
    records = agent.records()
    assert [to_numpy(one["next_observations"])[0].tolist() for one in records] == [
        [0, 0, 1], [0, 0, 2], [0, 1, 1], [0, 1, 2],
    ]  # fmt: skip
    assert [to_numpy(one["rewards"])[0].tolist() for one in records] == [[1], [2], [1], [2]]
    assert [to_numpy(terminated)[0].tolist() for _, _, terminated, *_ in outputs] == [[False], [True]] * 2


@pytest.mark.parametrize(("copy", "count"), [(Rewriting, 1), (None, 0)])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_copies_in_other_processes_whose_final_observations_are_lost_are_told_once(copy, count, caplog):
    """In SAME_STEP mode, a copy in another process resets before anything is sent."""
    functions = [partial(copy or Fresh, row) for row in range(2)]
    env = AsyncVectorEnv(functions, autoreset_mode=AutoresetMode.SAME_STEP, context="spawn")
    wrapped = wrap_env(env, framework="numpy")
    with caplog.at_level(logging.WARNING, "lockstep"):
        wrapped.reset(seed=1)
        for _ in range(8):
            wrapped.step(np.zeros((2, 1), np.float32))
    wrapped.close()
    said = [
        record.getMessage() for record in caplog.records if "final_obs equals the observation" in record.getMessage()
    ]
    assert len(said) == count
    assert all("AutoresetMode.NEXT_STEP" in text for text in said)


class Fresh(Rewriting):
    """Returns copies."""

    def write(self) -> Any:
        return super().write().copy()
