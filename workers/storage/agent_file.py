"""A trained agent as a file: its state without pickle or, if that is all it offers, what its ``save`` writes."""

from __future__ import annotations

from typing import Any

from workers.errors import AgentError
from workers.frameworks import Framework
from workers.storage.export import dump_file, load_file, load_modules, module_states
from workers.storage.state_file import decode_state, encode_state

__all__ = ["FILE_NAMES", "dump_agent", "load_agent"]

STATE, OWN = "state.safetensors", "agent.bin"
FILE_NAMES = (STATE, OWN)
"""Names of the files that `dump_agent` may give."""


def dump_agent(agent: Any, framework: Framework) -> tuple[str, bytes]:
    """Name and content of a trained agent's file.

    ``state.safetensors`` holds its ``state_dict()``, else the states of its ``checkpoint_modules`` (skrl's agents);
    see `workers.storage.state_file`. An agent that has neither gets ``agent.bin``, in the format of its own
    ``save(path)``.

    Raises:
        AgentError: It has none of them.
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
        "checkpoint_modules, nor save(path) and load(path); give it one of them"
    )


def load_agent(agent: Any, name: str, data: bytes, framework: Framework) -> None:
    """Give an agent, made as the stored one was, what `dump_agent` wrote.

    Raises:
        AgentError: It does not fit.
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
            f"{type(agent).__qualname__} cannot load what was stored: {type(error).__name__}: {error}"
        ) from error


def _has_state(agent: Any) -> bool:
    return hasattr(agent, "state_dict") and hasattr(agent, "load_state_dict")


def _has_file(agent: Any) -> bool:
    return hasattr(agent, "save") and hasattr(agent, "load")
