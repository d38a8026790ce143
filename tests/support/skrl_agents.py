"""skrl's own agents and environments, as users of skrl build them."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import skrl
import torch
from gymnasium.spaces import Box
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.agents.torch.sac import SAC, SAC_CFG
from skrl.envs.wrappers.torch import wrap_env as skrl_wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import CategoricalMixin, DeterministicMixin, GaussianMixin, Model
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


class GaussianPolicy(GaussianMixin, Model):
    def __init__(self, observation_space: Any, action_space: Any) -> None:
        Model.__init__(self, observation_space=observation_space, action_space=action_space, device="cpu")
        GaussianMixin.__init__(self, clip_actions=True)
        self.net = network(self.num_observations, self.num_actions)
        self.log_std = nn.Parameter(torch.zeros(self.num_actions))

    def compute(self, inputs: Any, role: str) -> Any:
        return 2 * torch.tanh(self.net(inputs["observations"])), {"log_std": self.log_std}


class Critic(DeterministicMixin, Model):
    def __init__(self, observation_space: Any, action_space: Any) -> None:
        Model.__init__(self, observation_space=observation_space, action_space=action_space, device="cpu")
        DeterministicMixin.__init__(self)
        self.net = network(self.num_observations + self.num_actions, 1)

    def compute(self, inputs: Any, role: str) -> Any:
        return self.net(torch.cat([inputs["observations"], inputs["taken_actions"]], dim=1)), {}


def skrl_sac(num_envs: int, observation_space: Any, action_space: Any, *, random_timesteps: int) -> SAC:
    """Build a small skrl SAC that writes nothing, whose first actions are samples of the action space."""
    models: dict[str, Any] = {"policy": GaussianPolicy(observation_space, action_space)}
    for name in ("critic_1", "critic_2", "target_critic_1", "target_critic_2"):
        models[name] = Critic(observation_space, action_space)
    cfg = SAC_CFG(batch_size=16, random_timesteps=random_timesteps, learning_starts=random_timesteps)
    cfg.experiment.write_interval = 0
    cfg.experiment.checkpoint_interval = 0
    return SAC(
        models=models,
        memory=RandomMemory(memory_size=64, num_envs=num_envs, device="cpu"),
        observation_space=observation_space,
        action_space=action_space,
        device="cpu",
        cfg=cfg,
    )


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
