"""Wrappers of other libraries that give something odd in the second step, and the failure that a trainer reports."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.agents import NullAgent, framework_of, to_numpy
from tests.support.foreign import ForeignEnv
from tests.support.parity import CFG, step_trainer
from workers.errors import WorkerError

NUM_ENVS, SCOPES, ODD_ROW = 5, [2, 3], 3

Change = Callable[[Any], Any]
"""A function of the five outputs of a step, which returns them with something odd."""


def failure_of(
    env: Any, framework: str, *, scopes: Any = SCOPES, timestep: int = 2, agent: Any = NullAgent, **options: Any
) -> Any:
    """Return the only failure, which must be an EnvError at a timestep."""
    agents = [agent] * len(scopes)
    with step_trainer(framework)(env=env, agents=agents, scopes=scopes, cfg=CFG, **options) as trainer:
        for _ in range(timestep - 1):
            trainer.train()
        with pytest.raises(WorkerError) as caught:
            trainer.train()
    (failure,) = caught.value.failures
    assert (failure.kind, failure.timestep) == ("workers.errors.EnvError", timestep), failure
    return failure


def assert_refused(failure: Any, row: int | None, message: str) -> None:
    """Assert what a failure in a step says; the row is None for all environments."""
    expected = (None, (0, NUM_ENVS)) if row is None else (1, (row, row + 1))
    assert (failure.scope, failure.rows, failure.phase) == (*expected, "step")
    assert re.search(message, failure.message), failure.message


def assert_odd_row(failure: Any, message: str) -> None:
    assert_refused(failure, ODD_ROW, message)


class OddForeign(ForeignEnv):
    """A wrapper of another library; `change` gets the outputs of the second step, `change_states` the states then."""

    def __init__(
        self, framework: str, change: Change, num_envs: int = NUM_ENVS, *, change_states: Change = lambda states: states
    ) -> None:
        super().__init__(num_envs, framework=framework)
        self.change, self.change_states = change, change_states

    def step(self, actions: Any) -> Any:
        given = super().step(actions)
        return self.change(given) if self.time == 2 else given

    def state(self) -> Any:
        states = super().state()
        return self.change_states(states) if self.time == 2 else states


class OddForeignTeam(OddForeign):
    """The same for a team of two, with equal arrays for both."""

    possible_agents = ("anna", "bert")
    agents = possible_agents
    observation_spaces = dict.fromkeys(possible_agents, ForeignEnv.observation_space)
    action_spaces = dict.fromkeys(possible_agents, ForeignEnv.action_space)
    state_spaces = dict.fromkeys(possible_agents, ForeignEnv.state_space)

    def by_agent(self, array: Any) -> Any:
        return {name: framework_of(array).copy(array) for name in self.possible_agents}

    def reset(self) -> Any:
        observations, infos = super().reset()
        return self.by_agent(observations), infos

    def step(self, actions: Any) -> Any:
        *arrays, infos = ForeignEnv.step(self, actions)
        given = (*map(self.by_agent, arrays), infos)
        return self.change(given) if self.time == 2 else given

    def state(self) -> Any:
        states = self.by_agent(ForeignEnv.state(self))
        return self.change_states(states) if self.time == 2 else states


class NullTeam(NullAgent):
    """Multi-agent whose actions are zeros for all, whoever has observations."""

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        array = next(iter(observations.values()))
        actions = framework_of(array).from_numpy(np.zeros((len(array), 1), np.float32))
        return dict.fromkeys(OddForeignTeam.possible_agents, actions), {}


def at(index: int, change: Change) -> Change:
    """Return a change of one of the five outputs."""
    return lambda given: (*given[:index], change(given[index]), *given[index + 1 :])


def of_bert(index: int, change: Change) -> Change:
    """Return a change of one of the five outputs of one agent; what becomes a string is left out."""

    def changed(arrays: Any) -> Any:
        by_agent = arrays | {"bert": change(arrays["bert"])}
        return {name: array for name, array in by_agent.items() if not isinstance(array, str)}

    return at(index, changed)


def nothing(_: Any) -> None:
    return None


def filled(array: Any, value: float, row: int = ODD_ROW) -> Any:
    """Return a copy with a value in the last column of a row, as an array of the same framework."""
    values = to_numpy(array).copy()
    values[row, -1] = value
    return framework_of(array).from_numpy(values)


def cast(array: Any, dtype: Any) -> Any:
    """Return a copy of another dtype, as an array of the same framework."""
    return framework_of(array).from_numpy(to_numpy(array).astype(dtype))
