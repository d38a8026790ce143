"""Bounds of a Box in PPO: what the environment gets and what is recorded, in every framework, against NumPy."""

from __future__ import annotations

import copy
import importlib
import math
import pickle
from functools import partial
from itertools import product
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.support import parity
from tests.support.agents import copied
from tests.support.parity import CFG, assert_same, step_trainer
from tests.support.ppo import (
    BOUNDED,
    BOX,
    CLOCK,
    ENVS,
    STEPS,
    WIDTH,
    act,
    fix_orders,
    make,
    record,
    run,
    same,
    seed_everything,
    state_of,
    to_framework,
    transition,
    with_head,
)
from tests.support.schedule import FRAMEWORKS, examples, full_or_short
from workers.agents.action_bounds import action_map
from workers.agents.independent import IndependentAgents
from workers.agents.ppo import PPO
from workers.envs import wrap_env
from workers.errors import AgentError
from workers.types import Scope

MODES = ("none", "clip", "rescale")
MAX = float(np.finfo(np.float32).max)
INF = math.inf

# each element of the Box, and whether it has bounds for float32 actions
ELEMENTS = {
    (-1.0, 1.0): True,
    (-2.0, 2.0): True,
    (10.0, 20.0): True,
    (-0.01, 0.01): True,
    (-0.1, 0.3): True,  # between two float32
    (5.0, 5.0): True,
    (-3e38, 3e38): True,  # their difference is beyond float32
    (-INF, INF): False,
    (-MAX, MAX): False,
    (-1e300, 1e300): False,  # beyond float32
}
LOW, HIGH = (np.array(column).reshape(2, 5) for column in zip(*ELEMENTS, strict=True))
SPACES: dict[str, Box] = {"float64": Box(LOW, HIGH, dtype=np.float64)}
REACHABLE = [np.where(np.abs(bounds) > MAX, np.sign(bounds) * INF, bounds).astype(np.float32) for bounds in (LOW, HIGH)]
SPACES["float32"] = Box(REACHABLE[0], REACHABLE[1], dtype=np.float32)


def oracle(space: Box, mode: str, actions: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return what the environment gets for actions of the policy, element by element."""
    expected = actions.astype(np.float64)
    for column, (low, high) in enumerate(zip(space.low.ravel().tolist(), space.high.ravel().tolist(), strict=True)):
        if mode == "none" or (abs(low) >= MAX and abs(high) >= MAX):
            continue
        if mode == "clip":
            expected[:, column] = np.minimum(np.maximum(expected[:, column], low), high)
        else:
            share = (np.minimum(np.maximum(expected[:, column], -1.0), 1.0) + 1.0) / 2.0
            expected[:, column] = (1.0 - share) * low + share * high
    return expected


def assert_mapped(space: Box, mode: str, given: npt.NDArray[Any], own: npt.NDArray[Any]) -> None:
    expected = oracle(space, mode, own)
    sizes = np.maximum(np.abs(expected), np.nan_to_num(np.abs(space.high.reshape(-1)), posinf=0.0).astype(np.float64))
    assert (np.abs(given - expected) <= 4 * 2.0**-24 * sizes).all(), (given, expected)
    if mode != "none":
        assert all(space.contains(row.reshape(space.shape).astype(space.dtype)) for row in given)


# The map.


KINDS = list(product(FRAMEWORKS, SPACES))


@pytest.mark.parametrize("mode", ["clip", "rescale"])
@pytest.mark.parametrize(
    ("framework", "kind"), full_or_short(KINDS, [one for one in KINDS if one != ("jax", "float64")])
)
def test_the_environment_gets_mapped_actions_and_means(framework, kind, mode):
    space = SPACES[kind]
    means = np.array([0.3, -1.7, 16.0, 0.004, 0.2, -9.0, 1e38, 4.0, -4.0, 40.0])
    results = []
    for each in ("none", mode):
        agent = with_head(framework, space, means, action_bounds=each)
        assert agent.cfg.action_bounds == each
        seed_everything(framework, 3)
        results.append([act(agent, np.zeros((50, WIDTH), np.float32)) for _ in range(3)])
    for (own, own_mean), (actions, mean) in zip(*results, strict=True):
        assert actions.dtype == mean.dtype == np.float32
        assert_mapped(space, mode, actions, own)
        assert_mapped(space, mode, mean, own_mean)


@settings(max_examples=examples(150, long=2000), deadline=None)
@given(
    bounds=st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)).map(sorted),
    action=st.floats(width=32, allow_nan=False, allow_infinity=False),
    mode=st.sampled_from(["clip", "rescale"]),
    dtype=st.sampled_from([np.float16, np.float32, np.float64, np.longdouble]),
)
def test_no_action_leaves_a_space(bounds, action, mode, dtype):
    with np.errstate(over="ignore"):
        space = Box(*np.array(bounds).astype(dtype)[:, None], dtype=dtype)
    low, high = space.low[0].astype(np.longdouble), space.high[0].astype(np.longdouble)
    assume(low < MAX and high > -MAX)
    single = (low <= -MAX) != (high >= MAX)
    try:
        mapping = action_map(space, mode)
    except AgentError:
        assert mode == "rescale"
        assert single
        return
    assert mode == "clip" or not single
    assert (mapping is None) == (low <= -MAX and high >= MAX)
    with np.errstate(over="ignore"):
        scale, shift, least, most = (1.0, 0.0, low, high) if mapping is None else mapping[:, 0]
        mapped = np.clip(np.float32(action) * scale + shift, least, most)
    if not low <= mapped <= high:  # there is no float32 within
        beyond = np.float32(INF if mapped < low else -INF)
        assert not low <= np.nextafter(mapped, beyond) <= high
        assert least == most


def test_the_two_ways_are_equal_for_a_unit_box():
    for shape in ((), (3,), (2, 2)):
        clip, rescale = (action_map(Box(-1.0, 1.0, shape), mode) for mode in ("clip", "rescale"))
        assert_same(clip, rescale)
    assert action_map(Box(-1.0, 1.0, (3,)), "none") is action_map(Discrete(3), "rescale") is None


def test_what_is_not_a_number_is_not_hidden(framework):
    agent = make(framework, BOUNDED)
    observations = transition(agent, 0)["observations"]
    observations[1, 2] = np.nan
    for array in act(agent, observations):
        assert np.isnan(array).all(1).tolist() == [False, True, False]


# What is recorded.


def recorded(agent: Any) -> npt.NDArray[Any]:
    """Return the recorded actions, ``(recorded, num_envs, size)``; those of a full rollout after its update."""
    actions: npt.NDArray[Any] = copied(agent._rollout["actions"])
    return actions[: agent._recorded or None]


def log_probs(agent: Any) -> npt.NDArray[Any]:
    """Return the log-probabilities that an update uses, ``(rollouts, num_envs)``."""
    if agent.framework == "jax":
        programs = importlib.import_module("workers.agents.jax.programs")
        prepare = importlib.import_module("jax").jit(programs._prepare, static_argnums=0)
        samples, _ = prepare(agent._specification, agent._weights, agent._normalizers, agent._rollout)
    elif agent.framework == "torch":
        with torch.no_grad():
            agent._prepare_update(None)
        samples = agent._samples()
    else:
        samples = agent._prepare_update() or agent._samples
    return copied(samples["log_prob"]).reshape(agent.cfg.rollouts, agent.num_envs)


@pytest.mark.parametrize("mode", MODES)
def test_a_transition_by_hand(framework, mode):
    """Means 0.5 and 3 with standard deviations of 1/e, so the second action is nearly always clipped."""
    agent = with_head(framework, BOUNDED, np.array([0.5, 3.0]), initial_log_std=-1.0, action_bounds=mode, rollouts=1)
    agent.enable_training_mode(True)
    given = transition(agent, 0)
    seed_everything(framework, 4)
    unmapped = copy.deepcopy(agent)
    unmapped.load_state_dict({**state_of(agent), "action_bounds": "none"})
    actions, mean = act(agent, given["observations"])
    seed_everything(framework, 4)
    own, _ = act(unmapped, given["observations"])
    a, b = own.T
    expected = {
        "none": ([a, b], [0.5, 3.0]),
        "clip": ([np.full(ENVS, 10.0), np.full(ENVS, 0.25)], [10.0, 0.25]),  # all are below 10 and above 0.25
        "rescale": ([15.0 + 5.0 * np.clip(a, -1.0, 1.0), -0.125 + 0.375 * np.clip(b, -1.0, 1.0)], [17.5, 0.25]),
    }[mode]
    np.testing.assert_allclose(actions, np.stack(expected[0], 1), rtol=1e-6)
    np.testing.assert_allclose(mean, [expected[1]] * ENVS, rtol=1e-6)
    agent.record_transition(
        **to_framework(framework, given | {"actions": actions}), states=None, next_states=None, infos={}, **CLOCK
    )
    assert_same(recorded(agent)[0], own)
    by_hand = -0.5 * (((a - 0.5) * math.e) ** 2 + ((b - 3.0) * math.e) ** 2) + 2.0 - math.log(2.0 * math.pi)
    np.testing.assert_allclose(log_probs(agent)[0], by_hand, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("mode", ["clip", "rescale"])
def test_learns_from_its_own_actions_bit_for_bit(framework, mode):
    results = []
    for each in (mode, "none"):
        agent = make(framework, BOUNDED, action_bounds=each)
        fix_orders(agent)
        seed_everything(framework, 5)
        taken = run(agent, range(3 * STEPS + 1))
        state = state_of(agent)
        assert state.pop("action_bounds") == each
        results.append((state, recorded(agent), taken))
    assert_same(results[1][:2], results[0][:2])
    assert not same(results[1][2], results[0][2])


def test_returned_arrays_may_be_overwritten_before_recording(framework):
    rollouts = []
    for overwritten in (False, True):
        agent = make(framework, BOUNDED)
        seed_everything(framework, 6)
        for step in range(STEPS - 1):
            given = to_framework(framework, transition(agent, step))
            actions, outputs = agent.act(given["observations"], None, **CLOCK)
            for array in (actions, outputs["mean_actions"]):
                if overwritten and hasattr(array, "zero_"):  # JAX arrays are immutable
                    array.zero_()
            rest: dict[str, Any] = {"states": None, "next_states": None, "infos": {}}
            agent.record_transition(**given | {"actions": actions}, **rest, **CLOCK)
        rollouts.append(recorded(agent))
    assert rollouts[0][: STEPS - 1].all()
    assert_same(rollouts[1], rollouts[0])


def refuses_to_record(agent: PPO) -> None:
    before = agent._recorded
    with pytest.raises(AgentError, match=r"record_transition\(\) needs an act\(\) in training before it: with action"):
        record(agent, transition(agent, 0))
    assert agent._recorded == before


def test_a_transition_needs_its_own_act(framework):
    agent = make(framework, BOUNDED)
    observations = transition(agent, 0)["observations"]
    refuses_to_record(agent)
    act(agent, observations)
    with pytest.raises(AgentError, match="rewards has shape"):
        record(agent, transition(agent, 0, rewards=observations))
    record(agent, transition(agent, 0))  # what was refused changed nothing
    refuses_to_record(agent)  # its act has been recorded
    for rows in (ENVS, 1, ENVS + 2):  # an act in evaluation is not one of training, however many rows it has
        act(agent, observations)
        agent.enable_training_mode(False)
        act(agent, np.resize(observations, (rows, WIDTH)))
        record(agent, transition(agent, 0))
        agent.enable_training_mode(True)
        refuses_to_record(agent)
    act(agent, observations)
    agent.load_state_dict(state_of(agent))  # the act was that of other weights
    refuses_to_record(agent)
    run(agent, range(STEPS + 1))
    agent.load_state_dict({**state_of(agent), "action_bounds": "none"})
    record(agent, transition(agent, 0))  # as before this option


@pytest.mark.parametrize("duplicate", [lambda agent: pickle.loads(pickle.dumps(agent)), copy.deepcopy])
def test_a_copy_made_between_act_and_record_goes_on(framework, duplicate):
    agent = make(framework, BOUNDED)
    run(agent, range(STEPS + 1))
    given = transition(agent, STEPS + 1)
    act(agent, given["observations"])
    results = []
    for each in (duplicate(agent), agent):
        record(each, given)
        seed_everything(framework, 7)
        results.append((recorded(each), run(each, range(STEPS + 2, 3 * STEPS)), state_of(each)))
    assert_same(results[1], results[0])


def test_a_group_records_the_actions_of_all_its_agents(framework):
    names, rows = ["left", "right"], {}
    for mode in ("rescale", "none"):
        seed_everything(framework, 0)
        team = IndependentAgents(
            partial(parity.ppo(framework), cfg={"rollouts": STEPS, "mini_batches": 1, "action_bounds": mode}),
            possible_agents=names,
            observation_spaces=dict.fromkeys(names, BOX),
            action_spaces=dict.fromkeys(names, BOUNDED),
            num_envs=ENVS,
            groups={"wings": names},
        )
        team.enable_training_mode(True)
        seed_everything(framework, 8)
        single = make(framework, num_envs=ENVS, seed=None)  # only for its transitions
        by_name = {name: to_framework(framework, transition(single, index)) for index, name in enumerate(names)}
        arrays: dict[str, Any] = {kind: {name: by_name[name][kind] for name in names} for kind in by_name["left"]}
        arrays["actions"], outputs = team.act(arrays["observations"], None, **CLOCK)
        team.record_transition(**arrays, states=None, next_states=None, infos={}, **CLOCK)
        rows[mode] = recorded(team.members["wings"])[0], copied(arrays["actions"]), copied(outputs)
    assert_same(rows["rescale"][0], rows["none"][0])
    for index, name in enumerate(names):
        own = rows["none"][0][index * ENVS : (index + 1) * ENVS]
        assert_same(rows["none"][1][name], own)
        assert_mapped(BOUNDED, "rescale", rows["rescale"][1][name], own)
        means = [rows[mode][2][name]["mean_actions"] for mode in ("rescale", "none")]
        assert_mapped(BOUNDED, "rescale", *means)


# In use.


class Seen(gymnasium.Env[Any, Any]):
    """Keeps the actions that it is given, and accepts no others than those of its space."""

    observation_space = BOX

    def __init__(self, action_space: Box) -> None:
        self.action_space = action_space
        self.seen: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(WIDTH, np.float32), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        self.seen.append(np.array(action).reshape(-1))
        return self.np_random.normal(size=WIDTH).astype(np.float32), 1.0, False, len(self.seen) % 7 == 0, {}


def test_environments_see_only_actions_of_their_space(framework):
    space, envs = SPACES["float64"], []

    def agent(scope: Scope) -> Any:
        cfg = {"rollouts": 16, "hidden_sizes": ()}
        return parity.ppo(framework)(observation_space=BOX, action_space=space, num_envs=scope.num_envs, cfg=cfg)

    envs = [Seen(space) for _ in range(ENVS)]
    wrapped = wrap_env(envs, framework=framework)
    with step_trainer(framework)(env=wrapped, agents=agent, cfg=CFG, seed=0) as trainer:
        for _ in range(9):
            trainer.train()
        [trained] = trainer.agents
        own = recorded(trained)
        trainer.eval()
    for row, env in enumerate(envs):
        assert_mapped(space, "rescale", np.stack(env.seen[1:8]).astype(np.float64), own[1:8, row])
        assert len(env.seen) == 10


def distances(framework: str, mode: str) -> tuple[float, float]:
    """Return how far mean actions in Box(10, 20) are from 17, before and after a few hundred rewarded actions."""
    cfg: dict[str, Any] = {"rollouts": 8, "learning_epochs": 4, "mini_batches": 4, "learning_rate": 3e-3}
    agent = make(framework, Box(10.0, 20.0, (1,)), num_envs=16, hidden_sizes=(), action_bounds=mode, **cfg)
    observations, ended = np.ones((16, WIDTH), np.float32), np.ones((16, 1), np.bool_)
    found = []
    for step in range(401):
        actions, mean_actions = act(agent, observations)
        if step in (0, 400):
            found.append(float(np.abs(mean_actions - 17.0).max()))
        rewards = -np.abs(actions - 17.0)
        given = {"observations": observations, "next_observations": observations, "rewards": rewards}
        record(agent, given | {"actions": actions, "terminated": ended, "truncated": ~ended})
    return found[0], found[1]


def test_a_far_box_is_learnable(framework):
    before, after = distances(framework, "rescale")
    assert before == pytest.approx(2.0, abs=0.2)
    assert after < 0.3


def test_a_far_box_is_not_learnable_by_clipping():
    """The policy never sees a difference: all its actions are clipped to 10."""
    assert distances("torch", "clip") == (7.0, 7.0)
