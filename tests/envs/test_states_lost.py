"""Environments that no form keeps are named, and truncated in their next step with their true last observation."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from tests.support.agents import copied
from tests.support.parity import assert_same
from tests.support.states import (
    CLOCK,
    Carried,
    Global,
    Row,
    Timed,
    TimedTeam,
    WithStates,
    build,
    form_of,
    step,
    stopped,
    through_bytes,
)
from workers.envs.states import check_state, prepare_state, read_state, write_state
from workers.frameworks import load_framework

NUMPY = load_framework("numpy")


REASONS = {Timed: "observation", Global: "observation", Carried: "reward"}
CASES = [
    *((kind, mode) for kind in REASONS for mode in (None, AutoresetMode.NEXT_STEP)),
    (Timed, AutoresetMode.DISABLED),
    (WithStates, None),
]


@pytest.mark.parametrize(("kind", "mode"), CASES)
@pytest.mark.parametrize("is_prepared", [True, False])
def test_what_defeats_the_proof_is_named_and_truncated(kind, mode, is_prepared, caplog):
    """Prepared, the proof on copies finds out; else arrival does, since an unknown class in use is not copied."""
    env, other = build(kind, mode), build(kind, mode)
    if is_prepared:
        prepare_state(env, NUMPY, allow_pickle=False)
    last = stopped(env)
    states = copied(env.state())
    state = through_bytes(read_state(env, NUMPY, allow_pickle=False), NUMPY)
    assert form_of(state) == ("none" if is_prepared else "replay")
    if is_prepared:
        (told,) = [record.getMessage() for record in caplog.records]
        assert "cannot be stored, so its rows will be truncated when it is loaded (replay: " in told
        assert REASONS.get(kind, "observation") in told
        assert "get_state() and set_state(state)" in told
        read_state(env, NUMPY, allow_pickle=False)
        assert len(caplog.records) == 1
    caplog.clear()
    check_state(other, NUMPY, state)
    assert write_state(other, NUMPY, state).all()
    (told,) = [record.getMessage() for record in caplog.records]
    assert "rows [0, 1, 2] could not be restored, so they are truncated in their next step" in told
    assert_same(copied(other.state()), states)
    assert_same(through_bytes(read_state(other, NUMPY, allow_pickle=False), NUMPY), state)  # still lost
    copies = other._env.unwrapped.envs
    before = [copy.unwrapped.calls for copy in copies]
    observations, rewards, terminated, truncated, infos = step(other)
    assert [copy.unwrapped.calls for copy in other._env.unwrapped.envs] == before
    assert_same(infos["final_obs"], last)
    assert infos["_final_obs"].all()
    if states is not None:
        assert_same(infos["final_state"], states)
    assert truncated.all()
    assert not terminated.any()
    assert not rewards.any()
    np.testing.assert_array_equal(observations[:, :2], [[0, 0], [1, 0], [2, 0]])
    observations, rewards, terminated, truncated, infos = step(other)
    np.testing.assert_array_equal(observations[:, :2], [[0, 1], [1, 1], [2, 1]])
    assert not (terminated | truncated).any()
    assert "final_obs" not in infos


@pytest.mark.parametrize("steps", [1, 4])
def test_every_living_agent_of_a_lost_team_is_truncated(steps, caplog):
    env, other = build(TimedTeam), build(TimedTeam)
    last = stopped(env, steps)
    state = through_bytes(read_state(env, NUMPY, allow_pickle=False), NUMPY)
    check_state(other, NUMPY, state)
    assert write_state(other, NUMPY, state).all()
    assert "rows [0, 1, 2] could not be restored" in caplog.text
    assert_same(through_bytes(read_state(other, NUMPY, allow_pickle=False), NUMPY), state)
    before = [copy.calls for copy in other.envs]
    observations, rewards, terminated, truncated, infos = step(other)
    assert [copy.calls for copy in other.envs] == before
    assert infos["_final_obs"].all()
    for name in ("a", "b"):
        is_alive = name == "a" or steps < 2
        assert (truncated[name] == is_alive).all()
        assert not terminated[name].any()
        assert not rewards[name].any()
        assert_same(infos["final_obs"][name], last[name] if is_alive else np.zeros_like(last[name]))
        np.testing.assert_array_equal(observations[name][:, :2], [[0, 0], [1, 0], [2, 0]])
        assert infos["alive"][name].all()
    assert (step(other)[0]["b"][:, 1] == 1).all()


def test_only_the_rows_that_do_not_arrive_are_lost(caplog):
    class Odd(Row):
        def extra(self) -> float:
            return float(next(CLOCK)) if self.row == 1 else 0.0

    env, other = build(Odd), build(Odd)
    last = stopped(env)
    state = read_state(env, NUMPY, allow_pickle=False)
    np.testing.assert_array_equal(write_state(other, NUMPY, state), [False, True, False])
    assert "rows [1] could not be restored" in caplog.text
    observations, rewards, _, truncated, infos = step(other)
    np.testing.assert_array_equal(truncated[:, 0], [False, True, False])
    np.testing.assert_array_equal(rewards[:, 0], [1, 0, 1])
    np.testing.assert_array_equal(observations[:, :2], [[0, 4], [1, 0], [2, 4]])
    np.testing.assert_array_equal(infos["_final_obs"], [False, True, False])
    assert_same(infos["final_obs"][1], last[1])
