"""States of environments as bytes and back, environments that defeat the proof, and random actions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space
from pettingzoo import ParallelEnv

from tests.support.agents import copied
from workers.envs import wrap_env
from workers.envs.states import EnvState
from workers.frameworks import Framework
from workers.spaces import flat_actions as flat
from workers.storage.state_file import decode_state, encode_state

ROWS = 3
CLOCK: Iterator[int] = itertools.count(1)
EPISODES = {"finished": 0}


def through_bytes(state: EnvState, framework: Framework) -> EnvState:
    """Return a state that was written without pickle and read again."""
    rows, whole = decode_state(encode_state([state.rows, state.whole], framework), framework)
    return EnvState(rows, whole)


def form_of(state: EnvState) -> str:
    """Return the form in which all rows, or the whole, are stored."""
    forms = {row["form"] for row in state.rows} if state.rows is not None else {(state.whole or {})["form"]}
    (form,) = forms
    return str(form)


def flat_actions(env: Any, generator: np.random.Generator) -> Any:
    """Return random actions of every row in the wrapper's format, for NumPy; those of teams by name."""

    def sample(space: Any) -> Any:
        batch = batch_space(space, env.num_envs)
        batch.seed(int(generator.integers(2**31)))
        return flat(space, batch.sample())

    if hasattr(env, "possible_agents"):
        return {name: sample(space) for name, space in env.action_spaces.items()}
    return sample(env.action_space)


class Row(gymnasium.Env[Any, Any]):
    """Observations are ``(row, step, extra)``; an episode ends after ``5 + row`` steps. Calls of `step` are counted."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float64)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, row: int) -> None:
        self.row, self.step_count, self.calls = row, 0, 0

    def extra(self) -> float:
        return 0.0

    def reward(self) -> float:
        return 1.0

    def observe(self) -> Any:
        return np.array([self.row, self.step_count, self.extra()])

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.step_count = 0
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        self.step_count += 1
        self.calls += 1
        return self.observe(), self.reward(), self.step_count >= 5 + self.row, False, {}


class Timed(Row):
    """Shows a clock."""

    def extra(self) -> float:
        return float(next(CLOCK))


class Global(Row):
    """Draws from NumPy's global generator."""

    def extra(self) -> float:
        return float(np.random.random())


class Carried(Row):
    """Its rewards depend on a number outside of it that outlives resets."""

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        EPISODES["finished"] += 1
        return super().reset(seed=seed)

    def reward(self) -> float:
        return float(EPISODES["finished"])


class WithStates(Timed):
    """Has privileged states, ``(100 row + step,)``."""

    state_space = Box(-np.inf, np.inf, (1,), np.float32)

    def state(self) -> Any:
        return np.array([100 * self.row + self.step_count], np.float32)


class TimedTeam(ParallelEnv[str, Any, Any]):
    """Agents ``a`` and ``b`` see ``(row, step, clock)``; ``b`` dies in step 2 and ``a`` ends in step 6."""

    metadata = {"name": "timed", "is_parallelizable": True}  # noqa: RUF012
    possible_agents = ["a", "b"]  # noqa: RUF012
    render_mode = None

    def __init__(self, row: int) -> None:
        self.row, self.steps, self.calls = row, 0, 0

    def observation_space(self, agent: str) -> Any:
        return Box(-np.inf, np.inf, (3,), np.float64)

    def action_space(self, agent: str) -> Any:
        return Box(-1.0, 1.0, (1,), np.float32)

    def observe(self) -> Any:
        return {name: np.array([self.row, self.steps, float(next(CLOCK))]) for name in self.agents}

    def reset(self, seed: Any = None, options: Any = None) -> Any:
        self.agents, self.steps = ["a", "b"], 0
        return self.observe(), {name: {} for name in self.agents}

    def step(self, actions: Any) -> Any:
        self.steps += 1
        self.calls += 1
        names = list(self.agents)
        shown = self.observe()
        ended = {name: self.steps == 6 or (name == "b" and self.steps == 2) for name in names}
        self.agents = [name for name in names if not ended[name]]
        return shown, dict.fromkeys(names, 1.0), ended, dict.fromkeys(names, False), {name: {} for name in names}


def build(kind: Callable[[int], Any], mode: AutoresetMode | None = None) -> Any:
    if mode is None:
        return wrap_env([kind(row) for row in range(ROWS)], framework="numpy")
    makers = [partial(kind, row) for row in range(ROWS)]
    return wrap_env(SyncVectorEnv(makers, autoreset_mode=mode), framework="numpy")


def step(env: Any) -> Any:
    return tuple(map(copied, env.step(flat_actions(env, np.random.default_rng(0)))))


def stopped(env: Any, steps: int = 3) -> Any:
    """Reset and step environments; return their last observations."""
    env.reset(seed=1)
    for _ in range(steps):
        observations, *_ = step(env)
    return observations
