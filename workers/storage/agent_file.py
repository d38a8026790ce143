"""Files of trained agents: the state without pickle or, as a last resort, the output of the agent's ``save``."""

from __future__ import annotations

from typing import Any

from workers.errors import AgentError
from workers.frameworks import Framework
from workers.storage.export import dump_file, load_file, load_modules, module_states
from workers.storage.state_file import decode_state, encode_state

__all__ = ["FILE_NAMES", "STATE", "dump_agent", "load_agent"]

STATE, OWN = "state.safetensors", "agent.bin"
FILE_NAMES = (STATE, OWN)
"""File names that `dump_agent` may return."""


def dump_agent(agent: Any, framework: Framework) -> tuple[str, bytes]:
    """Return the name and content of a trained agent's file.

    ``state.safetensors`` holds its ``state_dict()``, else the states of its ``checkpoint_modules`` (skrl's agents);
    see `workers.storage.state_file`. An agent without a state that can be written gets ``agent.bin``, in the format of
    its own ``save(path)``.

    Raises:
        AgentError: The agent has none of these.
    """
    try:
        if _has_state(agent):
            return STATE, encode_state(agent.state_dict(), framework)
        if getattr(agent, "checkpoint_modules", None):
            return STATE, encode_state(module_states(agent), framework)
    except AgentError:
        if not _has_file(agent):
            raise
    if _has_file(agent):
        return OWN, dump_file(agent)
    raise AgentError(
        f"{type(agent).__qualname__} cannot be stored: it has neither state_dict() and load_state_dict(state), nor "
        "checkpoint_modules, nor save(path) and load(path); implement one of them"
    )


def load_agent(agent: Any, name: str, data: bytes, framework: Framework) -> None:
    """Load the file from `dump_agent` into an agent that was built like the stored one.

    Raises:
        AgentError: The file does not fit the agent.
    """
    try:
        if name == OWN:
            load_file(agent, data)
        elif _has_state(agent):
            agent.load_state_dict(decode_state(data, framework))
        else:
            load_modules(agent, decode_state(data, framework))
    except Exception as error:
        raise AgentError(
            f"{type(agent).__qualname__} cannot load the stored state: {type(error).__name__}: {error}"
        ) from error


def _has_state(agent: Any) -> bool:
    return hasattr(agent, "state_dict") and hasattr(agent, "load_state_dict")


def _has_file(agent: Any) -> bool:
    return hasattr(agent, "save") and hasattr(agent, "load")
