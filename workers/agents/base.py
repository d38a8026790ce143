"""Base classes of Lockstep's agents: spaces, training mode and tracked scalars, without any array framework."""

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
from workers.types import is_integer

__all__ = ["Agent", "Learner", "discrete_components", "space_width"]

Space = gymnasium.Space[Any]


def space_width(space: Space, name: str) -> int:
    """Return the number of columns of one flattened sample of `space`.

    Args:
        space: Space of a single environment.
        name: Name of the space, used in the error.

    Returns:
        The width, such as the number of elements of a Box or the number of categories of a Discrete (one-hot).

    Raises:
        AgentError: `space` is not a Gymnasium space, or does not have a fixed, positive width.
    """
    if not isinstance(space, gymnasium.Space):
        raise AgentError(f"{name} is {space!r}; expected a gymnasium.Space of a single environment")
    try:
        width = flatdim(space)
    except (ValueError, NotImplementedError) as error:
        raise AgentError(f"{name} {space} cannot be flattened to a fixed width: {error}") from error
    if width < 1:
        raise AgentError(f"{name} {space} has {width} elements; expected at least 1")
    return int(width)


def discrete_components(space: Space) -> tuple[range, ...] | None:
    """Return the values of each component of a discrete space, in the order of the columns of flat actions.

    Args:
        space: Space of a single environment.

    Returns:
        One range for a Discrete; one for each element of a MultiDiscrete or MultiBinary, in C order; None for any other
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
    """Base of Lockstep's agents and multi-agents, without `act`, `record_transition` and `post_interaction`.

    An agent is called in this loop::

        agent.init(trainer_cfg=cfg)
        agent.enable_training_mode(True)
        for timestep in range(timesteps):
            agent.pre_interaction(timestep=timestep, timesteps=timesteps)
            actions, outputs = agent.act(observations, states, timestep=timestep, timesteps=timesteps)
            ...  # env.step(actions)
            agent.record_transition(observations=observations, ..., timestep=timestep, timesteps=timesteps)
            agent.post_interaction(timestep=timestep, timesteps=timesteps)

    Attributes:
        framework: Name of the framework whose arrays the agent takes and returns.
        num_envs: Number of environments: the number of rows of every array.
        training: Whether the agent learns from transitions.
        tracked: Scalars passed to `track_data` since the last write.
        writer: Writer used by `write_tracking_data`; the trainer sets it.
        architecture: What else must be equal in an agent that takes over the state; empty if the state tells all.
    """

    framework: str
    architecture = ""

    def __init__(self, *, num_envs: int) -> None:
        if not is_integer(num_envs) or num_envs < 1:
            raise AgentError(f"num_envs is {num_envs!r}; expected an integer of at least 1")
        self.num_envs = num_envs
        self._framework = load_framework(self.framework)
        self.training = False
        self.tracked = Scalars()
        self.writer: Any = None

    def init(self, *, trainer_cfg: Any = None) -> None:  # noqa: B027 - an optional hook
        """Prepare for a trainer. The next trainer may call it again; nothing learned is lost.

        Args:
            trainer_cfg: The trainer's configuration.
        """

    def enable_training_mode(self, enabled: bool = True, *, apply_to_models: bool = False) -> None:
        """Switch between training and evaluation.

        Args:
            enabled: True to learn from recorded transitions, False to evaluate.
            apply_to_models: Ignored, accepted for compatibility: our networks behave the same in both modes.
        """
        self.training = enabled

    def pre_interaction(self, *, timestep: int, timesteps: int) -> None:  # noqa: B027 - an optional hook
        """Hook called before the interaction with the environments.

        Args:
            timestep: Current timestep.
            timesteps: Total number of timesteps.
        """

    def track_data(self, tag: str, value: float) -> None:
        """Record a scalar. Memory is bounded for any number of values.

        Args:
            tag: Name of the scalar, such as ``"Loss / Policy loss"``. Values are reduced to their minimum if it ends
                in ``(min)``, to their maximum if it ends in ``(max)``, else to their mean.
            value: The value.
        """
        self.tracked.add(tag, value)

    def write_tracking_data(self, *, timestep: int, timesteps: int) -> None:
        """Write all tracked scalars to `writer` and clear them.

        Args:
            timestep: Current timestep.
            timesteps: Total number of timesteps.
        """
        for tag, value in self.tracked.drain().items():
            self.writer.add_scalar(tag=tag, value=value, timestep=timestep)

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything learned (without the rollout in progress)."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state returned by `state_dict`.

        Raises:
            AgentError: `state` belongs to an agent of another shape.
        """

    @abstractmethod
    def snapshot(self) -> dict[str, Any]:
        """Return copies of the whole state between two iterations; the agent goes on from it bit for bit.

        Between two iterations, no `act` waits for its transition. What is not the agent's own is not part of it:
        torch's global generator, and the writer.

        Returns:
            Dictionaries, lists and tuples of NumPy arrays, numbers, strings and booleans, which
            `workers.storage.state_file.encode_state` can write.

        Raises:
            AgentError: The agent has a part without a snapshot.
        """

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a snapshot of an agent that was built alike, whatever this one has done before.

        Args:
            state: Result of `snapshot`, with arrays of NumPy or of the framework.

        Raises:
            AgentError: `state` does not fit this agent. The agent remains unchanged.
        """

    def save(self, path: Any) -> None:
        """Write `state_dict` to a safetensors file; see `workers.storage.state_file`.

        Args:
            path: Path, or a file open for writing in binary mode.
        """
        data = encode_state(self.state_dict(), self._framework)
        if hasattr(path, "write"):
            path.write(data)
        else:
            Path(path).write_bytes(data)

    def load(self, path: Any) -> None:
        """Restore the state from a file written by `save`, by an agent of any framework.

        Args:
            path: Path, or a file open for reading in binary mode.

        Raises:
            AgentError: The file belongs to an agent of another shape or is damaged. This agent remains unchanged.
        """
        data = path.read() if hasattr(path, "read") else Path(path).read_bytes()
        self.load_state_dict(decode_state(data, self._framework))


class Agent(Learner):
    """A single agent on one scope.

    Attributes:
        observation_space: Observation space of one environment.
        action_space: Action space of one environment.
        state_space: Space of the privileged states of one environment, or None.
    """

    def __init__(
        self, *, observation_space: Space, action_space: Space, state_space: Space | None = None, num_envs: int
    ) -> None:
        super().__init__(num_envs=num_envs)
        self.observation_space = observation_space
        self.action_space = action_space
        self.state_space = state_space

    def _check_shape(self, name: str, array: Any, width: int, rows: int | None) -> None:
        """Check that `array` is one of the agent's framework of shape ``(rows, width)``; None: any number of rows."""
        is_array = self._framework.is_array(array)
        shape: tuple[int, ...] = tuple(array.shape) if is_array else ()
        if len(shape) != 2 or shape[1] != width or rows not in (None, shape[0]):
            given = f"has shape {shape}" if is_array else f"is of type {type(array).__qualname__}"
            expected = f"({'rows' if rows is None else rows}, {width})"
            raise AgentError(f"{name} {given}; expected a {self.framework} array of shape {expected}")
