"""What every agent of ours shares: spaces, training mode and tracked scalars. No array framework is imported here."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.spaces import Discrete, MultiBinary, MultiDiscrete
from gymnasium.spaces.utils import flatdim

from workers.errors import AgentError
from workers.frameworks import load_framework
from workers.scalars import Scalars
from workers.storage.state_file import decode_state, encode_state

__all__ = ["Agent", "Learner", "discrete_components", "space_width"]

Space = gymnasium.Space[Any]


def space_width(space: Space, name: str) -> int:
    """Number of columns that one flattened sample of `space` takes.

    Args:
        space: Space of a single environment.
        name: What the space is for, used in the error.

    Returns:
        The width: the number of elements of a Box, the number of categories of a Discrete (one-hot).

    Raises:
        AgentError: `space` is no Gymnasium space, or none of a fixed, positive width.
    """
    if not isinstance(space, gymnasium.Space):
        raise AgentError(f"{name} must be a gymnasium.Space of a single environment, got {space!r}")
    try:
        width = flatdim(space)
    except (ValueError, NotImplementedError) as error:
        raise AgentError(f"{name} {space} cannot be flattened to a fixed width: {error}") from error
    if width < 1:
        raise AgentError(f"{name} {space} must have at least one element, got {width}")
    return int(width)


def discrete_components(space: Space) -> tuple[range, ...] | None:
    """The values of each component of a discrete space, in the order of the columns of flat actions.

    Args:
        space: Space of a single environment.

    Returns:
        One range for Discrete, one for each element of MultiDiscrete and MultiBinary in C order; None for any other
        space.
    """
    if isinstance(space, MultiBinary):
        return (range(2),) * math.prod(space.shape)
    if isinstance(space, Discrete):
        pairs = [(space.start, space.n)]
    elif isinstance(space, MultiDiscrete):
        pairs = list(zip(space.start.flat, space.nvec.flat, strict=True))
    else:
        return None
    return tuple(range(int(start), int(start) + int(size)) for start, size in pairs)


class Learner(ABC):
    """What every agent and multi-agent of ours has besides `act`, `record_transition` and `post_interaction`.

    The loop that it lives in::

        agent.init(trainer_cfg=cfg)
        agent.enable_training_mode(True)
        for timestep in range(timesteps):
            agent.pre_interaction(timestep=timestep, timesteps=timesteps)
            actions, outputs = agent.act(observations, states, timestep=timestep, timesteps=timesteps)
            ...  # env.step(actions)
            agent.record_transition(observations=observations, ..., timestep=timestep, timesteps=timesteps)
            agent.post_interaction(timestep=timestep, timesteps=timesteps)

    Attributes:
        framework: Name of the framework whose arrays it takes and gives.
        num_envs: Number of environments, the rows of every array exchanged.
        training: Whether transitions are learnt from.
        tracked: What has been given to `track_data` since it was written last.
        writer: What `write_tracking_data` writes to; the trainer's, while it has the agent.
    """

    framework: str

    def __init__(self, *, num_envs: int) -> None:
        if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
            raise AgentError(f"num_envs must be a positive integer, got {num_envs!r}")
        self.num_envs = num_envs
        self._framework = load_framework(self.framework)
        self.training = False
        self.tracked = Scalars()
        self.writer: Any = None

    def init(self, *, trainer_cfg: Any = None) -> None:  # noqa: B027 - nothing to do is a valid default
        """Make ready for a trainer. May be called again by the next trainer; nothing learnt is lost.

        Args:
            trainer_cfg: The trainer's configuration.
        """

    def enable_training_mode(self, enabled: bool = True, *, apply_to_models: bool = False) -> None:
        """Switch between training and evaluation.

        Args:
            enabled: True to learn from what is recorded, False to evaluate.
            apply_to_models: Accepted for compatibility; our networks act alike in both modes.
        """
        self.training = enabled

    def pre_interaction(self, *, timestep: int, timesteps: int) -> None:  # noqa: B027 - a hook
        """Called before the interaction with the environments.

        Args:
            timestep: Current timestep.
            timesteps: Total number of timesteps.
        """

    def track_data(self, tag: str, value: float) -> None:
        """Take note of a scalar: bounded memory, however many values come.

        Args:
            tag: Name of the scalar, such as ``"Loss / Policy loss"``; of one that ends in (min) or (max) the extreme is
                kept, of any other the mean.
            value: The value.
        """
        self.tracked.add(tag, value)

    def write_tracking_data(self, *, timestep: int, timesteps: int) -> None:
        """Write every scalar to the `writer`, and forget them.

        Args:
            timestep: Current timestep.
            timesteps: Total number of timesteps.
        """
        for tag, value in self.tracked.drain().items():
            self.writer.add_scalar(tag=tag, value=value, timestep=timestep)

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Copies of everything learnt (not of the rollout in progress)."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            AgentError: `state` is of an agent of another shape.
        """

    def save(self, path: Any) -> None:
        """Write `state_dict` to a file of the format safetensors; see `workers.storage.state_file`.

        Args:
            path: Path, or a file open for writing in binary mode.
        """
        data = encode_state(self.state_dict(), self._framework)
        if hasattr(path, "write"):
            path.write(data)
        else:
            Path(path).write_bytes(data)

    def load(self, path: Any) -> None:
        """Restore from a file that `save` wrote, of an agent of any framework.

        Args:
            path: Path, or a file open for reading in binary mode.

        Raises:
            AgentError: The file is of an agent of another shape, or is damaged; this agent is left as it was.
        """
        data = path.read() if hasattr(path, "read") else Path(path).read_bytes()
        self.load_state_dict(decode_state(data, self._framework))


class Agent(Learner):
    """A single agent on one scope.

    Attributes:
        observation_space: Space of one environment's observations.
        action_space: Space of one environment's actions.
        state_space: Space of one environment's privileged states, or None.
    """

    def __init__(
        self, *, observation_space: Space, action_space: Space, state_space: Space | None = None, num_envs: int
    ) -> None:
        super().__init__(num_envs=num_envs)
        self.observation_space = observation_space
        self.action_space = action_space
        self.state_space = state_space
