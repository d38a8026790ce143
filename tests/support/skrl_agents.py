"""skrl's own agents and environments, as users of skrl build them."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import skrl
import torch
from gymnasium.spaces import Box
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.envs.wrappers.torch import wrap_env as skrl_wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import CategoricalMixin, DeterministicMixin, Model
from torch import nn

from workers.types import Scope

skrl.logger.setLevel("ERROR")

ROLLOUTS = 16


def network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs))


class Policy(CategoricalMixin, Model):
    def __init__(self, observation_space: Any, action_space: Any) -> None:
        Model.__init__(self, observation_space=observation_space, action_space=action_space, device="cpu")
        CategoricalMixin.__init__(self)
        self.net = network(self.num_observations, self.num_actions)

    def compute(self, inputs: Any, role: str) -> Any:
        return self.net(inputs["observations"]), {}


class Value(DeterministicMixin, Model):
    def __init__(self, observation_space: Any, action_space: Any) -> None:
        Model.__init__(self, observation_space=observation_space, action_space=action_space, device="cpu")
        DeterministicMixin.__init__(self)
        self.net = network(self.num_observations, 1)

    def compute(self, inputs: Any, role: str) -> Any:
        return self.net(inputs["observations"]), {}


class FixedPolicy(Policy):
    """Policy whose actions depend only on the observations, not on random draws that a neighbour could shift."""

    def act(self, inputs: Any, *, role: str = "") -> Any:
        _, outputs = super().act(inputs, role=role)
        fixed = (inputs["observations"].sum(1, keepdim=True) > 0).long()
        return fixed, outputs


def skrl_ppo(num_envs: int, policy: type[Policy] = Policy) -> PPO:
    """Build a small skrl PPO for CartPole-v1 that writes nothing."""
    observation_space, action_space = Box(-np.inf, np.inf, (4,), np.float32), gymnasium.spaces.Discrete(2)
    models = {kind: cls(observation_space, action_space) for kind, cls in (("policy", policy), ("value", Value))}
    cfg = PPO_CFG(rollouts=ROLLOUTS, learning_epochs=2, mini_batches=2, learning_rate=1e-3, time_limit_bootstrap=False)
    cfg.experiment.write_interval = 0
    cfg.experiment.checkpoint_interval = 0
    return PPO(
        models=models,
        memory=RandomMemory(memory_size=ROLLOUTS, num_envs=num_envs, device="cpu"),
        observation_space=observation_space,
        action_space=action_space,
        device="cpu",
        cfg=cfg,
    )


def skrl_ppo_factory(scope: Scope) -> PPO:
    return skrl_ppo(scope.num_envs)


def skrl_cartpole(num_envs: int) -> Any:
    """Build CartPole-v1, vectorised by Gymnasium and wrapped by skrl."""
    env = gymnasium.make_vec(
        "CartPole-v1",
        num_envs=num_envs,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP},
    )
    return skrl_wrap_env(env, wrapper="gymnasium", verbose=False)


def weights(agent: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Return the weights of all models of a skrl agent."""
    return {
        f"{kind}.{name}": tensor.detach().clone().numpy()
        for kind, model in agent.models.items()
        for name, tensor in model.state_dict().items()
    }


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
