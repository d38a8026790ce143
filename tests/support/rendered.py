"""Environments whose pictures say what they show, and whose infos say when they were rendered."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from pettingzoo import ParallelEnv

HEIGHT, WIDTH = 48, 64
PLAYERS = ("anna", "bert")


class Pictured(gymnasium.Env[npt.NDArray[np.float32], Any]):
    """A walk at random; the row ends after ``length + row`` steps, or after ``length`` ones if it is not a factory's.

    Its picture has three bands from top to bottom, as bright as 20 times row, episode and step; all pictures are drawn
    into one array. The infos have ``renders``, how often it was rendered before this step, and ``rendered_at``, the
    number of steps since it was built when that happened last.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012 - Gymnasium's convention
    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Discrete(3)

    def __init__(self, row: int = 0, length: int = 4, render_mode: str | None = None) -> None:
        self.row, self.length, self.render_mode = row, length + row, render_mode
        self.episode, self.time = -1, 0
        self.total = self.renders = self.rendered_at = 0
        self.image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return self._observation(), {}

    def step(self, action: int) -> Any:
        self.time, self.total = self.time + 1, self.total + 1
        infos = {"renders": self.renders, "rendered_at": self.rendered_at}
        return self._observation(), self.np_random.normal() + float(action), self.time == self.length, False, infos

    def render(self) -> Any:
        self.renders, self.rendered_at = self.renders + 1, self.total
        for band, number in enumerate((self.row, self.episode, self.time)):
            self.image[band * 16 : (band + 1) * 16] = 20 * number
        return self.image

    def _observation(self) -> npt.NDArray[np.float32]:
        return self.np_random.normal(size=2).astype(np.float32)


class PicturedTeam(ParallelEnv):
    """Two players who each see a `Pictured`, which the first one moves."""

    metadata: dict[str, Any] = {"name": "pictured_v0", "render_fps": 5}  # noqa: RUF012

    def __init__(self, row: int = 0, length: int = 4, render_mode: str | None = None) -> None:
        self.possible_agents = list(PLAYERS)
        self.agents: list[str] = []
        self.world, self.render_mode = Pictured(row, length), render_mode

    def observation_space(self, agent: str) -> Any:
        return self.world.observation_space

    def action_space(self, agent: str) -> Any:
        return self.world.action_space

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.agents = list(PLAYERS)
        observation, _ = self.world.reset(seed=seed)
        return dict.fromkeys(PLAYERS, observation), {name: {} for name in PLAYERS}

    def step(self, actions: dict[str, int]) -> Any:
        given = [dict.fromkeys(PLAYERS, each) for each in self.world.step(actions["anna"])]
        if given[2]["anna"]:
            self.agents = []
        return tuple(given)

    def render(self) -> Any:
        return self.world.render()


class Pictureless(Pictured):
    """An environment that takes any render mode, and returns no picture."""

    def render(self) -> Any:
        return None


class Broken(Pictured):
    """An environment whose row 2 cannot be rendered after seven steps."""

    def render(self) -> Any:
        if self.row == 2 and self.total == 7:
            raise OSError("no graphics")
        return super().render()


class Plain(Pictured):
    """An environment that takes no render mode."""

    def __init__(self) -> None:
        super().__init__()


class AsOne(VectorEnv[Any, Any, Any]):
    """Environments that are stepped as one."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012
    single_observation_space, single_action_space = Pictured.observation_space, Pictured.action_space

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs


KINDS = {kind.__name__: kind for kind in (Pictured, PicturedTeam, Pictureless)}


def build(num_envs: int, first_env: int, kind: str = "Pictured", render_mode: str | None = None) -> list[Any]:
    """Build copies whose row is their index in the full batch."""
    return [KINDS[kind](first_env + i, render_mode=render_mode) for i in range(num_envs)]


def build_blind(num_envs: int, first_env: int) -> list[Any]:
    """Build copies without pictures."""
    return build(num_envs, first_env)


def build_as_one(num_envs: int, first_env: int) -> Any:
    """Build copies that are stepped as one."""
    return AsOne(num_envs)


gymnasium.register("Pictured-v0", f"{__name__}:Pictured")
gymnasium.register("Plain-v0", f"{__name__}:Plain")
