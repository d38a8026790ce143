"""State and files of the PPO agent: the same in every framework; a state that does not fit is refused."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest

from tests.support.parity import assert_same
from tests.support.ppo import (
    ACTIONS,
    STEPS,
    WIDTH,
    act,
    assert_close,
    learn,
    make,
    record,
    run,
    state_of,
    transition,
)
from tests.support.schedule import FRAMEWORKS
from workers.agents.ppo import PPO
from workers.errors import AgentError


def refuses(agent: PPO, state: Any) -> None:
    """Assert that the state is refused and that the agent and its rollout remain unchanged."""
    before, recorded = state_of(agent), agent._recorded
    with pytest.raises(AgentError, match="the state does not fit this agent"):
        agent.load_state_dict(state)
    assert_same(state_of(agent), before)
    assert agent._recorded == recorded


def test_names_and_shapes_of_the_state(framework):
    agent = make(framework, asymmetric=True)
    shapes = {
        "policy.log_std": (2,),
        "policy.network.0.weight": (8, WIDTH),
        "policy.network.0.bias": (8,),
        "policy.network.2.weight": (2, 8),
        "policy.network.2.bias": (2,),
        "value.0.weight": (8, 2),
        "value.0.bias": (8,),
        "value.2.weight": (1, 8),
        "value.2.bias": (1,),
    }
    statistics = {
        f"normalizers.{name}.{kind}": () if kind == "count" else (width,)
        for name, width in (("observations", WIDTH), ("states", 2), ("returns", 1))
        for kind in ("mean", "variance", "count")
    }
    for updates in range(2):
        state = state_of(agent)
        assert set(state) == {"models", "optimizer", "learning_rate", "action_bounds"}
        assert {name: array.shape for name, array in state["models"].items()} == shapes | statistics
        assert set(state["optimizer"]) == {"step", "exp_avg", "exp_avg_sq"}
        assert (type(state["optimizer"]["step"]), state["optimizer"]["step"]) == (int, 4 * updates)
        assert (type(state["learning_rate"]), state["learning_rate"]) == (float, agent.learning_rate)
        for kind in ("exp_avg", "exp_avg_sq"):
            assert {name: array.shape for name, array in state["optimizer"][kind].items()} == shapes
            assert all(array.any() == bool(updates) for array in state["optimizer"][kind].values())
        learn(agent, range(STEPS))


@pytest.mark.parametrize("actions", list(ACTIONS))
def test_a_saved_agent_goes_on_bit_for_bit(framework, actions, tmp_path):
    agent, other = make(framework, actions, asymmetric=True), make(framework, actions, asymmetric=True, seed=1)
    learn(agent, range(2 * STEPS))
    run(other, range(STEPS + 1))
    agent.save(tmp_path / "agent.safetensors")
    other.load(str(tmp_path / "agent.safetensors"))
    assert other._recorded == 0  # its rollout was collected with other weights
    assert_same(state_of(other), state_of(agent))
    observations = transition(agent, 99)["observations"]
    assert_same(act(other, observations)[1], act(agent, observations)[1])
    assert_same(learn(other, range(2 * STEPS, 4 * STEPS)), learn(agent, range(2 * STEPS, 4 * STEPS)))
    buffer = io.BytesIO()
    run(agent, range(STEPS))
    agent.save(buffer)
    buffer.seek(0)
    other.load(buffer)
    assert_same(state_of(other), state_of(agent))


@pytest.mark.parametrize("actions", list(ACTIONS))
@pytest.mark.parametrize("source", FRAMEWORKS)
def test_an_agent_goes_on_in_another_framework(framework, source, actions, tmp_path):
    agent = make(source, actions, asymmetric=True)
    other = make(framework, actions, asymmetric=True, seed=1)
    learn(agent, range(2 * STEPS))
    agent.save(tmp_path / "agent.safetensors")
    other.load(tmp_path / "agent.safetensors")
    assert_close(state_of(other), state_of(agent), 1e-7)
    observations = transition(agent, 99)["observations"]
    assert_close(act(other, observations)[1], act(agent, observations)[1], 1e-5)
    models = [learn(each, range(2 * STEPS, 3 * STEPS))["models"] for each in (agent, other)]
    assert_close(models[1], models[0], 1e-4)


def test_state_may_be_of_numpy_in_any_precision(framework):
    agent = make(framework)
    learn(agent, range(STEPS))
    state = state_of(agent)
    doubled = {name: array.astype(np.float64) for name, array in state["models"].items()}
    other = make(framework, seed=1)
    other.load_state_dict(state | {"models": doubled})
    assert_same(state_of(other), state)


def test_state_is_a_copy(framework):
    agent = make(framework)
    learn(agent, range(STEPS))
    state = agent.state_dict()
    before = copy.deepcopy(state_of(agent))
    first = learn(agent, range(STEPS))
    agent.load_state_dict(state)
    assert_same(state_of(agent), before)
    assert_same(learn(agent, range(STEPS)), first)
    agent.load_state_dict(state)
    assert_same(state_of(agent), before)
    given = copy.deepcopy(before)
    agent.load_state_dict(given)
    for array in [*given["models"].values(), *given["optimizer"]["exp_avg"].values()]:
        array[...] = 7.0
    assert_same(state_of(agent), before)


def test_state_of_another_agent_is_refused(framework):
    agent = make(framework)
    run(agent, range(STEPS))
    record(agent, transition(agent, 0))
    for others in ({"hidden_sizes": (9,)}, {"hidden_sizes": ()}, {"normalize_values": False}, {"actions": "discrete"}):
        refuses(agent, make(framework, **others).state_dict())
    assert agent._recorded == 1


BROKEN: dict[str, Any] = {
    "a name too few": lambda models, _: {"models": {name: models[name] for name in models if name != "value.2.bias"}},
    "a name too many": lambda models, _: {"models": models | {"more": models["value.2.bias"]}},
    "another size": lambda models, _: {"models": models | {"value.2.bias": np.zeros(2, np.float32)}},
    "another dimension": lambda models, _: {"models": models | {"value.2.bias": np.zeros((1, 1), np.float32)}},
    "a dictionary": lambda models, _: {"models": models | {"value.2.bias": {"weight": models["value.2.bias"]}}},
    "a string": lambda models, _: {"models": models | {"value.2.bias": "1.0"}},
    "nothing": lambda models, _: {"models": models | {"value.2.bias": None}},
    "an array of strings": lambda models, _: {"models": models | {"value.2.bias": np.array(["one"])}},
    "an array of objects": lambda models, _: {"models": models | {"value.2.bias": np.array([None])}},
    "no models": lambda models, _: {"models": None},
    "no optimizer": lambda _, optimizer: {"optimizer": {}},
    "steps": lambda _, optimizer: {"optimizer": optimizer | {"step": np.zeros(2)}},
    "a word as step": lambda _, optimizer: {"optimizer": optimizer | {"step": "many"}},
    "a moment's size": lambda _, optimizer: {
        "optimizer": optimizer | {"exp_avg": optimizer["exp_avg"] | {"value.2.bias": np.zeros(2, np.float32)}}
    },
    "a word as learning rate": lambda models, optimizer: {"learning_rate": "fast"},
    "no learning rate": lambda models, optimizer: {"learning_rate": None},
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_broken_states_are_refused(framework, name):
    agent = make(framework)
    run(agent, range(STEPS + 1))
    state = state_of(agent)
    refuses(agent, state | BROKEN[name](state["models"], state["optimizer"]))
    agent.load_state_dict(state)
    assert_same(state_of(agent), state)


@pytest.mark.parametrize("state", [{}, [], None, {"models": {}}, {"learning_rate": 1.0}])
def test_what_is_no_state_is_refused(framework, state):
    refuses(make(framework), state)


def test_damaged_files_are_refused(framework, tmp_path):
    agent = make(framework)
    run(agent, range(STEPS + 1))
    before, path = state_of(agent), tmp_path / "agent.safetensors"
    agent.save(path)
    data = path.read_bytes()
    for damaged in (b"", b"\x00" * 100, data[:-1], data[:100], b"x" + data[1:], data + b"x"):
        path.write_bytes(damaged)
        for file in (path, io.BytesIO(damaged)):
            with pytest.raises(AgentError, match="damaged"):
                agent.load(file)
    make(framework, hidden_sizes=(9,)).save(path)
    with pytest.raises(AgentError, match=r"\] has shape \(9.*\); expected \(8"):
        agent.load(path)
    assert_same(state_of(agent), before)
    assert agent._recorded == 1
    with pytest.raises(FileNotFoundError):
        agent.load(tmp_path / "none")
