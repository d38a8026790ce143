"""A JAX agent at home on a device: nothing travels within a rollout, and an update waits once. CPUs suffice for this.

JAX's guard sees what travels to a device, on a CPU, too. It does not see there what is read from one; but a traced
array cannot be read at all.
"""

from __future__ import annotations

import pickle
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
import pytest
import torch
from jax import numpy as jnp

from tests.support.ppo import (
    CLOCK,
    ENVS,
    MULTI_DISCRETE,
    STEPS,
    make,
    record,
    run,
    same,
    state_of,
    to_framework,
    transition,
)
from workers.agents import ppo as common
from workers.agents.jax import PPO, ppo, programs
from workers.agents.masks import legal_actions
from workers.agents.torch.masks import legal_on_device

KINDS = pytest.mark.parametrize(
    ("actions", "masks"),
    [("gaussian", ()), ("gaussian", ("alive",)), (MULTI_DISCRETE, ()), (MULTI_DISCRETE, ("alive", "action_mask"))],
)


def mask_of(agent: Any, name: str, step: int) -> npt.NDArray[Any]:
    rng = np.random.default_rng(step)
    if name == "alive":
        return np.array(rng.random((ENVS, 1)) < 0.7)
    return rng.integers(0, 2, (ENVS, agent._head_width))


def arguments(agent: Any, step: int, masks: tuple[str, ...]) -> dict[str, Any]:
    """Return all arrays of a timestep, on JAX's default device."""
    given: dict[str, Any] = transition(agent, step)
    del given["actions"]
    tree: dict[str, Any] = to_framework("jax", given | {"infos": {name: mask_of(agent, name, step) for name in masks}})
    return tree


def advance(agent: Any, given: dict[str, Any]) -> Any:
    """Do a timestep with arrays of `arguments`; return the actions."""
    rest = dict(given)
    infos = rest.pop("infos")
    actions, _ = agent.act(rest["observations"], None, infos=infos, **CLOCK)
    agent.record_transition(actions=actions, states=None, next_states=None, infos=infos, **rest, **CLOCK)
    agent.post_interaction(**CLOCK)
    return actions


def away_from_cpus(agent: Any) -> Any:
    """Let an agent treat the CPU as any other device."""
    agent._specification = programs.the_one(agent._specification._replace(is_on_cpu=False))
    return agent


def warm(actions: Any, masks: tuple[str, ...]) -> Any:
    """Return an agent away from CPUs after an update and the first row of a rollout."""
    agent = away_from_cpus(make("jax", actions))
    for step in range(STEPS + 1):
        advance(agent, arguments(agent, step, masks))
    return agent


@KINDS
def test_nothing_travels_to_the_device(actions, masks):
    agent = warm(actions, masks)
    given = [arguments(agent, step, masks) for step in range(1, STEPS + 1)]
    before = state_of(agent)
    with jax.transfer_guard("disallow_explicit"):
        for each in given:
            if agent._recorded == STEPS - 1 and masks:
                break  # which rows acted is read before an update
            advance(agent, each)
    assert masks or not same(state_of(agent), before)  # it learned


@pytest.mark.parametrize("name", ["alive", "action_mask"])
def test_the_guard_sees_numpys_arrays(name):
    agent = warm(MULTI_DISCRETE, (name,))
    given = arguments(agent, 1, (name,))
    given["infos"][name] = np.asarray(given["infos"][name])
    with jax.transfer_guard("disallow_explicit"), pytest.raises(jax.errors.JaxRuntimeError, match="host-to-device"):
        advance(agent, given)


def test_the_guard_sees_numbers(monkeypatch):
    agent = warm("gaussian", ())
    given = arguments(agent, 1, ())
    monkeypatch.setattr(ppo, "on_device", lambda row, device: row)
    with jax.transfer_guard("disallow"), pytest.raises(jax.errors.JaxRuntimeError, match="host-to-device"):
        advance(agent, given)


def trace(agent: Any, step: int, masks: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Do a timestep with traced arrays, after which the agent is of no use; return what was read from the device."""
    read: list[Any] = []

    def device_get(tree: Any) -> Any:
        read.append(tree)
        return jax.tree.map(lambda array: np.zeros(array.shape, array.dtype), tree)

    monkeypatch.setattr(jax, "device_get", device_get)
    monkeypatch.setattr(PPO, "_here", lambda self, arrays: arrays)  # traced arrays are on no device
    jax.eval_shape(lambda given: advance(agent, given), arguments(agent, step, masks))
    return read


@KINDS
def test_nothing_is_read_from_the_device_within_a_rollout(actions, masks, monkeypatch):
    assert not trace(warm(actions, masks), 1, masks, monkeypatch)


def test_a_trace_sees_what_is_read(monkeypatch):
    monkeypatch.setattr(PPO, "_legal_on_device", common.PPO._legal_on_device)
    with pytest.raises(jax.errors.TracerArrayConversionError):
        trace(warm(MULTI_DISCRETE, ("action_mask",)), 1, ("action_mask",), monkeypatch)


@pytest.mark.parametrize("actions", ["gaussian", MULTI_DISCRETE])
def test_an_update_waits_for_the_device_once(actions, monkeypatch):
    agent = warm(actions, ())
    for step in range(1, STEPS - 1):
        advance(agent, arguments(agent, step, ()))
    assert len(trace(agent, STEPS - 1, (), monkeypatch)) == 1


# What differs between a CPU and other devices.


def lowered(agent: Any, platform: str) -> dict[str, str]:
    """Return the programs as they are given to the compiler for a platform, which need not be there."""
    specification = agent._specification._replace(is_on_cpu=platform == "cpu")
    rollout, row = agent._rollout, ppo.on_device(0, agent.device)
    given = arguments(agent, 0, ("action_mask",))
    legal = programs.legal(specification, given.pop("infos")["action_mask"])
    arrays = given | {"next": given.pop("next_observations"), "actions": rollout["actions"][0], "action_mask": legal}
    weights, normalizers, acted = agent._weights, agent._normalizers, rollout["acted"]
    orders, key = programs.draw_orders(specification, agent._key, acted)
    calls: dict[str, Any] = {
        "act": (weights["policy"], normalizers, agent._action_map, key, arrays["observations"], legal),
        "legal": (legal,),
        "record": (agent._critic(), rollout, row, arrays),
        "cut": (agent._critic(), rollout, row),
        "draw_orders": (key, acted),
        "update": (weights, agent._optimizer, normalizers, rollout, orders, jnp.float32(1e-3)),
    }
    return {
        name: getattr(programs, name).trace(specification, *call).lower(lowering_platforms=(platform,)).as_text()
        for name, call in calls.items()
    }


def test_no_gpu_waits_for_a_condition():
    """XLA copies a condition on a GPU to the host, which chooses the branch."""
    agent = warm(MULTI_DISCRETE, ("action_mask",))
    for name, text in lowered(agent, "cuda").items():
        assert "stablehlo.case" not in text, name
        assert "stablehlo.if" not in text, name
        assert "stablehlo.scatter" not in text, name
    assert {name for name, text in lowered(agent, "cpu").items() if "stablehlo.case" in text} == {"record", "cut"}


@pytest.mark.parametrize("truncated", [True, False])
def test_the_condition_changes_no_bit(truncated):
    flags = {"truncated": np.full((ENVS, 1), truncated), "terminated": np.zeros((ENVS, 1), np.bool_)}
    # exact products: a compiler may round a product and a sum once or twice, which is no difference of the condition
    exact: dict[str, Any] = {"discount_factor": 0.5, "normalize_values": False}
    on_cpu: Any = make("jax", **exact)
    elsewhere = away_from_cpus(make("jax", **exact))
    for step in range(STEPS - 1):
        given = transition(on_cpu, step, **flags)
        for agent in (on_cpu, elsewhere):
            record(agent, given)
    for agent in (on_cpu, elsewhere):
        agent.init()  # this cuts the rollout
    rollouts = jax.device_get([on_cpu._rollout, elsewhere._rollout])
    assert same(*rollouts)
    assert same(rollouts[1]["rewards"][0], transition(on_cpu, 0)["rewards"]) is not truncated


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_orders_of_a_device(share):
    agent: Any = make("jax", num_envs=5, learning_epochs=300)
    acted = np.random.default_rng(0).random((STEPS, 5, 1)) < share
    samples, rows = np.flatnonzero(acted), acted.size
    drawn, key = programs.draw_orders(agent._specification, agent._key, jnp.array(acted))
    orders = np.asarray(drawn)
    assert orders.shape == (300, rows)
    assert orders.dtype == np.int32
    assert not same(np.asarray(key), np.asarray(agent._key))
    if not len(samples):
        return  # there is no update
    assert (np.sort(orders[:, : len(samples)]) == samples).all()
    assert same(orders, np.stack([np.resize(order[: len(samples)], rows) for order in orders]))
    # each sample is as likely at each place: five standard deviations
    counts = np.array([(orders[:, : len(samples)] == sample).sum(0) for sample in samples])
    chance = 1 / len(samples)
    assert np.abs(counts - 300 * chance).max() < 5 * np.sqrt(300 * chance * (1 - chance))


def test_a_device_draws_new_orders_for_each_update():
    agent = warm("gaussian", ())
    orders = [np.asarray(agent._draw_orders()) for _ in range(2)]
    assert (np.sort(np.concatenate(orders)) == np.arange(STEPS * ENVS)).all()
    assert len({*map(tuple, np.concatenate(orders).tolist())}) == 4


# The learning rate and masks.


def test_a_learning_rate_that_is_set_is_used():
    agent = warm("gaussian", ())
    same_rate, other_rate, fresh = (away_from_cpus(pickle.loads(pickle.dumps(agent))) for _ in range(3))
    agent.learning_rate = fresh.learning_rate = 0.5
    other_rate.learning_rate = 0.25
    states = []
    for each in (agent, fresh, other_rate, same_rate):
        run(each, range(STEPS))
        states.append(state_of(each))
    assert same(states[0], states[1])
    assert not same(states[0], states[2])
    assert not same(states[0], states[3])


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint8, np.int32])
@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_legal_actions_on_a_device_are_those_on_the_host(framework, dtype):
    agent: Any = make("jax", MULTI_DISCRETE, num_envs=64)
    mask = np.random.default_rng(0).integers(0, 2 if dtype is np.bool_ else 4, (64, 9)).astype(dtype)
    mask[:8, :3], mask[8:16, 5:], mask[16:20] = 0, 0, 0  # components without a legal action
    mask[20:24] = 1
    if framework == "jax":
        legal = np.asarray(agent._heed({"action_mask": jnp.array(mask)}, 64)[1])
    else:
        legal = legal_on_device(torch.from_numpy(mask), [3, 2, 4]).numpy()
    assert same(legal, legal_actions(mask, 64, [3, 2, 4]))


def test_a_mask_of_floats_is_read_on_the_host():
    agent: Any = make("jax", MULTI_DISCRETE)
    mask = np.random.default_rng(0).integers(0, 2, (ENVS, 9)).astype(np.float32)
    legal = agent._heed({"action_mask": jnp.array(mask)}, ENVS)[1]
    assert same(np.asarray(legal), legal_actions(mask, ENVS, [3, 2, 4]))
