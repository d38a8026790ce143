"""Environments: the contract, factories, checks, and the wrappers for Gymnasium and PettingZoo.

Imports the rules, the frameworks and `workers.types`. Imported by scopes, remote workers, orchestrators, the trainer
and users.
"""

from workers.envs.base import EnvFactory, MultiAgentEnvWrapper, Wrapper
from workers.envs.conformance import check_env
from workers.envs.making import make_env, wrap_env
from workers.envs.states import register_state

__all__ = ["EnvFactory", "MultiAgentEnvWrapper", "Wrapper", "check_env", "make_env", "register_state", "wrap_env"]
