"""skrl's PPO agent, selected in a configuration by ``agent: examples.skrl_ppo:make_agent``."""

from __future__ import annotations

from typing import Any

from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.memories.torch import RandomMemory
from skrl.models.torch import CategoricalMixin, DeterministicMixin, Model
from torch import nn


class Policy(CategoricalMixin, Model):
    """Policy with categorical actions."""

    def __init__(self, observation_space: Any, action_space: Any, hidden: int, device: str) -> None:
        Model.__init__(self, observation_space=observation_space, action_space=action_space, device=device)
        CategoricalMixin.__init__(self)
        self.net = nn.Sequential(nn.Linear(self.num_observations, hidden), nn.Tanh(), nn.Linear(hidden, action_space.n))

    def compute(self, inputs: Any, role: str) -> Any:
        """Compute logits."""
        return self.net(inputs["observations"]), {}


class Value(DeterministicMixin, Model):
    """Critic."""

    def __init__(self, observation_space: Any, action_space: Any, hidden: int, device: str) -> None:
        Model.__init__(self, observation_space=observation_space, action_space=action_space, device=device)
        DeterministicMixin.__init__(self)
        self.net = nn.Sequential(nn.Linear(self.num_observations, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def compute(self, inputs: Any, role: str) -> Any:
        """Compute values."""
        return self.net(inputs["observations"]), {}


def make_agent(
    num_envs: int,
    observation_space: Any,
    action_space: Any,
    *,
    hidden: int = 64,
    rollouts: int = 32,
    learning_rate: float = 1e-3,
    device: str = "cpu",
) -> PPO:
    """Build the agent of one scope.

    Args:
        num_envs: Number of environments.
        observation_space: Observation space of one environment.
        action_space: Discrete action space of one environment.
        hidden: Number of units of the hidden layer.
        rollouts: Number of timesteps between updates.
        learning_rate: Learning rate.
        device: Device of the models, the memory and the agent.
    """
    return PPO(
        models={
            "policy": Policy(observation_space, action_space, hidden, device).to(device),
            "value": Value(observation_space, action_space, hidden, device).to(device),
        },
        memory=RandomMemory(memory_size=rollouts, num_envs=num_envs, device=device),
        observation_space=observation_space,
        action_space=action_space,
        device=device,
        cfg=PPO_CFG(rollouts=rollouts, learning_epochs=4, mini_batches=4, learning_rate=learning_rate),
    )
