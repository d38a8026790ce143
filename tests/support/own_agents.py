"""skrl's agents as a configuration names them: ``agent: tests.support.own_agents:skrl_sac``."""

from __future__ import annotations

from typing import Any

from tests.support.skrl_kept import build
from workers.types import Scope


def skrl_ppo(scope: Scope, observation_space: Any, action_space: Any) -> Any:
    """Build skrl's PPO with preprocessors and a scheduler."""
    return build("PPO", {"observation_space": observation_space, "action_space": action_space}, scope)


def skrl_sac(scope: Scope, observation_space: Any, action_space: Any) -> Any:
    """Build skrl's SAC with a replay memory."""
    return build("SAC", {"observation_space": observation_space, "action_space": action_space}, scope)
