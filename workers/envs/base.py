"""The contract of environments: the two base classes, and the recipe by which rows of them are built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

from workers.types import Array

__all__ = ["EnvFactory", "MultiAgentEnvWrapper", "Wrapper"]


@dataclass(frozen=True)
class EnvFactory:
    """Environments that are built where they are stepped, for any range of rows.

    Attributes:
        build: Called with ``(num_envs, first_env)``; makes the environments of the rows ``first_env`` to
            ``first_env + num_envs``: a Gymnasium vector environment, something already wrapped, or a list of
            `num_envs` single environments, Gymnasium's or PettingZoo's. It is called once for all rows in local and in
            shared mode, and once per scope in sharded mode, so it must not depend on what was built before. What it
            builds resets ended environments in ``step``, for every batch size.
        num_envs: Number of environments in all.
        framework: Name of the framework whose arrays they take and give; the trainer's if None.
    """

    build: Callable[[int, int], Any]
    _: KW_ONLY
    num_envs: int
    framework: str | None = None


class _EnvWrapper(ABC):
    """What both base classes share.

    Attributes:
        framework: Name of the framework whose arrays the environment takes and gives.
        recipe: How to build the same environments for any range of rows; None if they cannot be rebuilt.
        gives_arrays_away: Whether the arrays that it returns are nobody else's: it neither writes to nor reads them
            again. Where nobody else sees them either, the agent gets them without a copy.
    """

    framework: str
    recipe: EnvFactory | None = None
    gives_arrays_away = False

    @property
    @abstractmethod
    def num_envs(self) -> int:
        """Number of environments."""

    @abstractmethod
    def render(self) -> Any:
        """Render the environments."""

    @abstractmethod
    def close(self) -> None:
        """Release what the environments hold."""


class Wrapper(_EnvWrapper):
    """Vectorised single-agent environments, stepped as one batch.

    Who implements it promises: an environment that ends is reset in the same ``step``, whatever the batch size. The
    observations returned are then those after the reset; the true final ones are in ``infos["final_obs"]``,
    ``(num_envs, size)``, valid in the rows where ``infos["_final_obs"]``, ``(num_envs,)`` bool, is True, and likewise
    the final states, if there are states, in ``infos["final_state"]``. Both may be there in every step.

    Its arrays are the framework's, on any device. They stay there, masks too: nothing is brought to the host unless Ray
    sends it, and what a step returned is what `StepTrainer.train` returns.
    """

    @property
    @abstractmethod
    def observation_space(self) -> Any:
        """Observation space of one environment."""

    @property
    @abstractmethod
    def action_space(self) -> Any:
        """Action space of one environment."""

    @property
    def state_space(self) -> Any | None:
        """State space of one environment, None if there are no states."""
        return None

    @abstractmethod
    def reset(self, *, seed: int | None = None) -> tuple[Array, dict[str, Any]]:
        """Start all environments.

        Args:
            seed: Environment ``i`` of this batch is seeded with ``seed + i``; None leaves its generator as it is.

        Returns:
            Observations ``(num_envs, size)`` and infos.
        """

    @abstractmethod
    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Step all environments.

        Args:
            actions: ``(num_envs, size)``.

        Returns:
            Observations ``(num_envs, size)``, rewards ``(num_envs, 1)`` float32, terminated and truncated
            ``(num_envs, 1)`` bool, and infos.
        """

    def state(self) -> Array | None:
        """Privileged global states ``(num_envs, size)``, or None."""
        return None


class MultiAgentEnvWrapper(_EnvWrapper):
    """Vectorised multi-agent environments: as `Wrapper`, with a dictionary by agent name in the place of each array.

    Every array has a row for each environment and every possible agent. Who implements it promises: in the step in
    which an agent ends, its row is its true final observation, with its flag True; later rows are zero, with both flags
    False. ``infos["alive"][agent]``, ``(num_envs, 1)`` bool, is there after every step and reset and says who acts in
    the next step. An environment is reset in the step in which no agent is left; ``infos["_final_obs"]``,
    ``(num_envs,)`` bool, says where, and ``infos["final_obs"][agent]`` and ``infos["final_state"][agent]`` what came
    before.
    """

    @property
    @abstractmethod
    def possible_agents(self) -> list[str]:
        """Names of all agents that can ever appear, in a fixed order."""

    @property
    @abstractmethod
    def agents(self) -> list[str]:
        """Names of the agents that are alive in any environment."""

    @property
    @abstractmethod
    def observation_spaces(self) -> dict[str, Any]:
        """Observation space of each agent in one environment."""

    @property
    @abstractmethod
    def action_spaces(self) -> dict[str, Any]:
        """Action space of each agent in one environment."""

    @property
    def state_spaces(self) -> dict[str, Any | None]:
        """State space of each agent in one environment, None where there are no states."""
        return dict.fromkeys(self.possible_agents)

    @abstractmethod
    def reset(self, *, seed: int | None = None) -> tuple[dict[str, Array], dict[str, Any]]:
        """Start all environments: observations by agent, and infos. For `seed` see `Wrapper.reset`."""

    @abstractmethod
    def step(
        self, actions: dict[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array], dict[str, Array], dict[str, Any]]:
        """Step all environments: observations, rewards, terminated and truncated by agent, and infos."""

    def state(self) -> dict[str, Array | None]:
        """Privileged global states by agent, None where there are none."""
        return dict.fromkeys(self.possible_agents)
