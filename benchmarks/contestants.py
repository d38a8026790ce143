"""Our PPO and skrl's in each framework, with the same networks and the same options."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import gymnasium

from workers.frameworks import load_framework

STEPS, EPOCHS, MINI_BATCHES, LEARNING_RATE = 32, 4, 4, 3e-4


def make_ours(framework: str, observation_space: Any, action_space: Any, num_envs: int) -> Any:
    """Build our agent, with the same options as skrl's."""
    cfg = {
        "rollouts": STEPS,
        "learning_epochs": EPOCHS,
        "mini_batches": MINI_BATCHES,
        "learning_rate": LEARNING_RATE,
        "grad_norm_clip": 0.5,
        "value_clip": 0.2,
        "normalize_observations": False,
        "normalize_values": False,
        "action_bounds": "none",  # skrl does not clip actions by default
    }
    kind = importlib.import_module(f"workers.agents.{framework}").PPO
    return kind(observation_space=observation_space, action_space=action_space, num_envs=num_envs, cfg=cfg)


def make_skrl(framework: str, observation_space: Any, action_space: Any, num_envs: int) -> Any:
    """Build skrl's agent, with equivalent models; skrl is imported only here."""
    agents = importlib.import_module(f"skrl.agents.{framework}.ppo")
    memories = importlib.import_module(f"skrl.memories.{framework}")
    load_framework(framework)
    cfg = agents.PPO_CFG(
        rollouts=STEPS,
        learning_epochs=EPOCHS,
        mini_batches=MINI_BATCHES,
        learning_rate=LEARNING_RATE,
        grad_norm_clip=0.5,
        value_clip=0.2,
        value_loss_scale=1.0,
        time_limit_bootstrap=True,
    )
    cfg.experiment.write_interval = 0
    cfg.experiment.checkpoint_interval = 0
    return agents.PPO(
        models=MODELS[framework](observation_space, action_space),
        memory=memories.RandomMemory(memory_size=STEPS, num_envs=num_envs, device="cpu"),
        observation_space=observation_space,
        action_space=action_space,
        device="cpu",
        cfg=cfg,
    )


def torch_models(observation_space: Any, action_space: Any) -> dict[str, Any]:
    """Build skrl's models for PyTorch, Gaussian or categorical."""
    import torch
    from skrl.models.torch import CategoricalMixin, DeterministicMixin, GaussianMixin, Model

    discrete = isinstance(action_space, gymnasium.spaces.Discrete)
    mixin = CategoricalMixin if discrete else GaussianMixin

    def perceptron(inputs: int, outputs: int) -> torch.nn.Sequential:
        hidden = (torch.nn.Linear(inputs, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh())
        return torch.nn.Sequential(*hidden, torch.nn.Linear(64, outputs))

    class Policy(mixin, Model):
        def __init__(self) -> None:
            Model.__init__(self, observation_space=observation_space, action_space=action_space, device="cpu")
            mixin.__init__(self)
            self.net = perceptron(self.num_observations, self.num_actions)
            self.log_std = None if discrete else torch.nn.Parameter(torch.zeros(self.num_actions))

        def compute(self, inputs: dict[str, Any], role: str = "") -> tuple[Any, dict[str, Any]]:
            outputs = {} if self.log_std is None else {"log_std": self.log_std}
            return self.net(inputs["observations"]), outputs

    class Value(DeterministicMixin, Model):
        def __init__(self) -> None:
            Model.__init__(self, observation_space=observation_space, action_space=action_space, device="cpu")
            DeterministicMixin.__init__(self)
            self.net = perceptron(self.num_observations, 1)

        def compute(self, inputs: dict[str, Any], role: str = "") -> tuple[Any, dict[str, Any]]:
            return self.net(inputs["observations"]), {}

    return {"policy": Policy(), "value": Value()}


def jax_models(observation_space: Any, action_space: Any) -> dict[str, Any]:
    """Build skrl's Gaussian models for JAX."""
    import flax.linen as nn
    import jax.numpy as jnp
    from skrl.models.jax import DeterministicMixin, GaussianMixin, Model

    width = action_space.shape[0]

    def perceptron(inputs: Any, outputs: int) -> Any:
        hidden = nn.tanh(nn.Dense(64)(nn.tanh(nn.Dense(64)(inputs))))
        return nn.Dense(outputs)(hidden)

    class Policy(GaussianMixin, Model):
        def __init__(self, **fields: Any) -> None:  # flax makes copies from all fields of the model
            Model.__init__(self, **fields)
            GaussianMixin.__init__(self)

        @nn.compact
        def __call__(self, inputs: dict[str, Any], role: str) -> tuple[Any, dict[str, Any]]:
            log_std = self.param("log_std", lambda _: jnp.zeros(width))
            return perceptron(inputs["observations"], width), {"log_std": log_std}

    class Value(DeterministicMixin, Model):
        def __init__(self, **fields: Any) -> None:
            Model.__init__(self, **fields)
            DeterministicMixin.__init__(self)

        @nn.compact
        def __call__(self, inputs: dict[str, Any], role: str) -> tuple[Any, dict[str, Any]]:
            return perceptron(inputs["observations"], 1), {}

    fields = {"observation_space": observation_space, "action_space": action_space, "device": "cpu"}
    models = {"policy": Policy(**fields), "value": Value(**fields)}
    for role, model in models.items():
        model.init_state_dict(role=role)
    return models


def warp_models(observation_space: Any, action_space: Any) -> dict[str, Any]:
    """Build skrl's Gaussian models for Warp."""
    import warp as wp
    import warp_nn.nn as nn
    from skrl.models.warp import DeterministicMixin, GaussianMixin, Model

    def perceptron(inputs: int, outputs: int) -> Any:
        hidden = (nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        return nn.Sequential(*hidden, nn.Linear(64, outputs))

    class Policy(GaussianMixin, Model):
        def __init__(self) -> None:
            Model.__init__(self, observation_space=observation_space, action_space=action_space, device="cpu")
            GaussianMixin.__init__(self)
            self.net = perceptron(self.num_observations, self.num_actions)
            self.log_std = nn.Parameter(wp.zeros(self.num_actions, dtype=wp.float32, device=self.device))
            self.__post_init__()

        def compute(self, inputs: dict[str, Any], role: str = "") -> tuple[Any, dict[str, Any]]:
            return self.net(inputs["observations"]), {"log_std": self.log_std.data}

    class Value(DeterministicMixin, Model):
        def __init__(self) -> None:
            Model.__init__(self, observation_space=observation_space, action_space=action_space, device="cpu")
            DeterministicMixin.__init__(self)
            self.net = perceptron(self.num_observations, 1)
            self.__post_init__()

        def compute(self, inputs: dict[str, Any], role: str = "") -> tuple[Any, dict[str, Any]]:
            return self.net(inputs["observations"]), {}

    return {"policy": Policy(), "value": Value()}


MODELS: dict[str, Callable[[Any, Any], dict[str, Any]]] = {
    "torch": torch_models,
    "jax": jax_models,
    "warp": warp_models,
}
