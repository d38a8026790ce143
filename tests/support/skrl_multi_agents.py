"""skrl's multi-agents for teams with continuous actions, as users of skrl build them."""

from __future__ import annotations

import importlib
from typing import Any

from tests.support.skrl_frameworks import ROLLOUTS, jax_models


def torch_models(spaces: dict[str, Any], critic_input: str) -> dict[str, Any]:
    import torch
    from skrl.models.torch import DeterministicMixin, GaussianMixin, Model
    from torch import nn

    class Policy(GaussianMixin, Model):
        def __init__(self, **given: Any) -> None:
            Model.__init__(self, **given, device="cpu")
            GaussianMixin.__init__(self)
            self.net = nn.Linear(self.num_observations, self.num_actions)
            self.log_std_parameter = nn.Parameter(torch.zeros(self.num_actions))

        def compute(self, inputs: Any, role: str) -> Any:
            return self.net(inputs["observations"]), {"log_std": self.log_std_parameter}

    class Value(DeterministicMixin, Model):
        def __init__(self, **given: Any) -> None:
            Model.__init__(self, **given, device="cpu")
            DeterministicMixin.__init__(self)
            width = self.num_states if critic_input == "states" else self.num_observations
            self.net = nn.Linear(width, 1)

        def compute(self, inputs: Any, role: str) -> Any:
            return self.net(inputs[critic_input]), {}

    return {"policy": Policy(**spaces), "value": Value(**spaces)}


MODELS = {"torch": torch_models, "jax": jax_models}


def skrl_team(framework: str, kind: str, env: Any, num_envs: int) -> Any:
    """Build skrl's IPPO or MAPPO for the agents of an environment; it writes nothing."""
    multi_agents = importlib.import_module(f"skrl.multi_agents.{framework}.{kind.lower()}")
    memories = importlib.import_module(f"skrl.memories.{framework}")
    names, critic_input = env.possible_agents, "states" if kind == "MAPPO" else "observations"
    empty: dict[str, Any] = {name: {} for name in names}  # skrl itself refuses the defaults of these
    kwargs = ["learning_rate_scheduler", "observation_preprocessor", "state_preprocessor", "value_preprocessor"]
    cfg = getattr(multi_agents, f"{kind}_CFG")(
        rollouts=ROLLOUTS, learning_epochs=2, mini_batches=2, **{f"{name}_kwargs": dict(empty) for name in kwargs}
    )
    cfg.experiment.write_interval = cfg.experiment.checkpoint_interval = 0
    kinds = ("observation", "action", "state")
    by_name = {name: {f"{kind}_space": getattr(env, f"{kind}_spaces")[name] for kind in kinds} for name in names}
    return getattr(multi_agents, kind)(
        possible_agents=names,
        models={name: MODELS[framework](spaces, critic_input) for name, spaces in by_name.items()},
        memories={name: memories.RandomMemory(memory_size=ROLLOUTS, num_envs=num_envs, device="cpu") for name in names},
        **{f"{kind}_spaces": dict(getattr(env, f"{kind}_spaces")) for kind in kinds},
        device="cpu",
        cfg=cfg,
    )
