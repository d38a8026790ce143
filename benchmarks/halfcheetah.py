"""HalfCheetah-v5, and skrl's agent that is trained on it."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from contestants import make_skrl

from workers.envs import make_env
from workers.types import Scope

NUM_ENVS = 64
CHEETAH = (
    gymnasium.spaces.Box(-np.inf, np.inf, (17,), np.float64),
    gymnasium.spaces.Box(-1.0, 1.0, (6,), np.float32),
)


def cheetah_env() -> Any:
    """Build all environments."""
    return make_env("HalfCheetah-v5", num_envs=NUM_ENVS, framework="torch")


def skrls_agent(scope: Scope) -> Any:
    """Build the agent of one scope."""
    return make_skrl("torch", *CHEETAH, scope.num_envs)
