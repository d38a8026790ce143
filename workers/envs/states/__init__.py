"""How the state of environments is kept and restored.

Imports the contract of environments, samples, statistics, errors and frameworks. Imported by the vectorisers, which
keep the log of actions, by scopes, and by users for `register_state`.
"""

from workers.envs.states.own import register_state
from workers.envs.states.state import (
    NOT_KEPT,
    EnvState,
    check_state,
    explain_state,
    prepare_state,
    read_state,
    set_replay_limit,
    write_state,
)

__all__ = [
    "NOT_KEPT",
    "EnvState",
    "check_state",
    "explain_state",
    "prepare_state",
    "read_state",
    "register_state",
    "set_replay_limit",
    "write_state",
]
