"""Files of trained agents: the state without pickle or, as a last resort, the output of the agent's ``save``."""

from __future__ import annotations

from typing import Any

from workers.errors import AgentError
from workers.frameworks import Framework
from workers.storage.export import dump_file, load_file, load_modules, module_states
from workers.storage.state_file import decode_state, encode_state

__all__ = ["FILE_NAMES", "OWN", "STATE", "dump_agent", "load_agent", "offers_state"]

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
        state = _encoded_state(agent, framework)
        if state is not None:
            return STATE, state
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

    ``agent.bin`` may be a pickle, which runs code when it is loaded: an agent for which `dump_agent` writes
    ``state.safetensors`` never loads it.

    Raises:
        AgentError: The file does not fit the agent.
    """
    try:
        if name == OWN:
            if offers_state(agent, framework):
                raise AgentError(
                    f"{OWN} can run code, so it is not loaded into an agent that offers a state; expected {STATE}"
                )
            load_file(agent, data)
        elif _has_state(agent):
            agent.load_state_dict(decode_state(data, framework))
        else:
            load_modules(agent, decode_state(data, framework))
    except Exception as error:
        raise AgentError(
            f"{type(agent).__qualname__} cannot load the stored state: {type(error).__name__}: {error}"
        ) from error


def offers_state(agent: Any, framework: Framework) -> bool:
    """Whether `dump_agent` writes ``state.safetensors``; then `load_agent` loads nothing else."""
    try:
        return _encoded_state(agent, framework) is not None
    except AgentError:
        return False


def _encoded_state(agent: Any, framework: Framework) -> bytes | None:
    """Return the agent's state; None if it offers none.

    Raises:
        AgentError: The state cannot be written.
    """
    if _has_state(agent):
        return encode_state(agent.state_dict(), framework)
    if getattr(agent, "checkpoint_modules", None):
        return encode_state(module_states(agent), framework)
    return None


def _has_state(agent: Any) -> bool:
    return hasattr(agent, "state_dict") and hasattr(agent, "load_state_dict")


def _has_file(agent: Any) -> bool:
    return hasattr(agent, "save") and hasattr(agent, "load")
