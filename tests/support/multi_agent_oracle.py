"""A multi-agent environment stepped alone in plain Python, and the flat rows that our wrapper must make of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple
from gymnasium.spaces.utils import flatdim, flatten
from pettingzoo import AECEnv


def draw(space: Space[Any], generator: np.random.Generator) -> Any:
    """Draw a sample whose numbers are exact as float32."""
    if isinstance(space, Dict):
        return {key: draw(member, generator) for key, member in space.spaces.items()}
    if isinstance(space, Tuple):
        return tuple(draw(member, generator) for member in space.spaces)
    if isinstance(space, Discrete):
        return space.start + generator.integers(space.n)
    if isinstance(space, MultiDiscrete):
        return space.start + generator.integers(space.nvec)
    if isinstance(space, MultiBinary):
        return generator.integers(0, 2, space.shape).astype(np.int8)
    assert isinstance(space, Box)
    return np.asarray(generator.integers(0, 100, space.shape) / (4 if space.dtype.kind == "f" else 1), space.dtype)


def columns(space: Space[Any], action: Any) -> list[float]:
    """Return an action as flat numbers, one for each element."""
    if isinstance(space, (Dict, Tuple)):
        members = space.spaces if isinstance(space, Dict) else dict(enumerate(space.spaces))
        return [number for key, member in members.items() for number in columns(member, action[key])]
    # an action of a zero-dimensional Box is a scalar, as in Gymnasium's vector environments
    action = np.asarray(action) if isinstance(space, Box) else action
    assert space.contains(action), f"{action!r} is not of {space}"
    return [float(number) for number in np.ravel(action)]


class Oracle:
    """One copy, stepped by PettingZoo's own loops. Each output is a dictionary by agent."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.is_game = isinstance(env, AECEnv)

    def alive(self) -> list[str]:
        return [self.env.agent_selection] if self.is_game else list(self.env.agents)

    def reset(self, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        given = self.env.reset(seed=seed)
        if self.is_game:
            return {name: self.env.observe(name) for name in self.env.agents}, dict(self.env.infos)
        observations, infos = given
        return observations, infos

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        env = self.env
        if not self.is_game:
            outputs: tuple[dict[str, Any], ...] = env.step({name: actions[name] for name in env.agents})
            return outputs
        env.step(actions[env.agent_selection])
        # all listed agents were alive before the move: those that ended were removed after the move that ended them
        observations = {name: env.observe(name) for name in env.agents}
        outputs = (observations, dict(env.rewards), dict(env.terminations), dict(env.truncations), dict(env.infos))
        while env.agents and (env.terminations[env.agent_selection] or env.truncations[env.agent_selection]):
            env.step(None)
        return outputs


def flat(space: Space[Any], rows: list[dict[str, Any]], name: str) -> npt.NDArray[Any]:
    """Return an agent's rows, with zeros where it has none."""
    arrays = [flatten(space, row[name]) if name in row else np.zeros(flatdim(space)) for row in rows]
    dtype = np.asarray(flatten(space, draw(space, np.random.default_rng(0)))).dtype
    return np.array(arrays).astype(np.float32 if dtype.kind == "f" else dtype)


def assert_rows(given: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    """Assert that arrays are equal, and finite."""
    assert (given.dtype, given.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(given, expected)
    assert np.isfinite(given).all()
