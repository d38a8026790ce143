"""Snapshots that do not fit, or are damaged: always refused by name, and the agent remains unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box

from tests.agents.test_snapshots import CASES, leaves, play, team
from tests.support.agents import NullAgent
from tests.support.parity import assert_same
from tests.support.ppo import BOX, ENVS, STEPS, make, run
from tests.support.schedule import FRAMEWORKS, IS_LONG, full_or_short
from workers.agents.independent import IndependentAgents
from workers.errors import AgentError


def refuses(agent: Any, state: Any, message: str = "") -> None:
    """Assert that a snapshot is refused and that the agent remains unchanged."""
    before, tracked = agent.snapshot(), agent.tracked
    with pytest.raises(AgentError, match=f"^the snapshot does not fit this agent: .*{message}"):
        agent.restore(state)
    assert_same(agent.snapshot(), before)
    assert agent.tracked is tracked


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"hidden_sizes": (9,)}, r"snapshot\['state_dict'\]\['models'\].* has shape \(9,.* expected \(8,"),
        ({"hidden_sizes": ()}, r"snapshot\['state_dict'\]\['models'\] is \["),
        ({"rollouts": STEPS + 4}, rf"snapshot\['rollouts'\] is {STEPS + 4}; expected {STEPS}"),
        ({"num_envs": ENVS + 1}, r"snapshot\['next'\] has shape \(4, 5\) and dtype float32; expected \(3, 5\) and"),
        ({"actions": "discrete"}, r"snapshot\['state_dict'\] is \["),
        ({"actions": Box(-1, 1, (3,))}, r"has shape \(3,.*expected \(2,"),
        ({"normalize_values": False}, r"snapshot\['state_dict'\]\['models'\] is \["),
        ({"asymmetric": True}, r"snapshot\['state_dict'\]\['models'\]"),
    ],
)
def test_snapshots_of_other_agents_are_refused(framework, other, message):
    agent, another = make(framework), make(framework, **other)
    run(agent, range(STEPS + 1))
    refuses(agent, another.snapshot(), message)


@pytest.mark.parametrize(("framework", "other"), [("torch", "jax"), ("jax", "warp"), ("warp", "torch")])
def test_snapshots_of_other_frameworks_are_refused(framework, other):
    refuses(make(framework), make(other).snapshot(), r"snapshot is \[.*; expected \[")


@pytest.mark.parametrize("state", [None, [], {}, "state", 3, {"state_dict": {}}])
def test_what_is_no_snapshot_is_refused(framework, state):
    refuses(make(framework), state)


def changed(tree: dict[Any, Any], path: tuple[Any, ...], *values: Any) -> dict[Any, Any]:
    """Return a copy of a tree with another value at `path`, or without it."""
    key, *rest = path
    if rest:
        return {**tree, key: changed(tree[key], tuple(rest), *values)}
    return {name: item for name, item in tree.items() if name != key} | dict.fromkeys([key][: len(values)], *values)


def wrong_values(value: Any) -> Iterator[Any]:
    """Yield values that can never be in the place of this one."""
    yield from (None, "word", [], {"other": 1.0}, np.array(["word"]), np.array([None]), {1, 2}, b"bytes", 1j)
    if isinstance(value, np.ndarray):
        yield from (value[None], value.astype(np.complex64), value.tolist(), np.zeros((7, *value.shape), value.dtype))
    else:
        yield from (np.zeros(3), np.float32(1.0))
    if not isinstance(value, bool):
        yield True
    if not isinstance(value, int) or isinstance(value, bool):
        yield 1
    if not isinstance(value, float):
        yield np.nan


def damaged(state: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what is wrong with damaged copies of a snapshot, and the copies."""
    paths = dict(leaves(state))
    for path, value in paths.items():
        if isinstance(value, dict) and path != TRACKED:
            yield f"{path} has more", changed(state, (*path, "more"), 1.0)
        if path and path[-1] != "action_mask" and path[:-1] != TRACKED:  # these may be missing
            yield f"{path} is missing", changed(state, path)
        for wrong in wrong_values(value) if path else ():
            yield f"{path} is {wrong!r}", changed(state, path, wrong)
    for path, values in OUT_OF_RANGE.items():
        for value in values if path in paths else ():
            yield f"{path} is {value!r}", changed(state, path, value)


TRACKED = ("tracked", "kept")
OUT_OF_RANGE: dict[tuple[str, ...], list[Any]] = {
    ("rollouts",): [0, STEPS + 1],
    ("recorded",): [-1, STEPS + 1, 1, 10**30],
    ("state_dict", "optimizer", "step"): [-1, 2**31, 10**30],
    ("state_dict", "action_bounds"): ["bounce"],
    ("generator", "bit_generator"): ["MT19937"],
    ("generator", "state", "state"): [-1, 10**99],
    TRACKED: [{"a": value} for value in [(1.0,), (1.0, 0), (1.0, True), (1, 1), ("b", 1), 3.0]] + [{1: (1.0, 1)}],
}


@pytest.mark.fuzz
@pytest.mark.parametrize("name", full_or_short(list(CASES), ["masks"]))
def test_damaged_snapshots_are_refused(framework, name):
    case = CASES[name]
    agent, other = case.make(framework, seed=0), case.make(framework, seed=1)
    for each in (agent, other):
        run(each, range(STEPS + 2), case.infos)
    before, state = agent.snapshot(), other.snapshot()
    all_damaged = list(damaged(state))
    assert len(all_damaged) > 400
    for what, wrong in all_damaged[:: 1 if IS_LONG else 7]:
        with pytest.raises(AgentError) as caught:
            agent.restore(wrong)
        assert str(caught.value).startswith("the snapshot does not fit this agent: "), what
    assert_same(agent.snapshot(), before)
    agent.restore(changed(state, ("state_dict", "learning_rate"), np.nan))
    assert np.isnan(agent.learning_rate)
    agent.restore(state)
    assert_same(agent.snapshot(), state)


@pytest.mark.parametrize("framework", full_or_short(FRAMEWORKS, ["torch"]))
def test_teams_refuse_all_or_nothing(framework):
    agents, other = team(framework, 0), team(framework, 1)
    play(agents, range(STEPS + 2))
    play(other, range(STEPS + 1))
    state = other.snapshot()
    for path, wrong, message in [
        (
            ("members",),
            {"wings": state["members"]["wings"]},
            r"snapshot\['members'\] is \['wings'\]; expected \['wings', ",
        ),
        (("members",), None, r"snapshot\['members'\] is NoneType"),
        (("training",), "yes", r"snapshot\['training'\] is 'yes'; expected one of type bool"),
        (("tracked", "kept"), {"a": 1.0}, "the state of scalars is"),
        (("more",), 1.0, "snapshot is"),
    ]:
        refuses(agents, changed(state, path, wrong), message)
    before = agents.snapshot()
    for wrong in (
        None,
        state["members"]["wings"],
        team(framework, 1, hidden_sizes=(9,)).snapshot()["members"]["keeper"],
    ):
        with pytest.raises(AgentError, match=r"^'keeper': the snapshot does not fit this agent: "):
            agents.restore(changed(state, ("members", "keeper"), wrong))
        assert_same(agents.snapshot(), before)
    agents.restore(state)
    assert_same(agents.snapshot(), state)


class Counter(NullAgent):
    """A single agent without a snapshot."""

    framework = "numpy"

    def __init__(self, **given: Any) -> None:
        super().__init__()
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...


class SavedCounter(Counter):
    def snapshot(self) -> dict[str, Any]:
        return {"count": self.count}

    def restore(self, state: Any) -> None:
        self.count = state["count"]


def team_of(*kinds: Any) -> IndependentAgents:
    names = ["left", "right"]
    made = iter(kinds)
    spaces: dict[str, Any] = {f"{kind}_spaces": dict.fromkeys(names, BOX) for kind in ("observation", "action")}
    return IndependentAgents(lambda **given: next(made)(**given), possible_agents=names, **spaces, num_envs=1)


def test_a_team_has_a_snapshot_if_every_agent_has_one():
    agents = team_of(SavedCounter, Counter)
    message = "Counter of the group 'right' lacks snapshot, restore; IndependentAgents can do this only if every"
    with pytest.raises(AgentError, match=message):
        agents.snapshot()
    with pytest.raises(AgentError, match=message):
        agents.restore({})


def test_errors_of_other_agents_change_nothing():
    agents = team_of(SavedCounter, SavedCounter)
    state = agents.snapshot()
    state["members"]["left"]["count"] = 1
    state["members"]["right"] = {}
    with pytest.raises(AgentError, match=r"^'right': 'count'$"):
        agents.restore(state)
    assert agents.members["left"].count == 0
    state["members"]["right"] = {"count": 2}
    agents.restore(state)
    assert [member.count for member in agents.members.values()] == [1, 2]
