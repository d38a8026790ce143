"""The words that workers and orchestrators exchange, and the roles that users fill.

The loop that these roles live in, for one scope::

    agent.init(trainer_cfg=cfg)
    observations, infos = env.reset()
    for timestep in range(timesteps):
        agent.enable_training_mode(True)
        agent.pre_interaction(timestep=timestep, timesteps=timesteps)
        actions, outputs = agent.act(observations, env.state(), timestep=timestep, timesteps=timesteps)
        next_observations, rewards, terminated, truncated, infos = env.step(actions)
        agent.record_transition(observations=observations, ..., timestep=timestep, timesteps=timesteps)
        agent.post_interaction(timestep=timestep, timesteps=timesteps)
        observations = next_observations

The trainer also calls ``agent.track_data`` with the times of ``act`` and ``env.step``, in milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol

__all__ = [
    "Agent",
    "Array",
    "Arrays",
    "Description",
    "Env",
    "Mode",
    "MultiAgentEnv",
    "Outcome",
    "Phase",
    "Scope",
    "Tick",
    "Transition",
]

Array = Any
"""An array of the trainer's framework (``torch.Tensor``, ``jax.Array``, ``wp.array`` or ``numpy.ndarray``)."""

Arrays = Any
"""An array, or in a multi-agent environment a dictionary with one for each agent, by name."""


@dataclass(frozen=True)
class Scope:
    """The environments of one simultaneous agent: rows ``start`` to ``stop`` (half-open) of the full batch.

    Attributes:
        index: Index of the scope, and of its simultaneous agent.
        start: First row.
        stop: Row after the last one.
        seed: Seed of this scope's agent, None if the run has no seed. It is derived from the trainer's seed and the
            index, and is the same whatever the mode and the number of scopes.
    """

    index: int
    start: int
    stop: int
    seed: int | None = None

    @property
    def num_envs(self) -> int:
        """Number of environments in the scope."""
        return self.stop - self.start

    @property
    def rows(self) -> tuple[int, int]:
        """``(start, stop)``."""
        return (self.start, self.stop)


class Mode(Enum):
    """What an iteration is for."""

    TRAIN = "train"
    EVAL = "eval"


class Phase(Enum):
    """Where in an iteration (or around it) something happens."""

    BUILD = "build"
    PRE_INTERACTION = "pre-interaction"
    ACT = "act"
    STEP = "step"
    RENDER = "render"
    RECORD = "record"
    POST_INTERACTION = "post-interaction"
    RESET = "reset"
    COLLECT = "collect"
    STORE = "store"


class Tick(NamedTuple):
    """One iteration, as the driver orders it."""

    mode: Mode
    timestep: int
    timesteps: int


class Outcome(NamedTuple):
    """What one iteration gives: the five outputs of `StepTrainer.train`, for the rows of one worker or for all.

    In a multi-agent environment each array is a dictionary of arrays by agent name.

    Attributes:
        observations: What ``env.step`` returned, ``(rows, size)``.
        rewards: ``(rows, 1)``, float32.
        terminated: ``(rows, 1)``, bool.
        truncated: ``(rows, 1)``, bool.
        infos: What ``env.step`` returned, merged over the scopes.
    """

    observations: Arrays
    rewards: Arrays
    terminated: Arrays
    truncated: Arrays
    infos: dict[str, Any]


class Transition(NamedTuple):
    """What an agent is given to record, besides the observations, states and actions that it already knows.

    In a multi-agent environment each array is a dictionary of arrays by agent name.

    Attributes:
        rewards: ``(rows, 1)``.
        next_observations: The observations that the actions led to, ``(rows, size)``: at the end of an episode the
            true final one, not the one after the reset.
        next_states: Likewise the states, or None.
        terminated: ``(rows, 1)``, bool.
        truncated: ``(rows, 1)``, bool.
        infos: The infos of these rows.
        step_time: Time that ``env.step`` took, in milliseconds.
    """

    rewards: Arrays
    next_observations: Arrays
    next_states: Arrays | None
    terminated: Arrays
    truncated: Arrays
    infos: dict[str, Any]
    step_time: float


class Description(NamedTuple):
    """What a worker is.

    Attributes:
        agent: Kind of its agent.
        node: The process that it lives in; see `workers.node.node_name`.
        num_threads: Compute threads of its framework.
        team: Names of the agents of a multi-agent environment, empty in any other.
        notes: What the run should say about it, once.
    """

    agent: str
    node: str
    num_threads: int
    team: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Env(Protocol):
    """Vectorised environments: what every environment must have. What it has besides is used where it is present."""

    @property
    def num_envs(self) -> int:
        """Number of environments, stepped as one batch."""

    @property
    def observation_space(self) -> Any:
        """Observation space of one environment."""

    @property
    def action_space(self) -> Any:
        """Action space of one environment."""

    def reset(self) -> tuple[Array, dict[str, Any]]:
        """Start all environments: observations ``(num_envs, size)`` and infos."""

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Step all environments: observations, rewards, terminated, truncated ``(num_envs, ·)`` and infos."""

    def state(self) -> Array | None:
        """Privileged global states ``(num_envs, size)``, or None."""

    def render(self) -> Any:
        """Render the environments."""

    def close(self) -> None:
        """Release what the environments hold."""


class MultiAgentEnv(Protocol):
    """As `Env`, for the agents of a multi-agent environment: a dictionary by agent name in the place of each array."""

    @property
    def num_envs(self) -> int:
        """Number of environments, stepped as one batch."""

    @property
    def possible_agents(self) -> list[str]:
        """Names of all agents that can ever appear."""

    @property
    def agents(self) -> list[str]:
        """Names of the agents that are alive in any environment."""

    @property
    def observation_spaces(self) -> dict[str, Any]:
        """Observation space of each agent in one environment."""

    @property
    def action_spaces(self) -> dict[str, Any]:
        """Action space of each agent in one environment."""

    def reset(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Start all environments: observations and infos."""

    def step(
        self, actions: dict[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array], dict[str, Array], dict[str, Any]]:
        """Step all environments: observations, rewards, terminated, truncated and infos."""

    def state(self) -> dict[str, Array | None]:
        """Privileged global states, or None."""

    def render(self) -> Any:
        """Render the environments."""

    def close(self) -> None:
        """Release what the environments hold."""


class Agent(Protocol):
    """A simultaneous agent: what every agent must have. What it has besides is used where it is present.

    A multi-agent has the same members, with dictionaries by agent name in the place of arrays; of its outputs,
    evaluation acts on ``outputs[name]["mean_actions"]``. An agent whose ``act`` has a parameter ``infos`` is given
    there what came with the observations: which agents are alive, and which actions are legal.
    """

    def init(self, *, trainer_cfg: Any = None) -> None:
        """Make ready to be trained or evaluated under this trainer configuration."""

    def enable_training_mode(self, enabled: bool = True) -> None:
        """Switch between training and evaluation."""

    def pre_interaction(self, *, timestep: int, timesteps: int) -> None:
        """Called before the interaction with the environments."""

    def act(
        self, observations: Array, states: Array | None, *, timestep: int, timesteps: int
    ) -> tuple[Array, dict[str, Any]]:
        """Actions ``(rows, size)`` and outputs, among which ``mean_actions`` is what evaluation acts on."""

    def record_transition(
        self,
        *,
        observations: Array,
        states: Array | None,
        actions: Array,
        rewards: Array,
        next_observations: Array,
        next_states: Array | None,
        terminated: Array,
        truncated: Array,
        infos: dict[str, Any],
        timestep: int,
        timesteps: int,
    ) -> None:
        """Take note of a transition."""

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        """Called after the interaction with the environments: where agents learn."""

    def track_data(self, tag: str, value: float) -> None:
        """Take note of a scalar."""
