"""Environments whose data says which row, episode and step they come from."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Discrete

from workers.envs import EnvFactory

WIDTH = 4


class CountingEnv(gymnasium.Env[npt.NDArray[np.float32], npt.NDArray[np.float32]]):
    """Observation ``(row, episode, step, last action)``; the row ends after ``3 + row % 4`` steps.

    Even rows terminate, odd rows are truncated. The reward is ``1000 row + 10 episode + step / 10``. The infos have the
    row's number, nested dictionaries, strings, and a key that only ended rows have.
    """

    def __init__(self, row: int) -> None:
        self.row = row
        self.length = 3 + row % 4
        self.episode = -1
        self.step_count = 0
        self.observation_space = Box(-np.inf, np.inf, (WIDTH,), np.float32)
        self.action_space = Box(-np.inf, np.inf, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.episode += 1
        self.step_count = 0
        return self.observation(-1.0), {"row": self.row, "reset": True}

    def step(self, action: npt.NDArray[np.float32]) -> Any:
        self.step_count += 1
        ended = self.step_count == self.length
        infos: dict[str, Any] = {
            "row": self.row,
            "name": f"row {self.row}",
            "nested": {"step": float(self.step_count), "deeper": {"episode": self.episode}},
        }
        if ended:
            infos["episode"] = {"l": self.step_count, "r": float(self.row)}
        reward = 1000.0 * self.row + 10.0 * self.episode + self.step_count / 10
        return (
            self.observation(float(action[0])),
            reward,
            ended and not self.row % 2,
            ended and bool(self.row % 2),
            infos,
        )

    def observation(self, action: float) -> npt.NDArray[np.float32]:
        return np.array([self.row, self.episode, self.step_count, action], dtype=np.float32)


class SilentEnv(CountingEnv):
    """`CountingEnv` without infos."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed, options=options)[0], {}

    def step(self, action: npt.NDArray[np.float32]) -> Any:
        return *super().step(action)[:4], {}


class RenderedEnv(CountingEnv):
    """`CountingEnv` with a picture."""

    render_mode = "rgb_array"
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - Gymnasium's convention

    def render(self) -> Any:
        return np.zeros((1, 1, 3), np.uint8)


def build_counting(num_envs: int, first_env: int) -> list[CountingEnv]:
    """Build copies whose row is their index in the full batch."""
    return [CountingEnv(first_env + i) for i in range(num_envs)]


def counting_factory(num_envs: int) -> EnvFactory:
    return EnvFactory(build_counting, num_envs=num_envs)


class NoisyEnv(gymnasium.Env[npt.NDArray[np.float32], Any]):
    """A random walk of `width` columns on its own generator, with random ends; discrete or continuous actions."""

    def __init__(self, width: int = 17, discrete: bool = False) -> None:
        self.observation_space = Box(-np.inf, np.inf, (width,), np.float32)
        self.action_space = Discrete(3) if discrete else Box(-1.0, 1.0, (2,), np.float32)
        self._position = np.zeros(width, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self._position = self.np_random.normal(size=self._position.shape).astype(np.float32)
        return self._position.copy(), {}

    def step(self, action: Any) -> Any:
        noise = self.np_random.normal(size=self._position.shape).astype(np.float32)
        self._position = np.float32(0.9) * self._position + np.float32(0.1) * (noise + np.float32(np.sum(action)))
        draw = self.np_random.random()
        infos = {"draw": draw, "nested": {"mean": float(self._position.mean())}} if draw < 0.3 else {}
        return self._position.copy(), float(self._position[0]), draw < 0.03, 0.03 <= draw < 0.06, infos


def noisy_factory(num_envs: int, *, width: int = 17, discrete: bool = False) -> EnvFactory:
    return EnvFactory(lambda n, first: [NoisyEnv(width, discrete) for _ in range(n)], num_envs=num_envs)
