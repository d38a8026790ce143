"""Checks that a trainer can drive an environment."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv

from workers.envs.base import MultiAgentEnvWrapper, Wrapper
from workers.errors import EnvError
from workers.members import missing_members
from workers.types import Env, MultiAgentEnv

__all__ = ["check_num_envs", "check_wrapped", "is_multi_agent", "is_wrapped"]


def is_multi_agent(env: Any) -> bool:
    """Return whether a wrapped environment, ours or another library's, uses dictionaries by agent name."""
    return isinstance(env, MultiAgentEnvWrapper) or (not isinstance(env, Wrapper) and hasattr(env, "possible_agents"))


def is_wrapped(env: Any) -> bool:
    """Return whether `env` is one of our wrappers, or has the members of one (another library's wrapper)."""
    if isinstance(env, (Wrapper, MultiAgentEnvWrapper)):
        return True
    return not isinstance(env, (gymnasium.Env, VectorEnv)) and not _missing_members(env)


def _missing_members(env: Any) -> list[str]:
    role = MultiAgentEnv if is_multi_agent(env) else Env
    if role is MultiAgentEnv and not hasattr(env, "num_envs"):
        return ["num_envs"]  # an unwrapped PettingZoo environment: access to its spaces would trigger a warning
    return missing_members(env, role)


def check_no_name(env: Any, framework: str) -> None:
    """Check that `env` is not the name of an environment.

    Raises:
        EnvError: It is.
    """
    if isinstance(env, str):
        raise EnvError(
            f"{env!r} is a name; expected an environment: make it with make_env({env!r}, num_envs=…, "
            f"framework={framework!r})"
        )


def check_wrapped(env: Any, framework: str) -> None:
    """Check that a trainer of this framework can drive `env`.

    Raises:
        EnvError: The environment lacks a member, has no rows, or is for another framework.
    """
    check_no_name(env, framework)
    kind = type(env).__qualname__
    if isinstance(env, (gymnasium.Env, VectorEnv)):
        raise EnvError(f"environment {kind} is not wrapped; wrap it with wrap_env(env, framework={framework!r})")
    if missing := _missing_members(env):
        raise EnvError(
            f"environment {kind} lacks {', '.join(missing)}; wrap it with wrap_env(env, framework={framework!r})"
        )
    check_num_envs(env.num_envs, f"environment {kind}")
    if not isinstance(env, (Wrapper, MultiAgentEnvWrapper)):
        return
    if not hasattr(env, "framework"):
        raise EnvError(f"environment {kind} has no framework; set the class attribute framework = {framework!r}")
    if env.framework != framework:
        raise EnvError(
            f"environment {kind} is for {env.framework!r}, but the trainer is for {framework!r}; build both for one "
            "framework"
        )


def check_num_envs(num_envs: Any, owner: str) -> None:
    """Check that `num_envs` is an integer of at least 1.

    Raises:
        EnvError: It is not.
    """
    if not isinstance(num_envs, (int, np.integer)) or num_envs < 1:
        raise EnvError(f"{owner} has num_envs {num_envs!r}; expected an integer of at least 1")
