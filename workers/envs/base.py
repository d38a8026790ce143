"""The environment contract: two base classes, and the factory that builds environments for a range of rows."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

from workers.errors import EnvError
from workers.types import Array

__all__ = ["EnvFactory", "MultiAgentEnvWrapper", "Wrapper", "recipe_of"]


@dataclass(frozen=True)
class EnvFactory:
    """A factory that builds environments for any range of rows, in the process that steps them.

    Attributes:
        build: Called with ``(num_envs, first_env)``. Returns the environments of rows ``first_env`` to
            ``first_env + num_envs`` (exclusive): a Gymnasium vector environment, a wrapped environment, or a list of
            `num_envs` single Gymnasium or PettingZoo environments. It is called once for all rows in local and shared
            mode, and once per scope in sharded mode, so its result must not depend on earlier calls. The environments
            it builds must reset ended environments in ``step``, for every batch size.
        num_envs: Total number of environments.
        framework: Name of the framework whose arrays the environments take and return; the trainer's if None.
        allow_nonfinite: Whether observations, states and rewards may be NaN or infinite, which is an error otherwise.

    Raises:
        EnvError: `build` cannot be called with two arguments.
    """

    build: Callable[[int, int], Any]
    _: KW_ONLY
    num_envs: int
    framework: str | None = None
    allow_nonfinite: bool = False

    def __post_init__(self) -> None:
        try:
            inspect.signature(self.build).bind(1, 0)
        except ValueError:  # not written in Python
            pass
        except TypeError as error:
            function = getattr(self.build, "func", self.build)  # of a partial, whose arguments may be secret
            build = getattr(function, "__qualname__", type(function).__qualname__)
            raise EnvError(
                f"{build} cannot be called as build(num_envs, first_env), to build the environments of some rows "
                f"({error}); pass a function such as lambda num_envs, first_env: [MyEnv() for _ in range(num_envs)]"
            ) from error

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"EnvFactory has no {name!r}: it builds environments when the trainer is built, where they are stepped; "
            "take spaces from a single environment"
        )


def recipe_of(env: Any) -> EnvFactory | None:
    """Return the factory of what a trainer was given, for any range of its rows; None if it cannot be rebuilt.

    Args:
        env: A factory, or an environment that may have a `recipe`; its ``allow_nonfinite`` counts for its copies, too.
    """
    if isinstance(env, EnvFactory):
        return env
    recipe = getattr(env, "recipe", None)
    if not isinstance(recipe, EnvFactory):
        return None
    return replace(recipe, allow_nonfinite=bool(getattr(env, "allow_nonfinite", False)))


class _EnvWrapper(ABC):
    """Members common to both base classes.

    Attributes:
        framework: Name of the framework whose arrays the environment takes and returns.
        num_envs: Number of environments.
        recipe: Factory that rebuilds the same environments for any range of rows; None if they cannot be rebuilt.
        gives_arrays_away: Whether the returned arrays are not shared: the environment neither writes to nor reads them
            again. If nothing else uses them either, the agent receives them without a copy.
        allow_nonfinite: Whether observations, states and rewards may be NaN or infinite, which is an error otherwise.
    """

    framework: str
    num_envs: int
    recipe: EnvFactory | None = None
    gives_arrays_away = False
    allow_nonfinite = False

    def __str__(self) -> str:
        """Return the name for messages: that of the environment that is wrapped, if the wrapper knows it."""
        return getattr(self, "_name", type(self).__qualname__)

    @abstractmethod
    def render(self) -> Any:
        """Render the environments."""

    @abstractmethod
    def close(self) -> None:
        """Release the environments' resources."""


class Wrapper(_EnvWrapper):
    """Vectorised single-agent environments, stepped as one batch.

    Implementations must reset an environment that ends in the same ``step``, for every batch size. ``step`` then
    returns the observations after the reset. The true final observations are in ``infos["final_obs"]``,
    ``(num_envs, size)``, valid in the rows where ``infos["_final_obs"]``, ``(num_envs,)`` bool, is True. If there are
    states, the final ones are in ``infos["final_state"]``. Both entries may be present in every step.

    Arrays, masks included, belong to the framework and may be on any device. They stay there unless Ray sends them:
    `StepTrainer.train` returns what ``step`` returned.

    Attributes, set in the class or in its ``__init__``, besides `framework` and `num_envs`:
        observation_space: Observation space of one environment.
        action_space: Action space of one environment.
        state_space: State space of one environment; None if there are no states.
    """

    observation_space: Any
    action_space: Any
    state_space: Any | None = None

    @abstractmethod
    def reset(self, *, seed: int | None = None) -> tuple[Array, dict[str, Any]]:
        """Start all environments.

        Args:
            seed: Environment ``i`` of this batch is seeded with ``seed + i``; None leaves the generators unchanged.

        Returns:
            Observations ``(num_envs, size)`` and infos.
        """

    @abstractmethod
    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Step all environments.

        Args:
            actions: ``(num_envs, size)``.

        Returns:
            Observations ``(num_envs, size)``, with floats for a Box of floats and integers for a Box of integers;
            rewards ``(num_envs, 1)`` float32; terminated and truncated ``(num_envs, 1)`` bool; and infos.
        """

    def state(self) -> Array | None:
        """Return the privileged global states ``(num_envs, size)``, or None."""
        return None


class MultiAgentEnvWrapper(_EnvWrapper):
    """Vectorised multi-agent environments: like `Wrapper`, with a dictionary by agent name instead of each array.

    Each dictionary has an array for every possible agent, with a row for every environment. Implementations must
    follow these rules:

    - In the step in which an agent ends, its row is its true final observation and its flag is True. Later rows are
      zero, with both flags False.
    - ``infos["alive"][agent]``, ``(num_envs, 1)`` bool, is present after every step and reset. It marks the
      environments in which the agent acts in the next step.
    - An environment is reset in the step in which no agent is left. ``infos["_final_obs"]``, ``(num_envs,)`` bool,
      marks these environments; ``infos["final_obs"][agent]`` and ``infos["final_state"][agent]`` hold the values
      before the reset.

    Attributes, set in the class or in its ``__init__``, besides `framework` and `num_envs`:
        possible_agents: Names of all agents that can ever appear, in a fixed order.
        observation_spaces: Observation space of each agent in one environment.
        action_spaces: Action space of each agent in one environment.
        dead_rows_are_zero: Whether the rows of dead agents are certain to be zero. If not, they may hold anything where
            ``infos["alive"]`` is False, and are not checked.
    """

    possible_agents: list[str]
    observation_spaces: dict[str, Any]
    action_spaces: dict[str, Any]
    dead_rows_are_zero = False

    @property
    @abstractmethod
    def agents(self) -> list[str]:
        """Names of the agents that are alive in any environment."""

    @property
    def state_spaces(self) -> dict[str, Any | None]:
        """State space of each agent in one environment; None for agents without states."""
        return dict.fromkeys(self.possible_agents)

    @abstractmethod
    def reset(self, *, seed: int | None = None) -> tuple[dict[str, Array], dict[str, Any]]:
        """Start all environments; return observations by agent, and infos. For `seed`, see `Wrapper.reset`."""

    @abstractmethod
    def step(
        self, actions: dict[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array], dict[str, Array], dict[str, Any]]:
        """Step all environments; return observations, rewards, terminated and truncated by agent, and infos."""

    def state(self) -> dict[str, Array | None]:
        """Return the privileged global states by agent; None for agents without states."""
        return dict.fromkeys(self.possible_agents)
