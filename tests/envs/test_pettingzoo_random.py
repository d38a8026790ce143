"""Random multi-agent environments in our wrapper, compared with equal ones stepped one by one in plain Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple
from hypothesis import given, settings
from hypothesis import strategies as st
from pettingzoo import AECEnv, ParallelEnv

from tests.support.multi_agent_oracle import Oracle, assert_rows, columns, draw, flat
from workers.envs.pettingzoo import PettingZooWrapper

STEPS = 20

leaves: st.SearchStrategy[Space[Any]] = st.one_of(
    st.builds(
        lambda shape, dtype: Box(0, 100, shape, dtype),
        st.sampled_from([(), (1,), (3,), (2, 2)]),
        st.sampled_from([np.float32, np.float64, np.uint8, np.int16]),
    ),
    st.builds(lambda n, start: Discrete(n, start=start), st.integers(1, 4), st.integers(-2, 3)),
    st.builds(MultiDiscrete, st.sampled_from([[3], [2, 4], [[2, 3], [1, 4]]])),
    st.builds(MultiBinary, st.sampled_from([2, [2, 3]])),
)
spaces = st.recursive(
    leaves,
    lambda members: st.one_of(
        st.lists(members, min_size=1, max_size=2).map(Tuple),
        st.dictionaries(st.sampled_from("abc"), members, min_size=1, max_size=2).map(Dict),
    ),
    max_leaves=3,
)
Spaces = Sequence[tuple[Space[Any], Space[Any]]]


class Script:
    """When each agent is present: the same for both kinds of environments, drawn again for each episode."""

    def __init__(self, both: Spaces, length: int) -> None:
        self.possible_agents = [f"agent_{index}" for index in range(len(both))]
        self.agents: list[str] = []
        self.spaces = dict(zip(self.possible_agents, both, strict=True))
        self.length = length
        self.generator = np.random.default_rng()
        self.time = 0

    def observation_space(self, agent: str) -> Space[Any]:
        return self.spaces[agent][0]

    def action_space(self, agent: str) -> Space[Any]:
        return self.spaces[agent][1]

    def begin(self, seed: int | None) -> None:
        if seed is not None:
            self.generator = np.random.default_rng(seed)
        draws, names, self.time = self.generator, self.possible_agents, 0
        self.first = {name: int(draws.integers(self.length)) if draws.random() < 0.4 else 0 for name in names}
        self.first[names[draws.integers(len(names))]] = 0
        self.last = {name: self.first[name] + int(draws.integers(1, self.length + 1)) for name in names}
        self.end = int(draws.integers(1, self.length + 1))
        self.is_truncation = {name: bool(draws.random() < 0.5) for name in names}
        self.agents = [name for name in names if self.first[name] == 0]

    def flags(self, names: list[str]) -> tuple[dict[str, bool], dict[str, bool]]:
        ends = {name: self.time in (self.last[name], self.end) for name in names}
        terminated = {name: end and not self.is_truncation[name] for name, end in ends.items()}
        return terminated, {name: end and self.is_truncation[name] for name, end in ends.items()}

    def checksum(self, name: str, action: Any) -> float:
        numbers = columns(self.spaces[name][1], action)
        return sum(place * number for place, number in enumerate(numbers, start=1))


class RandomTeam(Script, ParallelEnv):
    metadata: dict[str, Any] = {"name": "random_team_v0"}  # noqa: RUF012

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.begin(seed)
        return self.observations(self.agents), {name: {"tick": 0} for name in self.agents}

    def observations(self, names: list[str]) -> dict[str, Any]:
        return {name: draw(self.spaces[name][0], self.generator) for name in names}

    def step(self, actions: dict[str, Any]) -> Any:
        assert actions.keys() == set(self.agents)
        self.time += 1
        # agents due in the last step do not appear
        shown = self.agents + [name for name, first in self.first.items() if first == self.time < self.end]
        sums = {name: self.checksum(name, action) for name, action in actions.items()}
        rewards = {name: sums.get(name, 0.0) + self.generator.random() for name in shown}
        terminated, truncated = self.flags(shown)
        self.agents = [name for name in shown if not (terminated[name] or truncated[name])]
        infos = {name: {"tick": self.time} if self.time % 2 else {} for name in shown}
        return self.observations(shown), rewards, terminated, truncated, infos


class RandomGame(Script, AECEnv):
    metadata: dict[str, Any] = {"name": "random_game_v0", "is_parallelizable": False}  # noqa: RUF012
    render_mode = None

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        self.begin(seed)
        self.terminations, self.truncations = (dict.fromkeys(self.agents, False) for _ in range(2))
        self.rewards, self._cumulative_rewards = (dict.fromkeys(self.agents, 0.0) for _ in range(2))
        self.infos = {name: {"tick": 0} for name in self.agents}
        self.agent_selection = self.agents[self.generator.integers(len(self.agents))]
        self._skip_agent_selection = None

    def observe(self, agent: str) -> Any:
        """Return the same observation however often it is called."""
        key = [self.possible_agents.index(agent), self.time, int(self.end)]
        return draw(self.spaces[agent][0], np.random.default_rng(key))

    def step(self, action: Any) -> None:
        mover = self.agent_selection
        if self.terminations[mover] or self.truncations[mover]:
            self._was_dead_step(action)
            return
        self.time += 1
        self.rewards = {name: self.generator.random() for name in self.agents}
        self.rewards[mover] += self.checksum(mover, action)
        self.terminations, self.truncations = self.flags(self.agents)
        self.infos = {name: {"tick": self.time} if self.time % 2 else {} for name in self.agents}
        living = [name for name in self.agents if not (self.terminations[name] or self.truncations[name])]
        self.agent_selection = living[self.generator.integers(len(living))] if living else mover
        self._deads_step_first()


def check_infos(infos: dict[str, Any], expected: list[dict[str, Any]], names: list[str]) -> None:
    """Check the ticks of each agent and the rows in which it has one."""
    for name in names:
        ticks = [row.get(name, {}).get("tick") for row in expected]
        assert ("tick" in infos.get(name, {})) == any(tick is not None for tick in ticks)
        if "tick" in infos.get(name, {}):
            assert infos[name]["_tick"].tolist() == [tick is not None for tick in ticks]
            assert (infos[f"_{name}"] >= infos[name]["_tick"]).all()
            assert infos[name]["tick"].tolist() == [tick or 0 for tick in ticks]


def check(kind: Any, both: Spaces, length: int, copies: int, seed: int) -> None:
    env = PettingZooWrapper([kind(both, length) for _ in range(copies)], framework="numpy", states="joint")
    oracles = [Oracle(kind(both, length)) for _ in range(copies)]
    generator, names = np.random.default_rng(seed), env.possible_agents
    own = [oracle.reset(seed + row) for row, oracle in enumerate(oracles)]
    observations, infos = env.reset(seed=seed)
    for name, (space, _) in zip(names, both, strict=True):
        assert_rows(observations[name], flat(space, [row for row, _ in own], name))
    check_infos(infos, [told for _, told in own], names)
    for _ in range(STEPS):
        living = [oracle.alive() for oracle in oracles]
        for name in names:
            assert_rows(infos["alive"][name], np.array([[name in row] for row in living]))
        assert env.agents == [name for name in names if any(name in oracle.env.agents for oracle in oracles)]
        actions = [{name: draw(space, generator) for name, (_, space) in zip(names, both, strict=True)} for _ in own]
        flat_actions = {
            name: np.array([columns(space, row[name]) for row in actions], np.float32)
            for name, (_, space) in zip(names, both, strict=True)
        }
        observations, rewards, terminated, truncated, infos = env.step(flat_actions)
        outputs = [oracle.step(row) for oracle, row in zip(oracles, actions, strict=True)]
        over = np.array([not oracle.env.agents for oracle in oracles])
        fresh = [oracle.reset() if is_over else None for oracle, is_over in zip(oracles, over, strict=True)]
        shown = [output[0] if new is None else new[0] for output, new in zip(outputs, fresh, strict=True)]
        for name, (space, _) in zip(names, both, strict=True):
            assert_rows(observations[name], flat(space, shown, name))
            assert_rows(rewards[name], np.array([[output[1].get(name, 0)] for output in outputs], np.float32))
            assert_rows(terminated[name], np.array([[output[2].get(name, False)] for output in outputs]))
            assert_rows(truncated[name], np.array([[output[3].get(name, False)] for output in outputs]))
            if over.any():
                ends = [output[0] if is_over else {} for output, is_over in zip(outputs, over, strict=True)]
                assert_rows(infos["final_obs"][name], flat(space, ends, name))
        check_infos(infos, [out[4] if new is None else new[1] for out, new in zip(outputs, fresh, strict=True)], names)
        assert ("final_obs" in infos) == ("final_state" in infos) == over.any()
        joined = np.concatenate([observations[name].astype(np.float32) for name in names], axis=1)
        for states in env.state().values():
            assert states is not None
            assert_rows(states, joined)
        if over.any():
            assert_rows(infos["_final_obs"], over)
            finals = [out[4] if is_over else {} for out, is_over in zip(outputs, over, strict=True)]
            check_infos(infos.get("final_info", {}), finals, names)
            joined = np.concatenate([infos["final_obs"][name].astype(np.float32) for name in names], axis=1)
            assert_rows(infos["final_state"][names[0]], joined)


agents = st.lists(st.tuples(spaces, spaces), min_size=1, max_size=5)
sizes = {"length": st.integers(1, 8), "copies": st.integers(1, 4), "seed": st.integers(0, 2**16)}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(both=agents, **sizes)
def test_random_teams(both, length, copies, seed):
    check(RandomTeam, both, length, copies, seed)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(both=agents, **sizes)
def test_random_turn_based_games(both, length, copies, seed):
    check(RandomGame, both, length, copies, seed)
