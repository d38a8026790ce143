"""Environments: the contract, what makes, wraps and checks them, and the wrappers of Gymnasium and PettingZoo.

Imports the rules, the frameworks and the words. Imported by scopes, remote workers, orchestrators, trainer and users.
"""

from workers.envs.base import EnvFactory, MultiAgentEnvWrapper, Wrapper
from workers.envs.making import make_env, wrap_env

__all__ = ["EnvFactory", "MultiAgentEnvWrapper", "Wrapper", "make_env", "wrap_env"]
