"""A custom environment, registered with Gymnasium: a point in a square must reach a goal."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete

MOVES = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=np.float32)


class Reach(gymnasium.Env[dict[str, Any], int]):
    """Environment in which a point moves to a goal. Its observation is a dictionary; agents get it flattened.

    Args:
        size: Half the side length of the square.
    """

    def __init__(self, size: int = 5) -> None:
        place = Box(-size, size, (2,), np.float32)
        self.observation_space = Dict({"goal": place, "position": place})
        self.action_space = Discrete(len(MOVES))
        self._size = size

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Draw a position and a goal."""
        super().reset(seed=seed)
        self._goal, self._position = self.np_random.integers(-self._size, self._size + 1, (2, 2)).astype(np.float32)
        return self._observation(), {}

    def step(self, action: int) -> Any:
        """Move the point, at a cost of 1."""
        self._position = np.clip(self._position + MOVES[action], -self._size, self._size)
        distance = float(np.abs(self._goal - self._position).sum())
        return self._observation(), -1.0, distance == 0.0, False, {"episode_progress": {"distance": distance}}

    def _observation(self) -> dict[str, Any]:
        return {"goal": self._goal.copy(), "position": self._position.copy()}


gymnasium.register("Reach-v0", entry_point=Reach, max_episode_steps=50)
