"""The forms in which environments are kept, their order, what the proof leaves alone, and damaged states."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest

from tests.support.parity import assert_same
from tests.support.states import (
    EPISODES,
    ROWS,
    Carried,
    Global,
    Row,
    Timed,
    build,
    form_of,
    step,
    stopped,
    through_bytes,
)
from workers.envs import register_state
from workers.envs.states import (
    EnvState,
    check_state,
    prepare_state,
    read_state,
    set_replay_limit,
    write_state,
)
from workers.errors import EnvError
from workers.frameworks import load_framework

NUMPY = load_framework("numpy")


class Own(Timed):
    """Keeps its own state; the clock is part of it."""

    def get_state(self) -> Any:
        return {"steps": self.step_count}

    def set_state(self, state: Any) -> None:
        self.step_count = state["steps"]

    def extra(self) -> float:
        return -1.0


class Foreign(Global):
    """Kept by `register_state`."""

    def extra(self) -> float:
        return float(EPISODES["finished"])


def put_back(env: Foreign, state: Any) -> None:
    env.step_count = state["steps"]
    EPISODES.update(finished=state["finished"])


register_state(
    Foreign,
    get_state=lambda env: {"steps": env.step_count, "finished": EPISODES["finished"]},
    set_state=put_back,
)


@pytest.mark.parametrize("kind", [Own, Foreign])
def test_an_environments_own_state_is_used(kind):
    env, other = build(kind), build(kind)
    stopped(env)
    state = through_bytes(read_state(env, NUMPY, allow_pickle=False), NUMPY)
    assert form_of(state) == "own"
    assert not write_state(other, NUMPY, state).any()
    assert_same(step(other), step(env))


class Lossy(Timed, gymnasium.utils.EzPickle):
    """Is made anew when it is pickled."""

    def __init__(self, row: int) -> None:
        gymnasium.utils.EzPickle.__init__(self, row)
        super().__init__(row)


class Kept(Carried):
    """Pickle keeps it; attributes and replay do not."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.finished: Any = [0, object()]

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.finished[0] += 1
        return super().reset(seed=seed)

    def reward(self) -> float:
        return float(self.finished[0])


def test_a_pickle_that_loses_the_state_is_refused(caplog):
    env = build(Lossy)
    prepare_state(env, NUMPY, allow_pickle=True)
    assert "pickle: the observation of a restored copy differs" in caplog.text
    stopped(env)
    assert form_of(read_state(env, NUMPY, allow_pickle=True)) == "none"


def test_pickle_is_the_last_resort(caplog):
    env, other = build(Kept), build(Kept)
    prepare_state(env, NUMPY, allow_pickle=False)
    assert "pass allow_pickle=True, or give its class methods" in caplog.text
    prepare_state(env, NUMPY, allow_pickle=True)
    stopped(env)
    state = read_state(env, NUMPY, allow_pickle=True)
    assert form_of(state) == "pickle"
    assert not write_state(other, NUMPY, state).any()
    for _ in range(8):
        assert_same(step(other), step(env))


def test_an_episode_beyond_the_limit_is_named_and_lost(caplog):
    env, other = build(Row), build(Row)
    set_replay_limit(env, 4)
    env.reset(seed=1)
    for _ in range(5):  # row 0 has just been reset
        step(env)
    state = read_state(env, NUMPY, allow_pickle=False)
    assert [row["form"] for row in state.rows or ()] == ["replay", "none", "none"]
    assert "rows [1, 2] cannot be stored" in caplog.text
    assert "more than 4 actions" in caplog.text
    np.testing.assert_array_equal(write_state(other, NUMPY, state), [False, True, True])


def test_the_log_is_bounded():
    class Endless(Row):
        def step(self, action: Any) -> Any:
            return *super().step(action)[:2], False, False, {}

    env = build(Endless)
    env.reset(seed=1)
    for limit, most in ((1000, 2048), (0, 0)):
        set_replay_limit(env, limit)
        for _ in range(3000):
            env.step(np.zeros((ROWS, 1), np.float32))
        assert len(env._env.log._entries) <= most
    for wrong in (-1, 1.5, True):
        with pytest.raises(EnvError, match="the replay limit is"):
            set_replay_limit(env, wrong)  # type: ignore[arg-type]


def test_live_copies_are_not_touched_by_a_proof():
    class Watched(Row):
        made = 0

        def __init__(self, row: int) -> None:
            super().__init__(row)
            type(self).made += 1

    env, other = build(Watched), build(Watched)
    for each in (env, other):
        each.reset(seed=1)
        step(each)
    before = [vars(copy) | {"_np_random": copy._np_random.bit_generator.state} for copy in env._env.unwrapped.envs]
    read_state(env, NUMPY, allow_pickle=False)
    after = [vars(copy) | {"_np_random": copy._np_random.bit_generator.state} for copy in env._env.unwrapped.envs]
    assert_same(after, before)
    for _ in range(9):
        assert_same(step(env), step(other))


class Simulated(Row):
    """Holds a number of something outside, as of a simulator, whose episodes are not determined by the actions."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.handle = object()

    def __deepcopy__(self, memo: Any) -> Any:
        DUPLICATES.append(self)
        return Simulated(self.row)


DUPLICATES: list[Any] = []


def test_an_unknown_class_is_duplicated_only_before_its_first_reset(caplog):
    env = build(Simulated)
    prepare_state(env, NUMPY, allow_pickle=False)
    assert DUPLICATES
    DUPLICATES.clear()
    env = build(Simulated)
    stopped(env)
    with caplog.at_level(logging.WARNING, logger="lockstep"):
        assert form_of(read_state(env, NUMPY, allow_pickle=False)) == "replay"  # proved on arrival
    assert not DUPLICATES


def mutations(tree: Any) -> Iterator[Any]:
    """Yield copies of a tree with one part missing or of another type."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield {other: item for other, item in tree.items() if other != key}
            yield from (tree | {key: other} for other in mutations(value))
    elif isinstance(tree, list):
        yield tree[:-1]
        yield [*tree, *tree[:1]]
        for index, value in enumerate(tree):
            yield from ([*tree[:index], other, *tree[index + 1 :]] for other in mutations(value))
    else:
        yield from (None, "odd", -7, [tree], {"odd": tree}, np.zeros((2, 2)))


@pytest.mark.parametrize("kind", [Row, Own, Timed])
def test_odd_states_are_refused_by_name(kind):
    """Each is refused by `check_state`, or fits and is then restored or named as lost; nothing else is raised."""
    env, other = build(kind), build(kind)
    stopped(env)
    rows = read_state(env, NUMPY, allow_pickle=False).rows
    refused = 0
    odd: list[Any] = [EnvState(None, None), EnvState(rows, {"form": "wrappers"}), EnvState(None, {"form": "arrays"})]
    for state in [*odd, *(EnvState(one, None) for one in mutations(rows))]:
        try:
            check_state(other, NUMPY, state)
        except EnvError:
            refused += 1
        else:
            write_state(other, NUMPY, state)
            other.reset(seed=1)
            step(other)
    assert refused > 50
