"""Gymnasium environments in our wrapper: the same behaviour in all three autoreset modes, only true transitions."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Text
from gymnasium.spaces.utils import flatdim
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import NormalizeObservation, RecordEpisodeStatistics

from tests.support.agents import NullAgent, RecordingAgent, copied, to_numpy
from tests.support.envs import CountingEnv, NoisyEnv, SilentEnv
from tests.support.parity import assert_same, copied_outputs, run
from workers.envs import EnvFactory, make_env, making, wrap_env
from workers.envs.base import recipe_of
from workers.envs.gymnasium import GymnasiumWrapper
from workers.envs.making import build_rows
from workers.errors import EnvError, WorkerError, marked_row
from workers.frameworks import load_framework

MODES = list(AutoresetMode)


def counting(mode: AutoresetMode, framework: str, *, kind: Any = SyncVectorEnv, rows: int = 2) -> GymnasiumWrapper:
    env = kind([lambda row=row: CountingEnv(row) for row in range(rows)], autoreset_mode=mode)
    return GymnasiumWrapper(env, framework=framework)


@pytest.mark.parametrize("mode", MODES)
def test_only_true_transitions_are_recorded(mode, framework):
    """Row 0 terminates after 3 steps, row 1 is truncated after 4. The trace is written out by hand.

    Each entry: observation ``(row, episode, step, last action)``, the action, the observation after it, and the flags.
    """
    _, agents = run(5, framework=framework, env=counting(mode, framework), agents=RecordingAgent)
    trace = [
        (
            record["observations"].tolist(),
            record["actions"].ravel().tolist(),
            record["next_observations"].tolist(),
            record["terminated"].ravel().tolist(),
            record["truncated"].ravel().tolist(),
        )
        for record in agents[0].records()
    ]
    no = [False, False]
    assert trace == [
        ([[0, 0, 0, -1], [1, 0, 0, -1]], [1, 101], [[0, 0, 1, 1], [1, 0, 1, 101]], no, no),
        ([[0, 0, 1, 1], [1, 0, 1, 101]], [2, 102], [[0, 0, 2, 2], [1, 0, 2, 102]], no, no),
        ([[0, 0, 2, 2], [1, 0, 2, 102]], [3, 103], [[0, 0, 3, 3], [1, 0, 3, 103]], [True, False], no),
        ([[0, 1, 0, -1], [1, 0, 3, 103]], [4, 104], [[0, 1, 1, 4], [1, 0, 4, 104]], no, [False, True]),
        ([[0, 1, 1, 4], [1, 1, 0, -1]], [5, 105], [[0, 1, 2, 5], [1, 1, 1, 105]], no, no),
    ]


def trace_of(env: GymnasiumWrapper, steps: int = 60) -> list[Any]:
    generator = np.random.default_rng(0)
    outputs = [copied_outputs(env.reset(seed=9))]
    for _ in range(steps):
        actions = generator.random((env.num_envs, flatdim(env.action_space)), np.float32)
        outputs.append(copied_outputs(env.step(load_framework(env.framework).from_numpy(actions))))
    env.close()
    return outputs


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
@pytest.mark.parametrize("env", [CountingEnv, NoisyEnv], ids=["counting", "noisy"])
def test_every_mode_is_same_step(env, mode, framework):
    def trace(autoreset):
        rows = [lambda i=i: CountingEnv(i) if env is CountingEnv else NoisyEnv(6) for i in range(3)]
        return trace_of(GymnasiumWrapper(SyncVectorEnv(rows, autoreset_mode=autoreset), framework=framework))

    assert_same(trace(mode), trace(AutoresetMode.SAME_STEP))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_asynchronous_environments_are_as_synchronous_ones(mode, framework):
    """Uses the spawn context, because forking a process that has run Ray or many threads may block."""
    kind = lambda fns, **options: AsyncVectorEnv(fns, context="spawn", **options)  # noqa: E731
    assert_same(trace_of(counting(mode, framework, kind=kind), 12), trace_of(counting(mode, framework), 12))


def test_single_environments_are_seeded_by_their_index(framework):
    whole = to_numpy(wrap_env([NoisyEnv(5) for _ in range(4)], framework=framework).reset(seed=10)[0])
    part = to_numpy(wrap_env([NoisyEnv(5) for _ in range(2)], framework=framework).reset(seed=12)[0])
    np.testing.assert_array_equal(whole[2:], part)
    assert not np.array_equal(whole[:2], part)


class ForgetfulEnv(VectorEnv[Any, Any, Any]):
    """Resets all rows regardless of the mask, or does not accept a mask."""

    num_envs = 2
    single_observation_space = Box(-1e9, 1e9, (1,), np.float32)
    single_action_space = Discrete(2)

    def __init__(self, mode: AutoresetMode, knows_mask: bool) -> None:
        self.metadata = {"autoreset_mode": mode}
        self.knows_mask = knows_mask
        self.observations = np.zeros((2, 1), np.float32)

    def reset(self, *, seed=None, options=None):
        if options and not self.knows_mask:
            raise TypeError("unexpected options")
        self.observations = np.zeros((2, 1), np.float32)
        return self.observations.copy(), {}

    def step(self, actions):
        self.observations += 1
        return self.observations.copy(), np.zeros(2), np.array([True, False]), np.zeros(2, bool), {}


@pytest.mark.parametrize("knows_mask", [True, False])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_environment_that_refuses_the_mask_is_refused_by_name(mode, knows_mask, framework):
    env = wrap_env(ForgetfulEnv(mode, knows_mask), framework=framework)
    with pytest.raises(WorkerError, match=r"ForgetfulEnv.*reset_mask.*SAME_STEP"):
        run(1, framework=framework, env=env, agents=NullAgent)


def test_environment_without_a_mode_is_refused():
    env = ForgetfulEnv(AutoresetMode.DISABLED, True)
    env.metadata = {}
    with pytest.raises(EnvError, match="autoreset_mode"):
        wrap_env(env, framework="torch")


def test_normalising_wrapper_changes_running_rows_at_a_reset_and_is_refused(framework):
    env = NormalizeObservation(SyncVectorEnv([lambda: NoisyEnv(3)] * 4, autoreset_mode=AutoresetMode.NEXT_STEP))
    with pytest.raises(EnvError, match=r"NormalizeObservation.*reset_mask"):
        trace_of(GymnasiumWrapper(env, framework=framework))


@pytest.mark.parametrize("mode", MODES)
def test_episode_statistics_of_a_vector_wrapper(mode, framework):
    """Row 0 ends after 3 steps, row 1 after 4; neither end may affect the other's statistics."""
    rows = [partial(SilentEnv, row) for row in range(2)]
    env = RecordEpisodeStatistics(SyncVectorEnv(rows, autoreset_mode=mode))
    outputs, (agent,) = run(4, framework=framework, env=wrap_env(env, framework=framework), agents=RecordingAgent)
    ends = []
    for *_, infos in outputs:
        # except in SAME_STEP mode, the infos of an episode's last step are in final_info
        place = infos if mode is AutoresetMode.SAME_STEP else infos.get("final_info", {})
        if "_episode" in place:
            ends.append((place["_episode"].tolist(), place["episode"]["l"].tolist(), place["episode"]["r"].tolist()))
    rewards = [sum(step / 10 for step in (1, 2, 3)), sum(1000 + step / 10 for step in (1, 2, 3, 4))]
    assert [(mask, lengths) for mask, lengths, _ in ends] == [([True, False], [3, 0]), ([False, True], [0, 4])]
    assert [sum(returns) for *_, returns in ends] == pytest.approx(rewards)
    assert [value for name, value in agent.tracked if name == "Info / l"] == [3.0, 4.0]


@pytest.mark.parametrize("space", [Discrete(3), Discrete(3, start=5)])
def test_discrete_actions_are_those_of_the_space(space, framework):
    class Echo(gymnasium.Env[Any, Any]):
        observation_space = Discrete(4, start=2)
        action_space = space

        def reset(self, *, seed=None, options=None):
            return 2, {}

        def step(self, action):
            assert self.action_space.contains(action)
            return 2 + int(action - space.start), float(action), False, False, {}

    env = wrap_env([Echo(), Echo()], framework=framework)
    env.reset()
    actions = load_framework(framework).from_numpy(np.array([[space.start], [space.start + 2]]))
    observations, rewards, *_ = copied_outputs(env.step(actions))
    assert observations.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]]
    assert rewards.tolist() == [[space.start], [space.start + 2]]


def test_arrays_are_flat_and_of_the_right_types(framework):
    class Grid(gymnasium.Env[Any, Any]):
        observation_space = Box(-1, 1, (2, 3), np.float64)
        action_space = Box(-1, 1, (2, 2), np.float64)

        def reset(self, *, seed=None, options=None):
            return np.arange(6.0).reshape(2, 3), {}

        def step(self, action):
            assert action.dtype == np.float64
            return np.full((2, 3), action[1, 0]), 1, True, False, {}

    env = wrap_env([Grid(), Grid()], framework=framework)
    assert to_numpy(env.reset()[0]).tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    actions = load_framework(framework).from_numpy(np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32))
    outputs = env.step(actions)
    assert all(load_framework(framework).is_array(array) for array in (*outputs[:4], outputs[4]["final_obs"]))
    observations, rewards, terminated, truncated, infos = copied_outputs(outputs)
    assert (observations.dtype, rewards.dtype) == (np.float32, np.float32)
    assert (terminated.dtype, truncated.dtype) == (np.bool_, np.bool_)
    assert (rewards.shape, terminated.shape, truncated.shape) == ((2, 1),) * 3
    assert infos["final_obs"].tolist() == [[3.0] * 6, [7.0] * 6]


class StatefulEnv(CountingEnv):
    """Has privileged states: the first three entries of the observation, negated."""

    state_space = Box(-np.inf, np.inf, (3,), np.float32)

    def state(self):
        return -self.observation(0.0)[:3]


def test_states_before_and_after_and_at_the_end(framework):
    env = wrap_env([StatefulEnv(0), StatefulEnv(1)], framework=framework)
    assert env.state_space == StatefulEnv.state_space
    _, agents = run(4, framework=framework, env=env, agents=RecordingAgent)
    for record in agents[0].records():
        np.testing.assert_array_equal(record["states"], -record["observations"][:, :3])
        np.testing.assert_array_equal(record["next_states"], -record["next_observations"][:, :3])


class Stateless(StatefulEnv):
    def state(self):
        if self.row == 2:
            raise RuntimeError("no state")
        return super().state()


def test_the_copy_whose_state_fails_is_marked(framework):
    env = wrap_env([Stateless(row) for row in range(3)], framework=framework)
    env.reset()
    with pytest.raises(RuntimeError, match="no state") as caught:
        env.state()
    assert marked_row(caught.value) == 2


def test_states_in_same_step_mode_are_refused():
    env = SyncVectorEnv([lambda: StatefulEnv(0)], autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(EnvError, match=r"states.*DISABLED"):
        wrap_env(env, framework="torch")


def test_make_env_and_wrap_env_refuse_what_they_cannot_take():
    with pytest.raises(EnvError, match="NoSuchEnv-v0"):
        make_env("NoSuchEnv-v0", num_envs=2, framework="torch")
    with pytest.raises(EnvError, match="has num_envs 0; expected"):
        make_env("CartPole-v1", num_envs=0, framework="torch")
    with pytest.raises(EnvError, match=r"builtins\.int cannot be wrapped"):
        wrap_env(3, framework="torch")
    env = NoisyEnv()
    env.observation_space = Dict(a=Discrete(2), b=Text(3))  # type: ignore[assignment]
    with pytest.raises(EnvError, match=r"observation space, in Dict.*: Text.*is not supported; expected Box, Discrete"):
        wrap_env(env, framework="torch")


def test_what_make_env_cannot_use_is_closed():
    made: list[Any] = []
    closed: list[Any] = []

    class Env(NoisyEnv):
        def __init__(self, fault: bool = False) -> None:
            super().__init__()
            if fault and len(made) == 2:
                raise KeyError("the third copy")
            made.append(self)

        def close(self) -> None:
            closed.append(self)

    gymnasium.register("Closing-v0", lambda **options: Env(**options))
    try:
        with pytest.raises(EnvError, match="states is 'joint'"):
            make_env("Closing-v0", num_envs=3, framework="numpy", states="joint")
        assert closed == made
        assert len(made) == 3
        made.clear()
        closed.clear()
        with pytest.raises(KeyError, match="the third copy"):
            make_env("Closing-v0", num_envs=3, framework="numpy", fault=True)
        assert closed == made
        assert len(made) == 2
    finally:
        del gymnasium.registry["Closing-v0"]


def test_what_is_not_finite_is_allowed_in_copies_of_a_wrapped_environment_too():
    env = make_env("CartPole-v1", num_envs=2, framework="numpy")
    for expected in (False, True):
        env = wrap_env(env, framework="numpy", allow_nonfinite=expected)
        recipe = recipe_of(env)
        assert recipe is not None
        assert build_rows(recipe, 1, 1, framework="numpy", seed=None).allow_nonfinite is expected


def test_make_env_passes_options_on_and_remembers_its_recipe(framework):
    env = make_env("CartPole-v1", num_envs=2, framework=framework, max_episode_steps=3)
    env.reset(seed=0)
    actions = load_framework(framework).from_numpy(np.zeros((2, 1), np.int64))
    for _ in range(3):
        *_, truncated, infos = env.step(actions)
    assert to_numpy(truncated).all()
    assert infos["_final_obs"].all()
    assert isinstance(env.recipe, EnvFactory)
    part, whole = (
        build_rows(env.recipe, 2 - row, row, framework=framework, seed=None).reset(seed=row)[0] for row in (1, 0)
    )
    np.testing.assert_array_equal(to_numpy(part), to_numpy(whole)[1:])


def test_render_without_a_render_mode_does_nothing():
    assert make_env("CartPole-v1", num_envs=1, framework="torch").render() is None


def test_copied_keeps_values(framework):
    ones = np.ones(2, np.float32)
    assert_same(copied({"a": load_framework(framework).from_numpy(ones)}), {"a": ones})


def test_mujoco_warns_once_in_a_process(capfd: pytest.CaptureFixture[str], monkeypatch: Any, tmp_path: Path):
    """MuJoCo's C library writes to the process's output and to a file in the working directory."""
    mujoco = importlib.import_module("mujoco")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(making, "_made", set())
    for expected in (1, 0):
        make_env("HalfCheetah-v5", num_envs=4, framework="numpy").close()
        said = capfd.readouterr()
        assert (said.out + said.err).count("'settotalmass' is deprecated") == expected
    assert mujoco.get_mju_user_warning() is None
