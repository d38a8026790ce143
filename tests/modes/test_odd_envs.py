"""Whatever an environment gives is checked: an error names scope, environment, agent, timestep, and what it was."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import Env
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

from orchestrator.ray import RayOrchestrator
from tests.support.agents import NullAgent, RecordingAgent, RecordingTeam, to_numpy
from tests.support.envs import CountingEnv
from tests.support.multi_agent_envs import CountingTeamEnv
from tests.support.odd_envs import NUM_ENVS, ODD_ROW, OddForeign, assert_odd_row, failure_of, filled
from tests.support.parity import assert_same, run
from tests.support.schedule import full_or_short, in_turn
from workers.envs import EnvFactory, wrap_env
from workers.errors import EnvError


def floats(*values: float) -> Any:
    return np.array(values, np.float32)


FAULTS: dict[str, tuple[int, Any, str]] = {
    "NaN in an observation": (0, floats(0, np.nan, 0, 0), "observations are nan in column 1; expected finite"),
    "infinity in an observation": (0, floats(0, 0, 0, -np.inf), "observations are -inf in column 3"),
    "too large for float32": (0, np.array([1e39, 0, 0, 0]), "are inf in column 0; expected .* that fit float32"),
    "NaN as a reward": (1, float("nan"), "rewards are nan; expected finite"),
    "infinity as a reward": (1, np.float64("inf"), "rewards are inf"),
    "None as a reward": (1, None, "the reward is None; expected a number"),
    "two rewards": (1, np.zeros(2), r"the reward is an array of shape \(2,\) and dtype float64; expected a number"),
    "text as a reward": (1, "much", "the reward is 'much' of type str"),
    "a complex reward": (1, 1j, "the reward is '1j' of type complex"),
    "a tensor as a reward": (1, torch.tensor(1.0), "the reward is 'tensor.*' of type torch.Tensor"),
    "an observation of another shape": (0, np.zeros(3, np.float32), r"has shape \(3,\); expected \(4,\), as in Box"),
    "an observation that would be broadcast": (0, np.float32(0), r"has shape \(\); expected \(4,\)"),
    "a matrix as an observation": (0, np.zeros((1, 4)), r"has shape \(1, 4\); expected \(4,\)"),
    "text as an observation": (0, np.array(list("abcd")), "has dtype <U1; expected float32"),
    "None as an observation": (0, None, "is of type NoneType; expected a NumPy array of shape"),
    "a ragged observation": (0, [1, [2, 3], 4, 5], "is a ragged list"),
    "a masked observation": (0, np.ma.masked_equal([0.0, 1, 2, 3], 1), "is a masked array with masked elem"),
    "a tensor as an observation": (0, torch.zeros(4), "is of type torch.Tensor; expected a NumPy array"),
    "None as a flag": (2, None, "terminated is None; expected True or False"),
    "two as a flag": (3, 2, "truncated is '2' of type int; expected True or False"),
}


class OddEnv(CountingEnv):
    """Gives something odd in its second step."""

    def __init__(self, row: int, index: int, value: Any) -> None:
        super().__init__(row)
        self.index, self.value = index, value

    def step(self, action: Any) -> Any:
        given = list(super().step(action))
        if self.step_count == 2:
            given[self.index] = self.value
        return tuple(given)


def odd_factory(index: int, value: Any, **options: Any) -> EnvFactory:
    def build(num_envs: int, first_env: int) -> list[CountingEnv]:
        rows = range(first_env, first_env + num_envs)
        return [OddEnv(row, index, value) if row == ODD_ROW else CountingEnv(row) for row in rows]

    return EnvFactory(build, num_envs=NUM_ENVS, **options)


@pytest.mark.parametrize(("fault", "framework"), in_turn(list(FAULTS)))
def test_odd_copy_is_named(fault, framework):
    index, value, message = FAULTS[fault]
    assert_odd_row(failure_of(odd_factory(index, value), framework), message)


SHAPE, REWARD = "an observation of another shape", "NaN as a reward"


@pytest.mark.parametrize(
    ("mode", "framework", "fault"),
    full_or_short(
        [(*mode, fault) for mode in (("sharded", "warp"), ("shared", "torch")) for fault in (SHAPE, REWARD)],
        [("sharded", "warp", SHAPE), ("shared", "torch", REWARD)],
    ),
)
def test_odd_copy_is_named_in_ray(mode, framework, fault, ray_cluster):
    index, value, message = FAULTS[fault]
    env: Any = odd_factory(index, value)
    if mode == "shared":
        env = wrap_env(env.build(NUM_ENVS, 0), framework=framework)
    assert_odd_row(failure_of(env, framework, orchestrator=RayOrchestrator(num_cpus=0.5)), message)


class Returning(CountingEnv):
    """Returns the results of a function of the usual outputs."""

    def __init__(self, row: int, change: Any, change_reset: Any = lambda given: given) -> None:
        super().__init__(row)
        self.change, self.change_reset = change, change_reset

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return self.change_reset(super().reset(seed=seed))

    def step(self, action: Any) -> Any:
        return self.change(super().step(action))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda given: (*given[:2], given[2], given[4]),
            r"step\(\) returned 4 values; expected five: observations, rew",
        ),
        (lambda given: given[0], r"step\(\) returned a numpy.ndarray; expected five"),
        (lambda given: None, r"step\(\) returned a NoneType; expected five"),
    ],
)
def test_a_step_of_other_than_five_values_is_refused(change, message, framework):
    env = EnvFactory(lambda n, first: [Returning(row, change) for row in range(first, first + n)], num_envs=2)
    assert re.search(message, failure_of(env, framework, scopes=[2], timestep=1).message)


def test_a_reset_of_other_than_two_values_is_refused(framework):
    copies = [Returning(row, lambda given: given, lambda given: given[0]) for row in range(2)]
    with pytest.raises(EnvError, match=r"reset\(\) returned a numpy.ndarray; expected two: observations and infos"):
        wrap_env(copies, framework=framework).reset()


@pytest.mark.parametrize("kind", [float, int, np.float32, np.float64, np.int64, np.asarray, lambda x: np.array([x])])
def test_rewards_of_one_number_are_accepted(kind, framework):
    def outputs(change: Any) -> Any:
        env = wrap_env([Returning(row, change) for row in range(2)], framework=framework)
        return run(5, framework=framework, env=env, agents=NullAgent)[0]

    def plain(given: Any) -> Any:
        return (given[0], float(given[0][0]), *given[2:])

    def changed(given: Any) -> Any:
        flags = [np.array([flag]) if kind is np.asarray else np.bool_(flag) for flag in given[2:4]]
        return (given[0], kind(given[0][0]), *flags, given[4])

    assert_same(outputs(changed), outputs(plain))


class Showing(Env[Any, Any]):
    """Returns one observation at the reset and another one in the first step."""

    action_space = Discrete(2)

    def __init__(self, space: Any, first: Any, then: Any) -> None:
        self.observation_space, self.first, self.then = space, first, then

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return self.first, {}

    def step(self, action: Any) -> Any:
        return self.then, 0.0, False, False, {}


@pytest.mark.parametrize(
    ("space", "good", "bad", "message"),
    [
        (Discrete(3), 2, 3, r"an observation is 3; expected one in Discrete\(3\)"),
        (Discrete(3), 0, -1, r"an observation is -1; expected one in Discrete\(3\)"),
        (Discrete(3, start=5), 7, 4, r"an observation is 4; expected one in Discrete\(3, start=5\)"),
        (Discrete(3, start=5), 5, 8, r"an observation is 8; expected one in"),
        (Discrete(3, start=-2), -2, 1, r"an observation is 1; expected one in"),
        (Discrete(3), np.int64(1), 1.0, "has dtype float64; expected int64"),
        (Discrete(3), 1, np.array([1]), r"has shape \(1,\); expected \(\)"),
        (Discrete(3), 1, 2**70, "has values from|has dtype object"),
        (
            MultiDiscrete([2, 3]),
            np.array([1, 2]),
            np.array([2, 0]),
            r"an observation is \[2, 0\]; expected one in Multi",
        ),
        (MultiDiscrete([2, 3]), np.array([0, 0]), np.array([0, -1]), r"an observation is \[0, -1\]"),
        (MultiDiscrete([2, 3], start=[4, 0]), np.array([5, 2]), np.array([3, 2]), r"an observation is \[3, 2\]"),
        (MultiDiscrete([2, 3], np.int8), np.array([1, 2], np.int8), np.array([256, 0]), "values from 0 to 256"),
        (MultiBinary(2), np.array([1, 0], np.int8), np.array([1, 2], np.int8), r"an observation is \[1, 2\]"),
        (
            Box(0, 255, (2,), np.uint8),
            np.array([0, 255]),
            np.array([0, 256]),
            "from 0 to 256; expected values that fit",
        ),
        (Box(0, 255, (2,), np.uint8), np.array([0, 9], np.uint8), np.array([-1, 0]), "values from -1 to 0; expected"),
        (Box(0, 9, (2,), np.int32), [1, 2], np.array([0.5, 1]), "has dtype float64; expected int32"),
        (
            Dict(a=Discrete(2), b=Discrete(2)),
            {"a": 1, "b": 0},
            {"a": 1},
            r"has the keys \['a'\]; expected \['a', 'b'\]",
        ),
        (
            Dict(a=Discrete(2), b=Discrete(2)),
            {"a": 1, "b": 0},
            {"a": 1, "b": 2},
            r"an observation, in \['b'\], is 2; expected one in",
        ),
        (
            Dict(a=Box(0, 1, (2,))),
            {"a": [0, 1]},
            {"a": [0]},
            r"an observation, in \['a'\], has shape \(1,\); expected \(2,\)",
        ),
    ],
)
def test_observations_outside_of_their_space_are_refused(space, good, bad, message, framework):
    def build(num_envs: int, first_env: int) -> list[Env[Any, Any]]:
        rows = range(first_env, first_env + num_envs)
        return [Showing(space, good, bad if row == ODD_ROW else good) for row in rows]

    assert_odd_row(failure_of(EnvFactory(build, num_envs=NUM_ENVS), framework, timestep=1), message)


@pytest.mark.parametrize("number", [2**31 - 1, -(2**31), 2**31, -(2**40)])
def test_large_integers_are_kept_or_refused(number, framework):
    """JAX has no 64-bit integers unless they are enabled."""
    space, zeros = Box(-(2**62), 2**62, (2,), np.int64), np.zeros(2, np.int64)

    def build(num_envs: int, first_env: int) -> list[Env[Any, Any]]:
        rows = range(first_env, first_env + num_envs)
        return [Showing(space, zeros, np.array([row, number if row == ODD_ROW else 0])) for row in rows]

    env = EnvFactory(build, num_envs=NUM_ENVS)
    if framework == "jax" and not -(2**31) <= number < 2**31:
        assert_odd_row(failure_of(env, framework, timestep=1), f"^{number} of dtype int64 does not fit JAX's int32")
    else:
        (outputs,), _ = run(1, framework=framework, env=env, agents=NullAgent)
        assert outputs[0].tolist() == [[row, number if row == ODD_ROW else 0] for row in range(NUM_ENVS)]


def test_float64_beyond_float32_is_told_as_such(framework):
    def build(num_envs: int, first_env: int) -> list[Env[Any, Any]]:
        space, zeros = Box(-np.inf, np.inf, (2,), np.float64), np.zeros(2)
        rows = range(first_env, first_env + num_envs)
        return [Showing(space, zeros, np.array([0, 1e300 if row == ODD_ROW else 0])) for row in rows]

    failure = failure_of(EnvFactory(build, num_envs=NUM_ENVS), framework, timestep=1)
    assert_odd_row(failure, "observations are inf in column 1; expected finite numbers that fit float32. Correct")


@pytest.mark.parametrize(("rows", "others"), [(1, ""), (2, " (and in 1 more environment)"), (3, " (and in 2 more")])
def test_how_many_more_are_odd_and_in_what(rows, others, framework):
    nan, copies = floats(np.nan, 0), [Showing(Box(-1, 1, (2,)), np.zeros(2), np.zeros(2)) for _ in range(NUM_ENVS)]
    for copy in copies[:rows]:
        copy.then = nan
    failure = failure_of(wrap_env(copies, framework=framework), framework, timestep=1)
    name = f"environment CheckedSyncVectorEnv(num_envs={NUM_ENVS})"
    assert f"{name}: observations are nan in column 0{others}" in failure.message
    assert f"in copy 0 of {name}" in failure.traceback


class Stateful(CountingEnv):
    """Its states, and what it shows at an end or a reset, may hold NaN."""

    state_space = Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, row: int, fault: str) -> None:
        super().__init__(row)
        self.fault = fault if row == ODD_ROW else ""

    def state(self) -> Any:
        is_odd = self.fault == "state" and self.step_count == 2
        return floats(self.row, np.nan if is_odd else self.step_count)

    def observation(self, action: float) -> Any:
        observation = super().observation(action)
        is_final = self.fault == "final observation" and self.step_count == self.length
        is_first = self.fault == "observation of the next episode" and self.episode == 1 and not self.step_count
        observation[2] = np.nan if is_final or is_first else observation[2]
        return observation


@pytest.mark.parametrize(
    ("fault", "timestep", "message"),
    [
        ("state", 2, "states are nan in column 1"),
        ("final observation", 6, "final observations are nan in column 2"),
        ("observation of the next episode", 6, "observations are nan in column 2"),
    ],
)
def test_states_and_both_observations_of_an_end_are_checked(fault, timestep, message, framework):
    def build(num_envs: int, first_env: int) -> list[CountingEnv]:
        return [Stateful(row, fault) for row in range(first_env, first_env + num_envs)]

    failure = failure_of(EnvFactory(build, num_envs=NUM_ENVS), framework, timestep=timestep)
    assert_odd_row(failure, message)


def test_the_first_observations_are_checked(framework):
    space = Box(-1, 1, (2,))
    env = EnvFactory(lambda n, first: [Showing(space, floats(0, np.nan), np.zeros(2))] * n, num_envs=1)
    failure = failure_of(env, framework, scopes=[1], timestep=1)
    assert (failure.phase, failure.rows) == ("reset", (0, 1))
    assert "observations are nan in column 1" in failure.message


@pytest.mark.parametrize("way", ["factory", "wrap_env", "foreign"])
def test_numbers_that_are_not_finite_may_be_allowed(way, framework):
    env: Any = odd_factory(1, float("nan"), allow_nonfinite=way == "factory")
    if way == "wrap_env":
        env = wrap_env(env.build(NUM_ENVS, 0), framework=framework, allow_nonfinite=True)
    if way == "foreign":
        env = OddForeign(framework, lambda given: (given[0], filled(given[1], np.nan), *given[2:]))
        env.allow_nonfinite = True
    outputs, (agent,) = run(2, framework=framework, env=env, agents=RecordingAgent)
    assert np.isnan(to_numpy(outputs[1][1])).any()
    assert np.isnan(to_numpy(agent.records()[1]["rewards"])).any()


class OddTeam(CountingTeamEnv):
    """In its fourth step, the tank's observation or a reward is NaN; the scout died in the second."""

    def __init__(self, row: int, fault: str, *, arrival: int = 0) -> None:
        super().__init__(row, arrival=arrival)
        self.fault = fault if row == 1 else ""

    def step(self, actions: Any) -> Any:
        observations, rewards, *rest = super().step(actions)
        if self.step_count == 4 and self.fault == "observation":
            observations["tank"][1] = np.nan
        elif self.step_count == 4 and self.fault:
            rewards[self.fault] = float("nan")
        return observations, rewards, *rest


def team(scope: Any) -> RecordingTeam:
    return RecordingTeam(CountingTeamEnv(0)._action_spaces, scope)


@pytest.mark.parametrize(
    ("fault", "message"),
    [("observation", "observations of 'tank' are nan in column 1"), ("tank", "rewards of 'tank' are nan")],
)
def test_odd_agent_of_a_team_is_named(fault, message, framework):
    env = EnvFactory(lambda n, first: [OddTeam(row, fault) for row in range(first, first + n)], num_envs=3)
    failure = failure_of(env, framework, scopes=[1, 2], timestep=4, agent=team)
    assert (failure.scope, failure.rows) == (1, (1, 2))
    assert message in failure.message


def test_an_agent_that_came_after_the_reset_is_checked(framework):
    class Late(OddTeam):
        def observation(self, name: str) -> Any:
            observation = super().observation(name)
            observation[-1] = np.nan if self.fault and name == "medic" and self.step_count == 3 else observation[-1]
            return observation

    env = EnvFactory(lambda n, first: [Late(row, "medic", arrival=2) for row in range(first, first + n)], num_envs=3)
    failure = failure_of(env, framework, scopes=[1, 2], timestep=3, agent=team)
    assert (failure.scope, failure.rows) == (1, (1, 2))
    assert "observations of 'medic' are nan in column 5" in failure.message


def test_reward_of_a_dead_agent_is_not_checked(framework):
    env = EnvFactory(lambda n, first: [OddTeam(row, "scout") for row in range(first, first + n)], num_envs=3)
    outputs, _ = run(4, framework=framework, env=env, agents=team)
    assert to_numpy(outputs[3][1]["scout"]).tolist() == [[0.0]] * 3
