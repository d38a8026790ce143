"""A custom agent: all that the trainer asks of one, and a state that a run directory can store."""

from __future__ import annotations

from typing import Any

import torch

from workers.types import Scope


class Greedy:
    """Estimates the mean reward of every action, and mostly takes the best one.

    It is made by a config's ``agent: examples.custom_agent:Greedy``: it gets those of scope, num_envs,
    observation_space, action_space and state_space that its arguments name, and the values of ``cfg``.

    Args:
        scope: The agent's environments.
        action_space: A Discrete space.
        step_size: Weight of a new reward in the estimate.
    """

    def __init__(self, scope: Scope, action_space: Any, step_size: float = 0.1) -> None:
        self.num_envs = scope.num_envs
        self.step_size = step_size
        self.estimates = torch.zeros(int(action_space.n))
        self.training = False

    def init(self, *, trainer_cfg: Any = None) -> None:
        """Nothing is to be made ready."""

    def enable_training_mode(self, enabled: bool = True) -> None:
        """Remember whether to learn."""
        self.training = enabled

    def pre_interaction(self, *, timestep: int, timesteps: int) -> None:
        """Nothing is to be done before the interaction."""

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> tuple[Any, dict[str, Any]]:
        """Actions, with some noise; evaluation takes the mean actions."""
        best = self.estimates.argmax().expand(self.num_envs, 1)
        random = torch.randint(len(self.estimates), (self.num_envs, 1))
        return torch.where(torch.rand(self.num_envs, 1) < 0.2, random, best), {"mean_actions": best}

    def record_transition(self, *, actions: Any, rewards: Any, **transition: Any) -> None:
        """Learn from the rewards."""
        if self.training:
            for action, reward in zip(actions[:, 0], rewards[:, 0], strict=True):
                self.estimates[action] += self.step_size * (reward - self.estimates[action])

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        """Everything has been learnt already."""

    def track_data(self, tag: str, value: float) -> None:
        """The trainer's own scalars are in the log anyway."""

    def state_dict(self) -> dict[str, Any]:
        """What the run directory stores."""
        return {"estimates": self.estimates.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `lockstep eval` loads."""
        self.estimates = state["estimates"].clone()
