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
from workers.errors import WorkerError

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


class Stateful(Rewriting):
    """The state of every copy is the same array ``(row, episode, step)``, and the infos are one dictionary."""

    state_space = Box(-np.inf, np.inf, (3,), np.float32)
    told: dict[str, Any] = {"nested": {"row": np.zeros(1)}}  # noqa: RUF012 - shared on purpose

    def write(self) -> Any:
        self.told["row"] = self.told["nested"]["row"][0] = self.row
        return super().write().copy()

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset()[0], self.told

    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], self.told

    def state(self) -> Any:
        ONE_FOR_ALL[:] = self.row, self.episode, self.count
        return ONE_FOR_ALL


class StatefulVector(SyncVectorEnv):
    """A class of the user's."""


@pytest.mark.parametrize("way", ["list", "own class", AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_states_and_infos_of_all_copies_may_be_one_object(way, framework):
    kind, mode = (StatefulVector, AutoresetMode.DISABLED) if way == "own class" else (SyncVectorEnv, way)
    copies: Any = [Stateful(row) for row in range(3)]
    if way != "list":
        copies = kind([partial(Stateful, row) for row in range(3)], autoreset_mode=mode)
    outputs, (agent,) = run(8, framework=framework, env=wrap_env(copies, framework=framework), agents=RecordingAgent)
    for (*_, infos), record in zip(outputs, agent.records(), strict=True):
        assert infos["row"].tolist() == infos["nested"]["row"][:, 0].tolist() == [0, 1, 2]
        assert to_numpy(record["states"]).tolist() == to_numpy(record["observations"]).tolist()
        assert to_numpy(record["next_states"]).tolist() == to_numpy(record["next_observations"]).tolist()


class RewritingVector(VectorEnv[Any, Any, Any]):
    """Three rows ``(row, episode, step)`` in one batch; always returns the same arrays, which a reset changes."""

    num_envs = 3
    state_space = Box(-np.inf, np.inf, (3,), np.float32)
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

    def state(self) -> Any:
        return self.batch


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_vector_environments_may_reuse_their_arrays(mode, framework):
    env = wrap_env(RewritingVector(mode), framework=framework)
    outputs, (agent,) = run(4, framework=framework, env=env, agents=RecordingAgent)
    records = agent.records()
    assert [to_numpy(one["next_observations"])[0].tolist() for one in records] == [
        [0, 0, 1], [0, 0, 2], [0, 1, 1], [0, 1, 2],
    ]  # fmt: skip
    for one in records:
        assert to_numpy(one["next_states"]).tolist() == to_numpy(one["next_observations"]).tolist()
    assert [to_numpy(one["rewards"])[0].tolist() for one in records] == [[1], [2], [1], [2]]
    assert [to_numpy(terminated)[0].tolist() for _, _, terminated, *_ in outputs] == [[False], [True]] * 2


class Telling(Rewriting):
    """Its infos have a key that the wrapper adds itself, at a reset or in a step."""

    def __init__(self, row: int, key: str, when: str) -> None:
        super().__init__(row)
        self.key, self.when = key, when

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        observation, _ = super().reset()
        return observation.copy(), {self.key: [7.0] * 3} if self.when == "reset" and self.episode else {}

    def step(self, action: Any) -> Any:
        *given, _ = super().step(action)
        return given[0].copy(), *given[1:], {self.key: [7.0] * 3} if self.when == "step" and self.count == 1 else {}


@pytest.mark.parametrize("key", ["final_obs", "_final_obs", "final_info", "_final_state"])
@pytest.mark.parametrize("when", ["reset", "step"])
@pytest.mark.parametrize("way", ["list", *MODES])
def test_keys_that_the_wrapper_adds_are_refused(way, when, key, framework):
    copies: Any = [Rewriting(0), Telling(1, key, when)]
    if way != "list":
        copies = SyncVectorEnv([partial(Rewriting, 0), partial(Telling, 1, key, when)], autoreset_mode=way)
    env = wrap_env(copies, framework=framework)
    with pytest.raises(WorkerError, match=f"the infos have '{key}', which the wrapper adds itself; rename") as caught:
        run(5, framework=framework, env=env, agents=RecordingAgent)
    (failure,) = caught.value.failures
    assert (failure.kind, failure.rows) == ("workers.errors.EnvError", (1, 2))


class TellingVector(RewritingVector):
    """Its infos have final observations of the `marked` rows, although no episode ends in the first step."""

    state_space = None  # type: ignore[assignment]

    def __init__(self, mode: AutoresetMode, marked: list[bool]) -> None:
        super().__init__(mode)
        self.marked = marked

    def step(self, actions: Any) -> Any:
        return *super().step(actions)[:4], {"final_obs": np.full((3, 3), 7.0), "_final_obs": np.array(self.marked)}


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        (AutoresetMode.SAME_STEP, r"_final_obs'\] marks the environments \[1\]; expected .* in this step, \[\]"),
        (AutoresetMode.NEXT_STEP, "TellingVector.*: the infos have '_final_obs', which the wrapper adds itself"),
    ],
)
def test_final_observations_of_a_running_episode_are_refused(mode, message, framework):
    env = wrap_env(TellingVector(mode, [False, True, False]), framework=framework)
    with pytest.raises(WorkerError, match=message):
        run(1, framework=framework, env=env, agents=RecordingAgent)


@pytest.mark.parametrize(
    ("final", "message"),
    [
        ({"a": np.zeros((3, 3))}, r"is \{'a': array.* of type dict; expected an array of 3 observations"),
        (np.zeros((2, 3)), r"is array.* of type numpy.ndarray; expected"),
        (7, "is 7 of type int; expected"),
        (np.array(7), r"is array\(7\) of type numpy.ndarray; expected"),
        ([None] * 3, "a final observation is of type NoneType"),
    ],
)
def test_odd_final_observations_of_a_vector_environment_are_named(final, message):
    class Odd(TellingVector):
        def step(self, actions: Any) -> Any:
            *outputs, _ = super().step(actions)
            return *outputs, {"final_obs": final} if self.flags.any() else {}

    env = wrap_env(Odd(AutoresetMode.SAME_STEP, []), framework="torch")
    with pytest.raises(WorkerError, match=message):
        run(3, env=env, agents=RecordingAgent)


def test_a_mask_without_a_final_observation_is_no_fault(framework):
    env = wrap_env(TellingVector(AutoresetMode.SAME_STEP, [False] * 3), framework=framework)
    (outputs,), (agent,) = run(1, framework=framework, env=env, agents=RecordingAgent)
    assert not {"final_obs", "_final_obs"} & outputs[4].keys()
    assert to_numpy(agent.records()[0]["next_observations"])[:, 2].tolist() == [1] * 3


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
