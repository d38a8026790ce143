"""Multi-agent environments whose data says which row, agent, episode and step it comes from; and noisy ones."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Space
from pettingzoo import AECEnv, ParallelEnv

from workers.envs import EnvFactory

TEAM = ("scout", "tank", "medic")
PLAYERS = ("anna", "bert", "cleo")

Deaths = Mapping[str, tuple[int, str]]
"""Step (from 1) and flag ("terminated" or "truncated") of each agent's end."""

SCRIPTS: tuple[Deaths, ...] = (
    {"scout": (2, "terminated"), "tank": (5, "truncated"), "medic": (4, "terminated")},
    {"scout": (3, "truncated"), "tank": (3, "truncated"), "medic": (3, "truncated")},
    {"scout": (4, "truncated"), "tank": (1, "terminated"), "medic": (6, "terminated")},
)
"""Deaths in rows 0, 1, 2, and so on in turn: one after the other; all at once; the first in the first step."""


class CountingTeamEnv(ParallelEnv):
    """Three agents that live as long as the script says; the episode ends with the last of them.

    - Observation: ``(row, agent's index, episode, step)``, and ``index`` more columns, the first numbers of the agent's
      last action (-1 if there is none): the scout has 4 columns, the tank 5, the medic 6.
    - Actions: the scout's ``Discrete(5, start=1)``, the tank's ``Box(2)``, the medic's ``MultiDiscrete([3, 4])``.
    - Reward: ``1000 row + 100 index + 10 episode + step / 10``.
    - Infos: ``{"step": step, "name": "row/agent"}``; for the scout also an ``action_mask`` in which all actions but
      ``(row + step) % 5`` are legal; and ``{"fell": step}`` in the step in which an agent ends.
    - State: ``(row, episode, step, number of living agents)``.
    - If `arrival` is not 0, the medic is absent until that step, which brings its first observation, with a reward.
    """

    metadata: dict[str, Any] = {"name": "counting_team_v0", "is_parallelizable": True}  # noqa: RUF012
    render_mode = None
    state_space = Box(-np.inf, np.inf, (4,), np.float32)

    def __init__(self, row: int, deaths: Deaths = SCRIPTS[0], *, arrival: int = 0) -> None:
        self.row = row
        self.deaths = deaths
        self.arrival = arrival
        self.episode, self.step_count = -1, 0
        self.possible_agents = list(TEAM)
        self._observation_spaces = {
            name: Box(-np.inf, np.inf, (4 + index,), np.float32) for index, name in enumerate(TEAM)
        }
        spaces = (Discrete(5, start=1), Box(-np.inf, np.inf, (2,), np.float32), MultiDiscrete([3, 4]))
        self._action_spaces: dict[str, Space[Any]] = dict(zip(TEAM, spaces, strict=True))
        self.agents: list[str] = []
        self.last_actions: dict[str, Any] = {}

    def observation_space(self, agent: str) -> Space[Any]:
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> Space[Any]:
        return self._action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.episode, self.step_count = self.episode + 1, 0
        self.agents = [name for name in TEAM if name != "medic" or not self.arrival]
        self.last_actions = {}
        return {name: self.observation(name) for name in self.agents}, {name: self.info(name) for name in self.agents}

    def step(self, actions: Mapping[str, Any]) -> Any:
        assert actions.keys() == set(self.agents), f"actions of {list(actions)}; expected those of {self.agents}"
        self.last_actions = dict(actions)
        self.step_count += 1
        shown = list(self.agents)
        if self.step_count == self.arrival:
            shown.append("medic")
        ends = {name: flag for name, (step, flag) in self.deaths.items() if name in shown and step == self.step_count}
        self.agents = [name for name in shown if name not in ends]
        infos = {name: self.info(name) | ({"fell": self.step_count} if name in ends else {}) for name in shown}
        return (
            {name: self.observation(name) for name in shown},
            {name: self.reward(TEAM.index(name)) for name in shown},
            {name: ends.get(name) == "terminated" for name in shown},
            {name: ends.get(name) == "truncated" for name in shown},
            infos,
        )

    def observation(self, name: str) -> npt.NDArray[np.float32]:
        index = TEAM.index(name)
        numbers = np.ravel(self.last_actions.get(name, [-1, -1]))[:index]
        return np.array([self.row, index, self.episode, self.step_count, *numbers], np.float32)

    def reward(self, index: int) -> float:
        return 1000.0 * self.row + 100.0 * index + 10.0 * self.episode + self.step_count / 10

    def info(self, name: str) -> dict[str, Any]:
        told: dict[str, Any] = {"step": self.step_count, "name": f"{self.row}/{name}"}
        if name == "scout":
            told["action_mask"] = (np.arange(5) != (self.row + self.step_count) % 5).astype(np.int8)
        return told

    def state(self) -> npt.NDArray[np.float32]:
        return np.array([self.row, self.episode, self.step_count, len(self.agents)], np.float32)


def build_team(num_envs: int, first_env: int, *, arrival: int = 0) -> list[CountingTeamEnv]:
    """Build copies whose row is their index in the full batch; every third one has the same script."""
    rows = range(first_env, first_env + num_envs)
    return [CountingTeamEnv(row, SCRIPTS[row % len(SCRIPTS)], arrival=arrival) for row in rows]


def team_factory(num_envs: int, *, arrival: int = 0) -> EnvFactory:
    return EnvFactory(partial(build_team, arrival=arrival), num_envs=num_envs)


class CountingGame(AECEnv):
    """Three players who move one after the other. The game ends after `moves` moves; a player may be out before.

    - Observation: a Dict with ``observation``, ``(row, player's index, episode, moves done)``, and ``action_mask``, in
      which all actions but ``(row + moves done) % 4`` are legal.
    - Actions: ``Discrete(4)``. An illegal action fails.
    - Reward: after every move each player still listed gets ``1000 row + 100 index + 10 episode + moves done / 10``.
    - Infos: ``{"moves": moves done}``.
    - ``outs``: the move after which a player is out, and the flag. The others are terminated at the end.
    """

    metadata: dict[str, Any] = {"name": "counting_game_v0", "is_parallelizable": False}  # noqa: RUF012
    render_mode = None

    def __init__(self, row: int, outs: Deaths | None = None, *, moves: int = 7) -> None:
        super().__init__()
        self.row = row
        self.outs = {"bert": (2, "terminated")} if outs is None else outs
        self.moves = moves
        self.episode, self.done = -1, 0
        self.possible_agents = list(PLAYERS)
        self._observation_spaces = {
            name: Dict(observation=Box(-np.inf, np.inf, (4,), np.float32), action_mask=Box(0, 1, (4,), np.int8))
            for name in PLAYERS
        }
        self._action_spaces = {name: Discrete(4) for name in PLAYERS}
        self.agents: list[str] = []
        self.moved: list[tuple[str, int]] = []

    def observation_space(self, agent: str) -> Space[Any]:
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> Space[Any]:
        return self._action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        self.episode, self.done, self.moved = self.episode + 1, 0, []
        self.agents = list(PLAYERS)
        self.terminations, self.truncations = (dict.fromkeys(PLAYERS, False) for _ in range(2))
        self.rewards, self._cumulative_rewards = (dict.fromkeys(PLAYERS, 0.0) for _ in range(2))
        self.infos = {name: {"moves": 0} for name in PLAYERS}
        self.agent_selection = PLAYERS[0]
        self._skip_agent_selection = None

    def observe(self, agent: str) -> dict[str, Any]:
        numbers = [self.row, PLAYERS.index(agent), self.episode, self.done]
        return {"observation": np.array(numbers, np.float32), "action_mask": self.mask()}

    def mask(self) -> npt.NDArray[np.int8]:
        return (np.arange(4) != (self.row + self.done) % 4).astype(np.int8)

    def step(self, action: Any) -> None:
        mover = self.agent_selection
        if self.terminations[mover] or self.truncations[mover]:
            self._was_dead_step(action)
            return
        assert self.mask()[action], f"{action} is not legal after {self.done} moves in row {self.row}"
        self.moved.append((mover, int(action)))
        self.done += 1
        self._cumulative_rewards[mover] = 0.0
        for name in self.agents:
            index = PLAYERS.index(name)
            self.rewards[name] = 1000.0 * self.row + 100.0 * index + 10.0 * self.episode + self.done / 10
            self.infos[name] = {"moves": self.done}
            move, flag = self.outs.get(name, (self.moves, "terminated"))
            self.terminations[name] = (self.done == move or self.done == self.moves) and flag == "terminated"
            self.truncations[name] = (self.done == move or self.done == self.moves) and flag == "truncated"
        self._accumulate_rewards()
        living = [name for name in self.agents if not (self.terminations[name] or self.truncations[name])]
        after = [*PLAYERS[PLAYERS.index(mover) + 1 :], *PLAYERS]
        self.agent_selection = next((name for name in after if name in living), mover)
        self._deads_step_first()


def build_game(num_envs: int, first_env: int) -> list[CountingGame]:
    """Build copies whose row is their index in the full batch; game `row` has ``5 + row % 3`` moves."""
    return [CountingGame(row, moves=5 + row % 3) for row in range(first_env, first_env + num_envs)]


def game_factory(num_envs: int) -> EnvFactory:
    return EnvFactory(build_game, num_envs=num_envs)


class NoisyTeamEnv(ParallelEnv):
    """Agents on random walks that their actions drive, on the environment's own generator, with random ends.

    In each step an agent ends, by either flag, with probability 0.06, and the whole episode with 0.03. The last agent
    may come later. Agent i observes ``width + i`` columns.
    """

    metadata: dict[str, Any] = {"name": "noisy_team_v0", "is_parallelizable": True}  # noqa: RUF012
    render_mode = None

    def __init__(
        self,
        agents: int = 3,
        *,
        width: int = 5,
        discrete: bool | None = None,
        masks: bool = False,
        states: bool = False,
    ) -> None:
        """Build the environment.

        Args:
            agents: Number of agents, ``agent_0`` and so on.
            width: Number of columns that the first agent observes.
            discrete: Whether actions are ``Discrete(4)`` instead of ``Box(2)``; None: alternately.
            masks: Whether discrete agents have an ``action_mask`` in their infos; an illegal action fails.
            states: Whether there are states: the positions of all agents.
        """
        self.possible_agents = [f"agent_{index}" for index in range(agents)]
        self.agents: list[str] = []
        self._widths = {name: width + index for index, name in enumerate(self.possible_agents)}
        self._discrete = {
            name: index % 2 == 0 if discrete is None else discrete for index, name in enumerate(self.possible_agents)
        }
        self._observation_spaces = {
            name: Box(-np.inf, np.inf, (columns,), np.float32) for name, columns in self._widths.items()
        }
        self._action_spaces: dict[str, Space[Any]] = {
            name: Discrete(4) if is_discrete else Box(-1.0, 1.0, (2,), np.float32)
            for name, is_discrete in self._discrete.items()
        }
        self._has_masks = masks
        if states:
            self.state_space = Box(-np.inf, np.inf, (sum(self._widths.values()),), np.float32)
        self._generator = np.random.default_rng()
        self._gone: set[str] = set()
        self._positions: dict[str, npt.NDArray[np.float32]] = {}
        self._masks: dict[str, npt.NDArray[np.int8]] = {}

    def observation_space(self, agent: str) -> Space[Any]:
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> Space[Any]:
        return self._action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if seed is not None:
            self._generator = np.random.default_rng(seed)
        late = len(self.possible_agents) > 1 and self._generator.random() < 0.5
        self.agents = self.possible_agents[: len(self.possible_agents) - late]
        self._gone, self._masks = set(), {}
        self._positions = {name: self._noise(name) for name in self.possible_agents}
        return self._observations(self.agents), {name: self._info(name) for name in self.agents}

    def step(self, actions: Mapping[str, Any]) -> Any:
        assert actions.keys() == set(self.agents), f"actions of {list(actions)}; expected those of {self.agents}"
        for name, action in actions.items():
            if name in self._masks:
                assert self._masks[name][action], f"{action} of {name} is not legal: {self._masks[name]}"
            drive = np.float32(np.sum(action)) + self._noise(name)
            self._positions[name] = np.float32(0.9) * self._positions[name] + np.float32(0.1) * drive
        shown, last = list(self.agents), self.possible_agents[-1]
        if last not in shown and last not in self._gone and self._generator.random() < 0.2:
            shown.append(last)
        draws = {name: self._generator.random() for name in shown}
        terminated = {name: draw < 0.03 for name, draw in draws.items()}
        over = self._generator.random() < 0.03
        truncated = {name: not terminated[name] and (over or draw < 0.06) for name, draw in draws.items()}
        infos = {name: self._info(name) | ({"draw": draw} if draw < 0.3 else {}) for name, draw in draws.items()}
        self.agents = [name for name in shown if not (terminated[name] or truncated[name])]
        self._gone |= set(shown) - set(self.agents)
        rewards = {name: float(self._positions[name][0]) for name in shown}
        return self._observations(shown), rewards, terminated, truncated, infos

    def state(self) -> npt.NDArray[np.float32]:
        return np.concatenate([self._positions[name] for name in self.possible_agents])

    def _noise(self, name: str) -> npt.NDArray[np.float32]:
        return self._generator.normal(size=self._widths[name]).astype(np.float32)

    def _observations(self, names: list[str]) -> dict[str, Any]:
        return {name: self._positions[name].copy() for name in names}

    def _info(self, name: str) -> dict[str, Any]:
        if not self._has_masks or not self._discrete[name]:
            return {}
        mask = (self._generator.random(4) < 0.6).astype(np.int8)
        mask[self._generator.integers(4)] = 1
        self._masks[name] = mask
        return {"action_mask": mask}


def build_noisy_team(num_envs: int, first_env: int, **options: Any) -> list[NoisyTeamEnv]:
    return [NoisyTeamEnv(**options) for _ in range(num_envs)]


def noisy_team_factory(num_envs: int, **options: Any) -> EnvFactory:
    """Return a factory of `NoisyTeamEnv` with `options`."""
    return EnvFactory(partial(build_noisy_team, **options), num_envs=num_envs)
