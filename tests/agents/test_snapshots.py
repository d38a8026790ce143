"""Snapshots: the whole state of an agent between two iterations, which goes on from it bit for bit."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from tests.support.agents import copied
from tests.support.parity import assert_same, ppo
from tests.support.ppo import (
    ACTIONS,
    BOUNDED,
    CLOCK,
    ENVS,
    MULTI_DISCRETE,
    STEPS,
    act,
    make,
    run,
    same,
    seed_everything,
    state_of,
    to_framework,
    transition,
)
from tests.support.processes import python
from tests.support.schedule import FRAMEWORKS, full_or_short
from workers.agents.independent import IndependentAgents
from workers.agents.ppo import PPO
from workers.frameworks import load_framework
from workers.scalars import Scalars
from workers.storage.state_file import decode_state, encode_state


def masks(step: int) -> dict[str, Any]:
    """Return action masks of every other timestep; there is none in the first rollout."""
    legal = np.random.default_rng(step).random((ENVS, 9)) < 0.5
    return {"action_mask": legal} if step > STEPS and step % 2 else {}


def alive(step: int) -> dict[str, Any]:
    return {"alive": np.random.default_rng(step).random((ENVS, 1)) < 0.7}


class Case(NamedTuple):
    """An agent and the infos that it gets."""

    actions: Any
    asymmetric: bool = False
    infos: Callable[[int], dict[str, Any]] | None = None

    def make(self, framework: str, seed: int, **cfg: Any) -> PPO:
        agent = make(framework, self.actions, asymmetric=self.asymmetric, seed=seed, **cfg)
        agent.writer = Written()
        return agent


CASES = {
    "box": Case(BOUNDED),
    "discrete": Case(ACTIONS["discrete"]),
    "masks": Case(MULTI_DISCRETE, infos=masks),
    "alive": Case(ACTIONS["gaussian"], infos=alive),
    "states": Case(BOUNDED, asymmetric=True),
}
PAIRS = list(product(FRAMEWORKS, CASES))
SLOW = [("jax", name) for name in ("box", "discrete", "states")]  # to compile


class Written(list[Any]):
    """A writer that keeps what it writes."""

    def add_scalar(self, **scalar: Any) -> None:
        self.append(scalar)


def through_bytes(snapshot: dict[str, Any], framework: str) -> dict[str, Any]:
    arrays = load_framework(framework)
    decoded: dict[str, Any] = decode_state(encode_state(snapshot, arrays), arrays)
    return decoded


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield every value in a tree with its path, dictionaries as well."""
    yield path, tree
    for key, item in tree.items() if isinstance(tree, dict) else ():
        yield from leaves(item, (*path, key))


def aligned(tree: Any) -> Any:
    """Return a copy with arrays in memory that every framework could share."""
    if isinstance(tree, dict):
        return {key: aligned(item) for key, item in tree.items()}
    if not isinstance(tree, np.ndarray):
        return tree
    memory = np.empty(tree.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    array = memory[start : start + tree.nbytes].view(tree.dtype).reshape(tree.shape)
    array[...] = tree
    return array


def go_on(agent: PPO, steps: range, infos: Callable[[int], dict[str, Any]] | None = None) -> Any:
    """Return all that an agent does and is after some timesteps, from the same state of the global generators."""
    seed_everything(agent.framework, 2)
    actions = run(agent, steps, infos)
    agent.write_tracking_data(timestep=steps.stop, timesteps=100)
    return (
        actions,
        state_of(agent),
        agent.snapshot(),
        list(agent.writer),
        copied(act(agent, transition(agent, 99)["observations"])),
    )


# in the middle of the third rollout, two of whose rows are recorded
MIDDLE = 2 * STEPS + 2


@pytest.mark.parametrize(("framework", "name"), full_or_short(PAIRS, [pair for pair in PAIRS if pair not in SLOW]))
def test_goes_on_bit_for_bit(framework, name):
    case = CASES[name]
    agent = case.make(framework, seed=0)
    run(agent, range(MIDDLE), case.infos)
    state = through_bytes(agent.snapshot(), framework)
    assert_same(state, agent.snapshot())
    assert (state["recorded"], len(state["rollout"]["rewards"])) == (2, 2)
    assert state["tracked"]["kept"]["Loss / Policy loss"][1] == 2
    assert ("action_mask" in state["rollout"]) == (name == "masks" or (framework == "warp" and name == "discrete"))
    rest = range(MIDDLE, MIDDLE + 2 * STEPS)
    expected = go_on(agent, rest, case.infos)
    assert len(expected[3]) >= 4
    for seed, before in ((1, 0), (2, 3 * STEPS + 3)):
        other = case.make(framework, seed=seed)
        # with masks also where the snapshot has none
        run(other, range(before), masks if name == "masks" else lambda step: {"action_mask": np.eye(3)})
        assert not same(state_of(other), state_of(agent))
        other.restore(state)
        assert_same(other.snapshot(), state)
        assert_same(go_on(other, rest, case.infos), expected)


@pytest.mark.parametrize("at", [0, 1, STEPS, 2 * STEPS - 1])
def test_goes_on_from_any_timestep(framework, at):
    agent, other = make(framework), make(framework, seed=1)
    run(other, range(STEPS + 3))
    for each in (agent, other):
        each.writer = Written()
    run(agent, range(at))
    state = agent.snapshot()
    other.restore(state)
    rest = range(at, at + 2 * STEPS)
    assert_same(go_on(other, rest), go_on(agent, rest))


def test_mode_and_scalars_are_restored(framework):
    agent, other = make(framework), make(framework, seed=1)
    run(agent, range(2))
    agent.enable_training_mode(False)  # which cuts the rollout
    agent.tracked.prefix = "Evaluation / "
    agent.track_data("a", 2.0)
    agent.track_data("a", 5.0)
    other.track_data("b", 1.0)
    state = through_bytes(agent.snapshot(), framework)
    other.restore(state)
    assert (other.training, other.tracked.prefix) == (False, "Evaluation / ")
    other.track_data("a", 8.0)
    assert other.tracked.drain() == {"Evaluation / a": 5.0}
    assert agent.tracked.drain() == {"Evaluation / a": 3.5}
    for each in (agent, other):
        each.enable_training_mode(True)
    seed_everything(framework, 2)
    taken = run(agent, range(2, 2 + STEPS))
    seed_everything(framework, 2)
    assert_same(run(other, range(2, 2 + STEPS)), taken)
    assert_same(state_of(other), state_of(agent))


def test_bounds_are_restored(framework):
    agent, other = make(framework, BOUNDED, action_bounds="clip"), make(framework, BOUNDED, seed=1)
    run(agent, range(1))
    run(other, range(3))  # in Warp, its graph was captured with the map
    other.restore(agent.snapshot())
    assert other.cfg.action_bounds == "clip"
    seed_everything(framework, 2)
    taken = run(agent, range(1, 4))
    seed_everything(framework, 2)
    assert_same(run(other, range(1, 4)), taken)


def test_a_snapshot_without_masks_allows_every_action(framework):
    agent, other = make(framework, "discrete"), make(framework, "discrete", seed=1)
    run(agent, range(2))
    run(other, range(3), lambda step: {"action_mask": np.eye(3)})
    state = agent.snapshot()
    state["rollout"].pop("action_mask", None)  # Warp has it from the start
    other.restore(state)
    assert_same(other.snapshot(), agent.snapshot())


def test_what_an_interrupt_lost_is_not_in_the_snapshot():
    agent, other = make("jax"), make("jax", seed=1)
    run(agent, range(STEPS + 2))
    agent._rollout = None  # type: ignore[attr-defined]
    assert agent.snapshot()["recorded"] == 0
    other.restore(agent.snapshot())
    assert_same(run(other, range(2 * STEPS)), run(agent, range(2 * STEPS)))
    assert_same(other.snapshot(), agent.snapshot())


def test_copies_go_in_and_out(framework):
    agent, other = make(framework), make(framework, seed=1)
    run(agent, range(STEPS + 2))
    state = agent.snapshot()
    kept = copy.deepcopy(state)
    run(agent, range(2 * STEPS))
    assert_same(state, kept)
    assert not same(agent.snapshot(), kept)
    given = aligned(state)
    other.restore(given)
    for _, array in leaves(given):
        if isinstance(array, np.ndarray):
            array[...] = 1
    given["tracked"]["kept"].clear()
    assert_same(other.snapshot(), kept)
    run(other, range(2 * STEPS))
    assert_same(state, kept)


def test_arrays_may_be_of_the_framework(framework):
    agent, other = make(framework), make(framework, seed=1)
    run(agent, range(STEPS + 2))
    state = agent.snapshot()
    other.restore({**to_framework(framework, {**state, "state_dict": None}), "state_dict": agent.state_dict()})
    assert_same(other.snapshot(), state)


def test_scalars():
    scalars, other = Scalars(), Scalars()
    scalars.prefix = "Evaluation / "
    for value in (1.0, 2.0, 6.0):
        for tag in ("a", "a (min)", "a (max)"):
            scalars.add(tag, value)
    other.add("b", 1.0)
    state = scalars.state()
    other.load(json.loads(json.dumps(state)))  # with lists in place of tuples
    assert other.state() == state
    for each in (scalars, other):
        each.add("a", 7.0)
        each.add("a (min)", 0.5)
        assert each.drain() == {"Evaluation / a": 4.0, "Evaluation / a (min)": 0.5, "Evaluation / a (max)": 6.0}
    with pytest.raises(ValueError, match=r"the state of scalars is \{'a': 1\}; expected a result of Scalars.state\(\)"):
        other.load({"a": 1})


# Teams.

NAMES, WIDTHS = ["left", "right", "keeper"], {"left": 3, "right": 3, "keeper": 2}


def team(framework: str, seed: int, **cfg: Any) -> IndependentAgents:
    seed_everything(framework, seed)
    options = {"rollouts": STEPS, "mini_batches": 2, "hidden_sizes": (8,)}
    agents = IndependentAgents(
        partial(ppo(framework), cfg=options | cfg),
        possible_agents=NAMES,
        observation_spaces={name: Box(-np.inf, np.inf, (width,), np.float32) for name, width in WIDTHS.items()},
        action_spaces=dict.fromkeys(NAMES, Discrete(3)),
        num_envs=ENVS,
        groups={"wings": ["left", "right"]},
    )
    agents.enable_training_mode(True)
    agents.writer = Written()
    return agents


def play(agents: IndependentAgents, steps: range) -> list[Any]:
    """Return the actions of several timesteps with dead agents."""
    taken: list[Any] = []
    for step in steps:
        rng = np.random.default_rng(step)
        alive = {name: rng.random((ENVS, 1)) < 0.8 for name in NAMES}
        columns = {name: rng.normal(size=(ENVS, 1)).astype(np.float32) for name in NAMES}
        first, second = (
            {name: rng.normal(size=(ENVS, width)).astype(np.float32) for name, width in WIDTHS.items()}
            for _ in range(2)
        )
        given: dict[str, Any] = {"observations": first, "next_observations": second, "rewards": columns}
        given |= {flag: {name: rng.random((ENVS, 1)) < 0.2 for name in NAMES} for flag in ("terminated", "truncated")}
        given, infos = to_framework(agents.framework, given), to_framework(agents.framework, {"alive": alive})
        actions, _ = agents.act(given["observations"], None, infos=infos, **CLOCK)
        agents.record_transition(states=None, next_states=None, actions=actions, infos=infos, **given, **CLOCK)
        agents.post_interaction(**CLOCK)
        agents.track_data("Team / Timestep", step)
        taken.append(copied(actions))
    return taken


@pytest.mark.parametrize("framework", full_or_short(FRAMEWORKS, ["torch", "warp"]))
def test_teams_go_on_bit_for_bit(framework):
    agents = team(framework, 0)
    play(agents, range(STEPS + 2))
    state = through_bytes(agents.snapshot(), framework)
    assert state["tracked"]["kept"] == {"Team / Timestep": (15.0, 6)}
    assert {group: member["recorded"] for group, member in state["members"].items()} == {"wings": 2, "keeper": 2}

    def rest(each: IndependentAgents) -> Any:
        seed_everything(framework, 2)
        taken = play(each, range(STEPS + 2, 3 * STEPS + 2))
        each.write_tracking_data(timestep=1, timesteps=2)
        return taken, each.writer, copied(each.state_dict()), each.snapshot()

    expected = rest(agents)
    assert {"Team / Timestep", "Loss / wings / Policy loss"} <= {scalar["tag"] for scalar in expected[1]}
    for seed, before in ((1, 0), (2, 2 * STEPS + 1)):
        other = team(framework, seed)
        play(other, range(before))
        other.restore(state)
        assert_same(other.snapshot(), state)
        assert_same(rest(other), expected)


# In a fresh process.


def digest(name: str, framework: str, path: Path) -> str:
    """Return a digest of all that an agent does after it has restored the snapshot in a file."""
    agent, arrays = CASES[name].make(framework, seed=7), load_framework(framework)
    agent.restore(decode_state(path.read_bytes(), arrays))
    done = go_on(agent, range(MIDDLE, MIDDLE + 2 * STEPS), CASES[name].infos)
    return hashlib.sha256(encode_state(done, arrays)).hexdigest()


@pytest.mark.parametrize(("framework", "name"), full_or_short(PAIRS, [("warp", "masks")]))
def test_goes_on_in_a_fresh_process(framework, name, tmp_path):
    agent, path = CASES[name].make(framework, seed=0), tmp_path / "snapshot"
    run(agent, range(MIDDLE), CASES[name].infos)
    path.write_bytes(encode_state(agent.snapshot(), load_framework(framework)))
    code = f"""
from pathlib import Path
from tests.agents.test_snapshots import digest
print(digest({name!r}, {framework!r}, Path({str(path)!r})))
"""
    done = python("-W", "error", "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == digest(name, framework, path)
    rest = range(MIDDLE, MIDDLE + 2 * STEPS)
    undisturbed = encode_state(go_on(agent, rest, CASES[name].infos), load_framework(framework))
    assert hashlib.sha256(undisturbed).hexdigest() == digest(name, framework, path)
