"""Flat observations and actions of every Gymnasium space of fixed width, compared with Gymnasium's functions."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, OneOf, Sequence, Text, Tuple
from gymnasium.spaces.utils import flatdim, flatten
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.parity import assert_same
from workers.envs import wrap_env
from workers.envs.gymnasium import GymnasiumWrapper
from workers.envs.sample_rows import SampleRows
from workers.errors import EnvError, marked_row
from workers.spaces import action_width, unflatten_actions

MODES = list(AutoresetMode)
ROWS = 3
CONVERT: dict[str, Any] = {"numpy": np.asarray, "torch": torch.tensor}

SHAPES = st.sampled_from([(), (1,), (3,), (2, 2), (1, 3, 2)])
BOXES = st.builds(
    lambda dtype, shape: Box(0 if dtype is np.uint8 else -9, 120, shape, dtype),
    st.sampled_from([np.float16, np.float32, np.float64, np.int8, np.int32, np.int64, np.uint8]),
    SHAPES,
)
DISCRETES = st.builds(
    lambda n, start, dtype: Discrete(n, start=start, dtype=dtype),
    st.integers(1, 5),
    st.integers(-3, 3),
    st.sampled_from([np.int64, np.int32, np.int8]),
)
MULTI_DISCRETES = st.builds(
    lambda nvec, start: MultiDiscrete(nvec, start=np.full(np.shape(nvec), start)),
    st.sampled_from([[2], [3, 2, 4], [[2, 3], [1, 4]], [[[5, 2]]]]),
    st.integers(-3, 3),
)
MULTI_BINARIES = st.sampled_from([MultiBinary(1), MultiBinary(3), MultiBinary([2, 2]), MultiBinary([1, 3, 2])])


def containers(spaces: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    named = st.dictionaries(st.sampled_from("zyxw"), spaces, min_size=1, max_size=3)
    return st.builds(lambda members, sort: Dict(members, sort_keys=sort), named, st.booleans()) | st.lists(
        spaces, min_size=1, max_size=3
    ).map(Tuple)


SPACES = st.recursive(BOXES | DISCRETES | MULTI_DISCRETES | MULTI_BINARIES, containers, max_leaves=6)


class SamplingEnv(gymnasium.Env[Any, Any]):
    """Observes samples seeded by the row and ends after ``2 + row`` steps. Keeps all observations and actions."""

    def __init__(self, row: int, observation_space: Any, action_space: Any) -> None:
        self.observation_space = deepcopy(observation_space)
        self.observation_space.seed(row + 1)
        self.action_space = action_space
        self.length = 2 + row
        self.step_count = 0
        self.given: list[Any] = []
        self.taken: list[Any] = []

    def observe(self) -> Any:
        self.given.append(self.observation_space.sample())
        return deepcopy(self.given[-1])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.step_count = 0
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        self.taken.append(deepcopy(action))
        self.step_count += 1
        return self.observe(), 0.0, self.step_count == self.length, False, {}


def vectorized(envs: list[SamplingEnv], mode: AutoresetMode) -> SyncVectorEnv:
    return SyncVectorEnv([lambda env=env: env for env in envs], autoreset_mode=mode)  # type: ignore[misc]


def expected(space: Any, samples: list[Any]) -> Any:
    rows = np.array([flatten(space, sample) for sample in samples])
    return rows.astype(np.float32) if rows.dtype.kind == "f" else rows


def laid_out(space: Any, action: Any) -> list[Any]:
    """Return the elements of an action, member by member."""
    if isinstance(space, Dict):
        return [element for key, member in space.spaces.items() for element in laid_out(member, action[key])]
    if isinstance(space, Tuple):
        return [element for index, member in enumerate(space.spaces) for element in laid_out(member, action[index])]
    return list(np.ravel(action).tolist())


def without_0d(tree: Any) -> Any:
    """Convert 0-d arrays to NumPy scalars: Gymnasium samples the former from a 0-d Box, but its vector environments
    pass rows of a batch to the environments, which are the latter."""
    if isinstance(tree, dict):
        return {key: without_0d(value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(map(without_0d, tree))
    return tree[()] if isinstance(tree, np.ndarray) else tree


@pytest.mark.parametrize("framework", list(CONVERT))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore:.*Casting input x to numpy array:UserWarning")  # from a 0-d Box
@settings(deadline=None, max_examples=60)
@given(observation_space=SPACES, action_space=SPACES)
def test_rows_are_flattened_and_acted_on_as_gymnasium_says(mode, framework, observation_space, action_space):
    envs = [SamplingEnv(row, observation_space, action_space) for row in range(ROWS)]
    env = GymnasiumWrapper(vectorized(envs, mode), framework=framework)
    action_space.seed(0)
    flat, _ = env.reset(seed=0)
    assert_same(np.asarray(flat), expected(observation_space, [e.given[-1] for e in envs]))
    assert env._framework.is_array(flat)
    assert action_width(action_space) == len(laid_out(action_space, action_space.sample()))
    for _ in range(5):
        actions = [action_space.sample() for _ in range(ROWS)]
        rows = np.array([laid_out(action_space, action) for action in actions], dtype=np.float64)
        flat, *_, infos = env.step(CONVERT[framework](rows))
        assert_same([e.taken[-1] for e in envs], [without_0d(action) for action in actions])
        assert all(action_space.contains(e.taken[-1]) for e in envs)
        assert_same(np.asarray(flat), expected(observation_space, [e.given[-1] for e in envs]))
        ended = np.array([e.step_count == 0 for e in envs])  # already reset
        assert ("final_obs" in infos) == ended.any()
        if ended.any():
            final = expected(observation_space, [e.given[-2] for e in envs])
            final[~ended] = 0
            assert_same(np.asarray(infos["final_obs"]), final)
            assert_same(infos["_final_obs"], ended)


DICT = Dict(image=Box(0, 255, (2, 2, 1), np.uint8), vector=Box(-1, 1, (3,)), pair=Tuple([Discrete(2), MultiBinary(2)]))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_asynchronous_environments_with_a_dict():
    traces = []
    kinds: list[tuple[Any, dict[str, Any]]] = [(SyncVectorEnv, {}), (AsyncVectorEnv, {"context": "spawn"})]
    for kind, options in kinds:
        rows = [lambda row=row: SamplingEnv(row, DICT, DICT) for row in range(2)]
        vector = kind(rows, autoreset_mode=AutoresetMode.SAME_STEP, **options)
        env = GymnasiumWrapper(vector, framework="numpy")
        traces.append([env.reset(), *(env.step(np.ones((2, action_width(DICT)))) for _ in range(4))])
        env.close()
    assert_same(traces[1], traces[0])


class Scripted(SamplingEnv):
    """Returns the observation it was constructed with."""

    def __init__(self, observation: Any, observation_space: Any, action_space: Any) -> None:
        super().__init__(0, observation_space, action_space)
        self.observation = observation

    def observe(self) -> Any:
        return self.observation


def scripted(space: Any, *observations: Any) -> tuple[Any, list[Scripted]]:
    envs = [Scripted(observation, space, space) for observation in observations]
    return wrap_env(envs, framework="torch"), envs


def test_multi_discrete_by_hand():
    space = MultiDiscrete([2, 3], start=[0, 5])
    env, envs = scripted(space, np.array([0, 7]), np.array([1, 5]))
    assert env.reset()[0].tolist() == [[1, 0, 0, 0, 1], [0, 1, 1, 0, 0]]
    env.step(torch.tensor([[1.0, 6.0], [0.0, 7.0]]))
    assert [e.taken[0].tolist() for e in envs] == [[1, 6], [0, 7]]
    assert_same(envs[0].taken[0], np.array([1, 6]))


def test_dict_of_image_and_vector_by_hand():
    space = Dict(vector=Box(-1, 1, (2,)), image=Box(0, 255, (2, 1), np.uint8), gear=Discrete(2, start=1))
    samples = [{"image": np.full((2, 1), 9 + i, np.uint8), "vector": np.full(2, i / 2), "gear": 1 + i} for i in (0, 1)]
    env, envs = scripted(space, *samples)
    observations, _ = env.reset()
    assert observations.dtype == torch.float32
    assert observations.tolist() == [[0, 0, 9, 9, 1, 0], [0.5, 0.5, 10, 10, 0, 1]]
    env.step(torch.tensor([[-0.5, 0.5, 250, 251, 2], [1, -1, 0, 1, 1]]))
    vector = np.array([-0.5, 0.5], np.float32)
    assert_same(
        envs[0].taken[0],
        {"vector": vector, "image": np.array([[250], [251]], np.uint8), "gear": np.int64(2)},
    )
    assert envs[1].taken[0]["vector"].tolist() == [1, -1]
    assert all(part.flags.c_contiguous for part in (envs[1].taken[0]["image"], envs[1].taken[0]["vector"]))


def test_integers_keep_their_type():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    env, _ = scripted(Box(0, 255, (2, 2, 3), np.uint8), image, image + 100)
    observations = env.reset()[0]
    assert observations.dtype == torch.uint8
    assert observations.tolist() == [list(range(12)), list(range(100, 112))]


def test_large_integers_are_exact():
    large = np.array([2**62 + 1, -(2**62) - 3])
    env, envs = scripted(Box(-(2**63), 2**63 - 1, (2,), np.int64), large, large + 1)
    assert_same(env.reset()[0].numpy(), np.array([large, large + 1]))
    env.step(torch.tensor(np.array([large + 2, large + 3])))
    assert_same([e.taken[0] for e in envs], [large + 2, large + 3])


def test_final_observations_of_rows_that_ended():
    """Only rows 0 and 2 of three end, so that a shift by one row becomes visible."""
    space = Dict(a=Box(-9, 9, (1,)), b=Discrete(3))
    env, envs = scripted(space, *({"a": np.array([row], np.float32), "b": row} for row in range(3)))
    env.reset()
    envs[0].length = envs[2].length = 1
    *_, infos = env.step(torch.ones(3, 2))
    assert infos["final_obs"].tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [2, 0, 0, 1]]
    assert infos["_final_obs"].tolist() == [True, False, True]


def test_states_of_any_space():
    class Stateful(Scripted):
        state_space = Dict(b=Discrete(2), a=Box(-9, 9, (2,), np.int64))

        def state(self) -> Any:
            return {"a": np.array([self.observation, self.step_count]), "b": self.observation}

    envs = [Stateful(row, Discrete(2), Discrete(2)) for row in range(2)]
    env = wrap_env(envs, framework="torch")
    env.reset()
    envs[1].length = 1
    *_, infos = env.step(torch.zeros(2, 1))
    assert env.state().dtype == torch.float32
    assert env.state().tolist() == [[1, 0, 0, 1], [0, 1, 1, 0]]
    assert infos["final_state"].tolist() == [[0, 0, 0, 0], [0, 1, 1, 1]]


def test_widths():
    space = Tuple([Box(-1, 1, ()), Discrete(7), MultiDiscrete(np.array([[2, 3], [4, 5]])), Dict(a=MultiBinary([2, 3]))])
    assert action_width(space) == 1 + 1 + 4 + 6
    assert flatdim(space) == 1 + 7 + 14 + 6
    rows = SampleRows(space, 1, "a sample", "the test")
    rows.add(0, space.sample())
    assert rows.flat().shape == (1, flatdim(space))
    assert len(unflatten_actions(space, np.zeros((1, 12)))) == 4


@pytest.mark.parametrize(
    "space",
    [
        Text(3),
        Graph(Box(-1, 1, (2,)), None),
        Sequence(Discrete(2)),
        OneOf([Discrete(2), Box(-1, 1, (2,))]),
        Dict(),
        Tuple([]),
    ],
    ids=lambda space: type(space).__name__,
)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["observation", "action"])
def test_spaces_without_a_fixed_width_are_refused(kind, nested, space):
    single = SamplingEnv(0, Discrete(2), Discrete(2))
    setattr(single, f"{kind}_space", Dict(good=Discrete(2), bad=Tuple([space])) if nested else space)
    name = type(space).__name__
    with pytest.raises(
        EnvError, match=rf"SyncVectorEnv.*{kind} space.*{name}.* is not supported; expected Box, .*Dict"
    ):
        wrap_env(single, framework="torch")
    with pytest.raises(EnvError, match=rf"action space.*{name}.*not supported"):
        action_width(space)


@pytest.mark.parametrize("shape", [(2, 4), (3, 2), (6,), (1, 6), ()])
def test_actions_of_another_shape_are_refused(shape):
    env, _ = scripted(MultiDiscrete([2, 2, 2]), np.zeros(3, np.int64), np.ones(3, np.int64))
    env.reset()
    with pytest.raises(EnvError, match=r"actions have shape \(.*\); expected \(2, 3\)"):
        env.step(torch.zeros(shape))


@pytest.mark.parametrize("value", [0.5, 1 - 2**-24, np.nan])
@pytest.mark.parametrize("space", [Discrete(2), MultiBinary(1), Box(0, 3, (1,), np.uint8), Tuple([Discrete(2)])])
def test_fractions_are_refused_as_actions_of_integers(space: Any, value: float):
    sample = space.sample()
    env, envs = scripted(space, sample, sample)
    env.reset()
    with pytest.raises(EnvError, match=r"an action is .*; expected integers, as in ") as caught:
        env.step(torch.tensor([[1.0], [value]]))
    assert marked_row(caught.value) == 1
    assert str(caught.value).startswith(f"an action is [{float(np.float32(value))}]; ")
    env.step(torch.tensor([[1.0], [0.0]]))
    assert all(len(each.taken) == 1 for each in envs)
