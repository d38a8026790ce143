"""Types that workers and orchestrators exchange, and the roles that users implement.

The loop of one scope::

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

The trainer also calls ``agent.track_data`` with the durations of ``act`` and ``env.step`` in milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol, TypeGuard

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
    "is_integer",
]

Array = Any
"""An array of the trainer's framework (``torch.Tensor``, ``jax.Array``, ``wp.array`` or ``numpy.ndarray``)."""

Arrays = Any
"""An array, or in a multi-agent environment a dictionary of arrays by agent name."""


@dataclass(frozen=True)
class Scope:
    """Environments of one simultaneous agent: rows ``start`` to ``stop`` (half-open) of the full batch.

    Attributes:
        index: Index of the scope and of its simultaneous agent.
        start: First row.
        stop: Row after the last one.
        seed: Seed of the scope's agent; None if the run has no seed. It is derived from the trainer's seed and the
            index, and does not depend on the mode or the number of scopes.
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
    """Purpose of an iteration."""

    TRAIN = "train"
    EVAL = "eval"


class Phase(Enum):
    """Phase of an iteration, or of the work around it."""

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
    CLOSE = "close"


class Tick(NamedTuple):
    """One iteration, as requested by the driver."""

    mode: Mode
    timestep: int
    timesteps: int


class Outcome(NamedTuple):
    """Result of one iteration: the five outputs of `StepTrainer.train`, for the rows of one worker or for all rows.

    In a multi-agent environment each array is a dictionary of arrays by agent name.

    Attributes:
        observations: Observations from ``env.step``, ``(rows, size)``.
        rewards: ``(rows, 1)``, float32.
        terminated: ``(rows, 1)``, bool.
        truncated: ``(rows, 1)``, bool.
        infos: Infos from ``env.step``, merged over the scopes.
    """

    observations: Arrays
    rewards: Arrays
    terminated: Arrays
    truncated: Arrays
    infos: dict[str, Any]


class Transition(NamedTuple):
    """Data for an agent to record, in addition to the observations, states and actions that it already has.

    In a multi-agent environment each array is a dictionary of arrays by agent name.

    Attributes:
        rewards: ``(rows, 1)``.
        next_observations: Observations after the actions, ``(rows, size)``; at the end of an episode the true final
            one, not the one after the reset.
        next_states: States after the actions, in the same way; or None.
        terminated: ``(rows, 1)``, bool.
        truncated: ``(rows, 1)``, bool.
        infos: Infos of these rows.
        step_time: Duration of ``env.step`` in milliseconds.
    """

    rewards: Arrays
    next_observations: Arrays
    next_states: Arrays | None
    terminated: Arrays
    truncated: Arrays
    infos: dict[str, Any]
    step_time: float


class Description(NamedTuple):
    """Description of a worker.

    Attributes:
        agent: Type name of its agent.
        node: Process in which it runs; see `workers.node.node_name`.
        num_threads: Number of compute threads of its framework.
        team: Names of the agents of a multi-agent environment; empty in a single-agent environment.
        notes: Notes that Lockstep logs once per run.
        device: Device of its agent, such as ``"cuda:0"``; empty if the agent does not say.
        architecture: See `workers.agents.base.Learner`; empty for other agents than Lockstep's.
    """

    agent: str
    node: str
    num_threads: int
    team: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    device: str = ""
    architecture: str = ""


class Env(Protocol):
    """Vectorised environments: the required members. Optional members are used if present."""

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
        """Reset all environments and return observations ``(num_envs, size)`` and infos."""

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Step all environments and return observations, rewards, terminated, truncated ``(num_envs, ·)`` and infos.

        Flags are bool or 0 and 1.
        """

    def state(self) -> Array | None:
        """Return privileged global states ``(num_envs, size)``, or None."""

    def render(self) -> Any:
        """Render the environments."""

    def close(self) -> None:
        """Release the resources of the environments."""


class MultiAgentEnv(Protocol):
    """Vectorised multi-agent environments: as `Env`, with a dictionary by agent name in place of each array.

    The dictionaries may leave out agents that are dead.
    """

    @property
    def num_envs(self) -> int:
        """Number of environments, stepped as one batch."""

    @property
    def possible_agents(self) -> list[str]:
        """Names of all agents that can appear."""

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
        """Reset all environments and return observations and infos."""

    def step(
        self, actions: dict[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array], dict[str, Array], dict[str, Any]]:
        """Step all environments and return observations, rewards, terminated, truncated and infos."""

    def state(self) -> dict[str, Array | None]:
        """Return the privileged global states, or None, of each agent."""

    def render(self) -> Any:
        """Render the environments."""

    def close(self) -> None:
        """Release the resources of the environments."""


class Agent(Protocol):
    """A simultaneous agent: the required members. Optional members are used if present.

    A multi-agent has the same members, with dictionaries by agent name in place of arrays; evaluation acts on
    ``outputs[name]["mean_actions"]``. If ``act`` has a parameter ``infos``, it receives the infos of the observations:
    which agents are alive, and which actions are legal.
    """

    def init(self, *, trainer_cfg: Any = None) -> None:
        """Prepare for training or evaluation with this trainer configuration."""

    def enable_training_mode(self, enabled: bool = True) -> None:
        """Switch between training and evaluation."""

    def pre_interaction(self, *, timestep: int, timesteps: int) -> None:
        """Called before the interaction with the environments."""

    def act(
        self, observations: Array, states: Array | None, *, timestep: int, timesteps: int
    ) -> tuple[Array, dict[str, Any]]:
        """Return actions ``(rows, size)`` and outputs; evaluation acts on ``outputs["mean_actions"]`` if present."""

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
        """Record a transition."""

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        """Called after the interaction with the environments; agents learn here."""

    def track_data(self, tag: str, value: float) -> None:
        """Record a scalar."""


def is_integer(value: object) -> TypeGuard[int]:
    """Return whether a value is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)
