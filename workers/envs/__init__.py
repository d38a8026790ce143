"""Environments: the two base classes, what wraps them and what rebuilds them."""

from workers.envs.base import MultiAgentEnvWrapper, Wrapper
from workers.envs.factory import EnvFactory, make_env, wrap_env

__all__ = ["EnvFactory", "MultiAgentEnvWrapper", "Wrapper", "make_env", "wrap_env"]
