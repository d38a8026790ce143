"""One copy of an environment, single-agent or not, with the same methods for both."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Discrete
from gymnasium.vector.utils import batch_space

from workers.envs.base import MultiAgentEnvWrapper, Wrapper
from workers.frameworks import Framework
from workers.spaces import flat_actions

__all__ = ["SingleCopy", "WholeCopy", "choose", "progress", "set_progress", "step"]


class SingleCopy:
    """A single-agent environment; `TeamCopy` has the same members.

    Attributes:
        env: The environment.
        is_over: Whether the last step ended the episode.
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        self.is_over = False

    def reset(self, seed: int | None = None) -> tuple[Any, Any]:
        """Start an episode; return observation and infos."""
        given = self.env.reset() if seed is None else self.env.reset(seed=seed)
        self.is_over = False
        return given[0], given[1]

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Step the environment."""
        observation, reward, terminated, truncated, infos = self.env.step(action)
        self.is_over = bool(terminated) or bool(truncated)
        return observation, reward, terminated, truncated, infos


class WholeCopy:
    """Wrapped environments that are kept as a whole; the same members, for batches.

    Attributes:
        env: The wrapped environments.
        framework: Their framework.
        is_over: Always False: they reset themselves.
    """

    is_over = False

    def __init__(self, env: Any, framework: Framework) -> None:
        self.env = env
        self.framework = framework

    def reset(self, seed: int | None = None) -> tuple[Any, Any]:
        """Start all environments; return observations and infos."""
        takes_seed = isinstance(self.env, (Wrapper, MultiAgentEnvWrapper))
        given = self.env.reset(seed=seed) if takes_seed and seed is not None else self.env.reset()
        return given[0], given[1]

    def choose(self, generator: np.random.Generator) -> Any:
        """Return random actions in the wrapper's format."""
        if not hasattr(self.env, "possible_agents"):
            return self._actions(self.env.action_space, generator)
        return {name: self._actions(space, generator) for name, space in self.env.action_spaces.items()}

    def _actions(self, space: Space[Any], generator: np.random.Generator) -> Any:
        batch = batch_space(space, self.env.num_envs)
        batch.seed(int(generator.integers(2**31)))
        return self.framework.from_numpy(flat_actions(space, batch.sample()))


def progress(copy: Any) -> dict[str, Any]:
    """Return which agents of a team are in the episode, and which have ended; nothing for a single agent."""
    if isinstance(copy, (SingleCopy, WholeCopy)):
        return {}
    return {"members": sorted(copy.members), "ended": sorted(copy.ended), "acting": copy.acting()}


def set_progress(copy: Any, tree: dict[str, Any]) -> None:
    """Set what `progress` returned."""
    if not isinstance(copy, (SingleCopy, WholeCopy)):
        copy.members, copy.ended = set(tree["members"]), set(tree["ended"])
        copy.is_over, copy.was_reset = False, False


def choose(copy: Any, observation: Any, generator: np.random.Generator) -> Any:
    """Return a random action in the environment's format, of each possible agent of a team; legal where it acts."""
    if isinstance(copy, WholeCopy):
        return copy.choose(generator)
    if isinstance(copy, SingleCopy):
        return _sample(copy.env.action_space, observation, generator)
    acting = copy.acting()
    return {
        name: _sample(copy.env.action_space(name), observation.get(name) if name in acting else None, generator)
        for name in sorted(copy.env.possible_agents)
    }


def step(copy: Any, actions: Any) -> tuple[Any, Any, Any, Any]:
    """Step with the actions of the agents that act; return the outputs that must repeat.

    The rewards are a number, or by name of the possible agents of a team, ``(1,)``. The infos are left out: they may
    hold the time.
    """
    if isinstance(copy, WholeCopy):
        return tuple(copy.env.step(actions)[:4])
    if isinstance(copy, SingleCopy):
        observation, reward, terminated, truncated, _ = copy.step(actions)
        return observation, np.float64(np.reshape(reward, ())), terminated, truncated
    acting = copy.acting()
    given = copy.step({name: actions[name] for name in acting})
    rewards = {name: np.array([given.rewards.get(name, 0)], np.float64) for name in actions}
    return given[0], rewards, given[2], given[3]


def _sample(space: Space[Any], observation: Any, generator: np.random.Generator) -> Any:
    space = deepcopy(space)  # the environment's own generators stay as they are
    space.seed(int(generator.integers(2**31)))
    mask = observation.get("action_mask") if isinstance(observation, dict) else None
    if isinstance(space, Discrete) and mask is not None and np.any(mask):
        return space.sample(np.asarray(mask, np.int8))
    return space.sample()
