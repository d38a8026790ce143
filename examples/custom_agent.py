"""A custom agent: all members that the trainer needs, and a state that a run directory can store."""

from __future__ import annotations

from typing import Any

import torch

from workers.types import Scope


class Greedy:
    """Agent that estimates the mean reward of every action and mostly takes the best one.

    A configuration selects it by ``agent: examples.custom_agent:Greedy``. It gets those of scope, num_envs,
    observation_space, action_space and state_space that are among its parameters, and the values of ``cfg``.

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
        """Do nothing: there is nothing to prepare."""

    def enable_training_mode(self, enabled: bool = True) -> None:
        """Switch learning on or off."""
        self.training = enabled

    def pre_interaction(self, *, timestep: int, timesteps: int) -> None:
        """Do nothing before the interaction."""

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> tuple[Any, dict[str, Any]]:
        """Return actions with some noise, and the mean actions for evaluation."""
        best = self.estimates.argmax().expand(self.num_envs, 1)
        random = torch.randint(len(self.estimates), (self.num_envs, 1))
        return torch.where(torch.rand(self.num_envs, 1) < 0.2, random, best), {"mean_actions": best}

    def record_transition(self, *, actions: Any, rewards: Any, **transition: Any) -> None:
        """Learn from the rewards."""
        if self.training:
            for action, reward in zip(actions[:, 0], rewards[:, 0], strict=True):
                self.estimates[action] += self.step_size * (reward - self.estimates[action])

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        """Do nothing: `record_transition` has learnt already."""

    def track_data(self, tag: str, value: float) -> None:
        """Do nothing: the trainer's own scalars are logged anyway."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state for the run directory."""
        return {"estimates": self.estimates.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state from the run directory, as `lockstep eval` does."""
        self.estimates = state["estimates"].clone()
