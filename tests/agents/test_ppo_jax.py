"""JAX-specific behaviour of the PPO agent: compilation, donated memory, devices and 64-bit numbers."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
import pytest
from gymnasium.spaces import Discrete, MultiDiscrete

from tests.support.ppo import (
    BOUNDED,
    BOX,
    CLOCK,
    ENVS,
    HALF_BOUNDED,
    STEPS,
    WIDTH,
    act,
    make,
    run,
    same,
    state_of,
    transition,
)
from tests.support.processes import python
from workers.agents.jax import PPO, programs
from workers.agents.learning_rate import adapt_learning_rate
from workers.errors import AgentError

PROGRAMS = (programs.act, programs.record, programs.cut, programs.update)


def compilations() -> list[int]:
    """Return the number of shapes that each program has been compiled for."""
    return [program._cache_size() for program in PROGRAMS]


def interact(agent: Any) -> None:
    """Run everything that an agent does in training."""
    run(agent, range(2 * STEPS + 1))
    agent.init()


def test_agents_of_one_shape_share_what_is_compiled():
    agent = make("jax")
    interact(agent)
    before = compilations()
    assert all(before)
    interact(make("jax", seed=1, learning_rate=1e-2))
    interact(pickle.loads(pickle.dumps(agent)))
    restored = make("jax", seed=2)
    restored.load_state_dict(state_of(agent))
    interact(restored)
    assert compilations() == before
    interact(make("jax", discount_factor=0.5))
    assert compilations() != before


def test_bounds_are_not_compiled_in():
    interact(make("jax", BOUNDED, action_bounds="clip"))
    before = compilations()
    for space, action_bounds in ((BOUNDED, "rescale"), (HALF_BOUNDED, "clip")):
        interact(make("jax", space, action_bounds=action_bounds))
    assert compilations() == before
    interact(make("jax", action_bounds="none"))
    assert programs.update._cache_size() == before[-1]


def test_the_rollout_is_not_copied():
    agent: Any = make("jax")
    run(agent, range(STEPS - 2))
    replaced = [array for name, array in agent._rollout.items() if name != "next"]
    run(agent, range(STEPS - 2, STEPS - 1))
    assert all(array.is_deleted() for array in replaced)


@pytest.mark.parametrize("program", ["record", "cut", "update"])
def test_an_interrupt_costs_nothing_that_was_learnt(program, monkeypatch):
    """Python may raise an interrupt after a program has returned, before its result is stored."""
    agent: Any = make("jax")
    run(agent, range(2 * STEPS - 1))  # all but the last row of a second rollout
    before, original = state_of(agent), getattr(programs, program)

    def interrupted(*arguments: Any) -> Any:
        original(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(programs, program, interrupted)
    with pytest.raises(KeyboardInterrupt):
        agent.init() if program == "cut" else run(agent, range(2 * STEPS - 1, 2 * STEPS))
    monkeypatch.undo()
    for survivor in (pickle.loads(pickle.dumps(agent)), agent):
        assert same(state_of(survivor), before)
        survivor.init()
        run(survivor, range(STEPS))  # enough for an update, however much of the rollout is left
        state = state_of(survivor)
        assert not same(state, before)
        assert all(np.isfinite(array).all() for array in state["models"].values())


def aligned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a copy in aligned memory, which JAX can use without copying."""
    memory = np.zeros(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[:] = array
    return copy


def test_memory_shared_with_numpy_may_change_after_recording():
    agent: Any = make("jax", num_envs=512, rollouts=64, hidden_sizes=(256, 256))
    for row in range(64):
        given = transition(agent, row)
        memory = {name: aligned(array) for name, array in given.items()}
        shared = {name: jax.device_put(array) for name, array in memory.items()}
        agent.record_transition(states=None, next_states=None, infos={}, **shared, **CLOCK)
        for name, array in memory.items():
            array[:] = 0
            assert not np.asarray(shared[name]).any()  # the memory is shared; otherwise the test proves nothing
        assert same(np.asarray(agent._rollout["observations"][row]), given["observations"])
        assert same(np.asarray(agent._rollout["next"]), given["next_observations"])


@pytest.mark.parametrize("kl", [0.0, 0.0049, 0.0051, 0.01, 0.0199, 0.0201, 1.0])
@pytest.mark.parametrize("learning_rate", [1e-6, 1.2e-6, 1e-3, 9e-3, 1e-2])
def test_compiled_rule_of_the_learning_rate(learning_rate, kl):
    rule = jax.jit(partial(adapt_learning_rate, target=0.01, where=jax.numpy.where))
    adapted = rule(jax.numpy.float32(learning_rate), jax.numpy.float32(kl))
    assert float(adapted) == pytest.approx(adapt_learning_rate(learning_rate, kl, 0.01, np.where))


# Integers and devices.


@pytest.mark.parametrize(
    "space", [Discrete(3, start=2**31 - 2), Discrete(2, start=-(2**31) - 1), MultiDiscrete([2, 3], start=[0, 2**40])]
)
def test_actions_beyond_32_bits_are_refused(space):
    with pytest.raises(AgentError, match=r"^action_space .*; expected 32-bit integers, .*, or set jax_enable_x64"):
        make("jax", space)


def test_actions_at_the_limit_of_32_bits():
    for start in (2**31 - 3, -(2**31)):
        agent = make("jax", Discrete(3, start=start), num_envs=100)
        actions, _ = act(agent, np.zeros((100, WIDTH), np.float32))
        assert {*actions[:, 0].tolist()} == {start, start + 1, start + 2}


def build(device: Any) -> PPO:
    return PPO(observation_space=BOX, action_space=Discrete(3), num_envs=ENVS, device=device)


def test_device_is_one_of_jax_or_its_name():
    cpu = jax.devices("cpu")[0]
    for device in (None, cpu, "cpu", "cpu:0"):
        assert build(device).device == cpu


@pytest.mark.parametrize("device", ["cpu:99", "cpu:one", "abacus", "abacus:0", 0])
def test_unknown_devices_are_refused(device):
    with pytest.raises(AgentError, match=r"^device is .*; expected None .* this process: cpu \("):
        build(device)


def run_in_process(code: str, **variables: str) -> None:
    """Run a script in a fresh process, with warnings as errors."""
    done = python("-W", "error", "-c", code, env=variables)
    assert done.returncode == 0, done.stderr


def test_arrays_stay_on_the_device():
    code = """
import copy, pickle, jax
from tests.support.ppo import BOUNDED, BOX, ENVS, STEPS, act, run, transition
from workers.agents.jax import PPO

agent = PPO(observation_space=BOX, action_space=BOUNDED, num_envs=ENVS, cfg={"rollouts": STEPS}, device="cpu:1")
agent.enable_training_mode(True)
agent.load_state_dict(agent.state_dict())
for each in (agent, pickle.loads(pickle.dumps(agent)), copy.deepcopy(agent)):
    run(each, range(STEPS + 1))
    act(each, transition(each, 0)["observations"])
    arrays = [each._weights, each._optimizer, each._normalizers, each._rollout, each._key, each.state_dict()["models"]]
    arrays += [each._action_map, each._own]
    places = {place for array in jax.tree.leaves(arrays) for place in array.devices()}
    assert places == {jax.devices()[1]} == {each.device}, places
"""
    run_in_process(code, XLA_FLAGS="--xla_force_host_platform_device_count=2")


def test_arrays_of_other_devices_may_be_given():
    code = """
import jax, numpy as np
from tests.support.ppo import BOX, CLOCK, ENVS, MULTI_DISCRETE, STEPS, same, state_of, transition
from workers.agents.jax import PPO

places = jax.devices("cpu")
agents = []
for place in places:
    np.random.seed(0)
    cfg = {"rollouts": STEPS, "mini_batches": 2, "learning_epochs": 2, "hidden_sizes": (8,)}
    agent = PPO(observation_space=BOX, action_space=MULTI_DISCRETE, num_envs=ENVS, cfg=cfg, device=place)
    agent.enable_training_mode(True)
    agents.append(agent)
before = state_of(agents[0])
rng = np.random.default_rng(0)
for step in range(2 * STEPS + 1):
    masks = {"alive": rng.random((ENVS, 1)) < 0.7, "action_mask": rng.random((ENVS, 9)) < 0.7}
    results = []
    for agent in agents:
        infos = {}
        if step % 3:
            infos = masks if step % 2 else jax.device_put(masks, places[0])
        given = transition(agent, step)
        del given["actions"]
        given = {name: jax.device_put(array, places[0]) for name, array in given.items()}
        actions, _ = agent.act(given["observations"], None, infos=infos, **CLOCK)
        assert actions.devices() == {agent.device}
        results.append(actions)
        given["actions"] = jax.device_put(actions, places[0])
        agent.record_transition(states=None, next_states=None, infos={}, **given, **CLOCK)
        agent.post_interaction(**CLOCK)
        rest = [agent._weights, agent._optimizer, agent._normalizers, agent._rollout, agent._key]
        assert {place for array in jax.tree.leaves(rest) for place in array.devices()} == {agent.device}
    assert same(*jax.device_get(results))
assert same(state_of(agents[0]), state_of(agents[1]))
assert not same(state_of(agents[0]), before)
"""
    run_in_process(code, XLA_FLAGS="--xla_force_host_platform_device_count=2")


def test_numbers_of_64_bits():
    code = """
import numpy as np
from gymnasium.spaces import Discrete
from tests.support.ppo import BOUNDED, WIDTH, act, assert_close, fix_orders, make, learn, state_of, rollout
from tests.support.ppo_reference import Reference

for actions, cfg in (("gaussian", {"value_clip": 0.2}), ("discrete", {"entropy_loss_scale": 0.1, "mini_batches": 5})):
    agent = make("jax", actions, asymmetric=True, **cfg)
    reference, orders = Reference(agent, state_of(agent)), fix_orders(agent)
    state = learn(agent, range(4))
    reference.learn(rollout(agent, range(4)), orders)
    assert_close(state["models"], reference.state()["models"], 1e-4)
    for name, value in state["models"].items():
        assert value.dtype == (np.float64 if name.startswith("normalizers") else np.float32), name
    taken, means = act(agent, np.zeros((3, WIDTH)))
    assert taken.dtype == means.dtype == (np.float32 if actions == "gaussian" else np.int64)
    assert agent._rollout["actions"].dtype == taken.dtype
    assert agent._rollout["observations"].dtype == agent._rollout["rewards"].dtype == np.float32
taken, means = act(make("jax", BOUNDED), np.zeros((3, WIDTH)))
assert taken.dtype == means.dtype == np.float32
agent = make("jax", Discrete(3, start=2**40), num_envs=50)
assert {*act(agent, np.zeros((50, WIDTH)))[0][:, 0].tolist()} == {2**40, 2**40 + 1, 2**40 + 2}
"""
    run_in_process(code, JAX_ENABLE_X64="1")
