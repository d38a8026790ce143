"""skrl's JAX and Warp agents and their environment, Pendulum-v1, as users of skrl build them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import skrl
from gymnasium.spaces import Box

from workers.frameworks import load_framework
from workers.types import Scope

skrl.logger.setLevel("ERROR")

ROLLOUTS = 16
OBSERVATIONS, ACTIONS = Box(-np.inf, np.inf, (3,), np.float32), Box(-2.0, 2.0, (1,), np.float32)


PENDULUM = {"observation_space": OBSERVATIONS, "action_space": ACTIONS}


def jax_models(spaces: dict[str, Any] = PENDULUM, critic_input: str = "observations") -> dict[str, Any]:
    import flax.linen as nn
    import jax.numpy as jnp
    from skrl.models.jax import DeterministicMixin, GaussianMixin, Model

    class Policy(GaussianMixin, Model):
        def __init__(self, **fields: Any) -> None:  # flax makes copies from all fields of the model
            Model.__init__(self, **fields)
            GaussianMixin.__init__(self)

        @nn.compact
        def __call__(self, inputs: Any, role: str) -> Any:
            hidden = nn.tanh(nn.Dense(16)(inputs["observations"]))
            log_std = self.param("log_std", lambda _: jnp.zeros(self.num_actions))
            return nn.Dense(self.num_actions)(hidden), {"log_std": log_std}

    class Value(DeterministicMixin, Model):
        def __init__(self, **fields: Any) -> None:  # flax makes copies from all fields of the model
            Model.__init__(self, **fields)
            DeterministicMixin.__init__(self)

        @nn.compact
        def __call__(self, inputs: Any, role: str) -> Any:
            return nn.Dense(1)(nn.tanh(nn.Dense(16)(inputs[critic_input]))), {}

    fields: dict[str, Any] = {**spaces, "device": "cpu"}
    models: dict[str, Any] = {"policy": Policy(**fields), "value": Value(**fields)}
    for role, model in models.items():
        model.init_state_dict(role=role)
    return models


def warp_models() -> dict[str, Any]:
    import warp as wp
    import warp_nn.nn as nn
    from skrl.models.warp import DeterministicMixin, GaussianMixin, Model

    def network() -> Any:
        return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))

    class Policy(GaussianMixin, Model):
        def __init__(self) -> None:
            Model.__init__(self, observation_space=OBSERVATIONS, action_space=ACTIONS, device="cpu")
            GaussianMixin.__init__(self)
            self.net = network()
            self.log_std = nn.Parameter(wp.zeros(1, dtype=wp.float32, device=self.device))
            self.__post_init__()

        def compute(self, inputs: Any, role: str) -> Any:
            return self.net(inputs["observations"]), {"log_std": self.log_std.data}

    class Value(DeterministicMixin, Model):
        def __init__(self) -> None:
            Model.__init__(self, observation_space=OBSERVATIONS, action_space=ACTIONS, device="cpu")
            DeterministicMixin.__init__(self)
            self.net = network()
            self.__post_init__()

        def compute(self, inputs: Any, role: str) -> Any:
            return self.net(inputs["observations"]), {}

    return {"policy": Policy(), "value": Value()}


def skrl_ppo(framework: str, num_envs: int, *, time_limit_bootstrap: bool = False) -> Any:
    """Build a small skrl PPO for Pendulum-v1 that writes nothing."""
    agents = importlib.import_module(f"skrl.agents.{framework}.ppo")
    memories = importlib.import_module(f"skrl.memories.{framework}")
    cfg = agents.PPO_CFG(
        rollouts=ROLLOUTS,
        learning_epochs=2,
        mini_batches=2,
        learning_rate=1e-3,
        time_limit_bootstrap=time_limit_bootstrap,
    )
    cfg.experiment.write_interval = 0
    cfg.experiment.checkpoint_interval = 0
    return agents.PPO(
        models={"jax": jax_models, "warp": warp_models}[framework](),
        memory=memories.RandomMemory(memory_size=ROLLOUTS, num_envs=num_envs, device="cpu"),
        observation_space=OBSERVATIONS,
        action_space=ACTIONS,
        device="cpu",
        cfg=cfg,
    )


def skrl_agent(framework: str, **options: Any) -> Callable[[Scope], Any]:
    """Return a factory of such agents."""
    return lambda scope: skrl_ppo(framework, scope.num_envs, **options)


def skrl_pendulum(framework: str, num_envs: int, max_episode_steps: int = 50) -> Any:
    """Build Pendulum-v1, vectorised by Gymnasium and wrapped by skrl."""
    wrap_env = importlib.import_module(f"skrl.envs.wrappers.{framework}").wrap_env
    env = gymnasium.make_vec(
        "Pendulum-v1",
        num_envs=num_envs,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP},
        max_episode_steps=max_episode_steps,
    )
    return wrap_env(env, wrapper="gymnasium", verbose=False)


def weights(framework: str, agent: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Return the weights of all models of a skrl agent."""
    if framework == "jax":
        import jax

        leaves = jax.tree_util.tree_leaves_with_path(
            {kind: model.state_dict.params for kind, model in agent.models.items()}
        )
        return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in leaves}
    to_numpy = load_framework(framework).to_numpy
    return {
        f"{kind}.{name}": to_numpy(array).copy()
        for kind, model in agent.models.items()
        for name, array in model.state_dict().items()
    }


def seed_everything(framework: str, seed: int) -> None:
    load_framework(framework)  # the first import of jax draws from NumPy's generator
    np.random.seed(seed)
    getattr(skrl.config, framework).key = seed
