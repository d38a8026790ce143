"""skrl's torch agents with all that changes while they learn: memories, preprocessors, schedulers, noises, entropy."""

from __future__ import annotations

from typing import Any

import torch
from skrl.agents.torch.dqn import DQN, DQN_CFG
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.agents.torch.sac import SAC, SAC_CFG
from skrl.agents.torch.td3 import TD3, TD3_CFG
from skrl.memories.torch import RandomMemory
from skrl.models.torch import DeterministicMixin, Model
from skrl.resources.noises.torch import GaussianNoise, OrnsteinUhlenbeckNoise
from skrl.resources.preprocessors.torch import RunningStandardScaler
from skrl.resources.schedulers.torch import KLAdaptiveLR

from tests.support.skrl_agents import Critic, GaussianPolicy, Policy, Value, network
from workers.types import Scope

ROLLOUTS = 16
SCHEDULER = torch.optim.lr_scheduler.StepLR
DECAY = {"step_size": 3, "gamma": 0.9}


class Actor(DeterministicMixin, Model):
    def __init__(self, observation_space: Any, action_space: Any, outputs: int | None = None) -> None:
        Model.__init__(self, observation_space=observation_space, action_space=action_space, device="cpu")
        DeterministicMixin.__init__(self)
        self.net = network(self.num_observations, outputs or self.num_actions)

    def compute(self, inputs: Any, role: str) -> Any:
        return self.net(inputs["observations"]), {}


def _scaled(spaces: dict[str, Any], *names: str) -> dict[str, Any]:
    sizes = {"observation": spaces["observation_space"], "value": 1}
    made: dict[str, Any] = {}
    for name in names:
        made |= {f"{name}_preprocessor": RunningStandardScaler}
        made |= {f"{name}_preprocessor_kwargs": {"size": sizes[name], "device": "cpu"}}
    return made


def _ppo(spaces: dict[str, Any], scope: Scope) -> Any:
    cfg = PPO_CFG(
        rollouts=ROLLOUTS,
        learning_epochs=2,
        mini_batches=2,
        learning_rate_scheduler=KLAdaptiveLR,
        learning_rate_scheduler_kwargs={"kl_threshold": 1e-4},
        **_scaled(spaces, "observation", "value"),
    )
    policy = Policy if hasattr(spaces["action_space"], "n") else GaussianPolicy
    return PPO, cfg, {"policy": policy(**spaces), "value": Value(**spaces)}


def _sac(spaces: dict[str, Any], scope: Scope) -> Any:
    cfg = SAC_CFG(
        batch_size=16,
        random_timesteps=5,
        learning_starts=5,
        learn_entropy=True,
        learning_rate_scheduler=(SCHEDULER, SCHEDULER),
        learning_rate_scheduler_kwargs=(DECAY, DECAY),
        **_scaled(spaces, "observation"),
    )
    critics = {f"{target}critic_{i}": Critic(**spaces) for target in ("", "target_") for i in (1, 2)}
    return SAC, cfg, {"policy": GaussianPolicy(**spaces), **critics}


def _td3(spaces: dict[str, Any], scope: Scope) -> Any:
    noise = {"theta": 0.15, "sigma": 0.2, "base_scale": 0.5, "device": "cpu"}
    cfg = TD3_CFG(
        batch_size=16,
        random_timesteps=5,
        learning_starts=5,
        exploration_noise=OrnsteinUhlenbeckNoise,
        exploration_noise_kwargs=noise,
        smooth_regularization_noise=GaussianNoise,
        smooth_regularization_noise_kwargs={"mean": 0, "std": 0.1, "device": "cpu"},
    )
    critics = {f"{target}critic_{i}": Critic(**spaces) for target in ("", "target_") for i in (1, 2)}
    return TD3, cfg, {"policy": Actor(**spaces), "target_policy": Actor(**spaces), **critics}


def _dqn(spaces: dict[str, Any], scope: Scope) -> Any:
    cfg = DQN_CFG(batch_size=16, random_timesteps=5, learning_starts=5, target_update_interval=7)
    outputs = int(spaces["action_space"].n)
    return DQN, cfg, {name: Actor(**spaces, outputs=outputs) for name in ("q_network", "target_q_network")}


BUILDERS = {"PPO": _ppo, "SAC": _sac, "TD3": _td3, "DQN": _dqn}


def build(kind: str, spaces: dict[str, Any], scope: Scope) -> Any:
    """Build one of skrl's agents that writes nothing."""
    make, cfg, models = BUILDERS[kind](spaces, scope)
    cfg.experiment.write_interval = cfg.experiment.checkpoint_interval = 0
    memory = RandomMemory(memory_size=ROLLOUTS if kind == "PPO" else 64, num_envs=scope.num_envs, device="cpu")
    return make(models=models, memory=memory, device="cpu", cfg=cfg, **spaces)
