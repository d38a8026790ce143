"""Files of trained agents: the state without pickle or, as a last resort, the output of the agent's ``save``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from workers.errors import AgentError, DivergedError
from workers.frameworks import Framework, load_framework
from workers.storage.export import dump_file, load_file, load_modules, module_states
from workers.storage.state_file import decode_state, encode_state, nonfinite_values

__all__ = ["FILE_NAMES", "OWN", "STATE", "check_alike", "dump_agent", "load_agent", "offers_state"]

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


def check_alike(file: tuple[str, bytes], own: tuple[str, bytes]) -> None:
    """Check that an agent can load the file of another one, as far as both files tell.

    Args:
        file: The other agent's, from `dump_agent`.
        own: The agent's own. What it does not hold yet, such as the moments of an optimiser, may be in the other.

    Raises:
        AgentError: It cannot.
        DivergedError: The file holds NaN or infinity, and the agent does not.
    """
    if file[0] != own[0]:
        raise AgentError(f"the file is {file[0]}; expected {own[0]}")
    if file[0] != STATE:
        return
    numpy = load_framework("numpy")
    # below, an optimiser may have no moments yet
    _check_shapes(decode_state(file[1], numpy), decode_state(own[1], numpy), "state", (np.ndarray, Mapping))
    found, held = nonfinite_values(file[1]), nonfinite_values(own[1])
    if new := [path for path in found if held.get(path) != found[path]]:
        raise DivergedError(f"the state holds {found[new[0]]} in {new[0]}")


def _check_shapes(given: Any, own: Any, path: str, kinds: type | tuple[type, ...] = np.ndarray) -> None:
    """Check that two trees hold arrays of the same names and shapes, where both hold some.

    Args:
        given: The one tree.
        own: The other one.
        path: What errors call them.
        kinds: What must have the same names in the mapping itself.
    """
    if isinstance(given, np.ndarray) and isinstance(own, np.ndarray) and given.shape != own.shape:
        raise AgentError(f"{path} has shape {given.shape}; expected {own.shape}")
    if not isinstance(given, Mapping) or not isinstance(own, Mapping):
        return
    names, expected = ([name for name in tree if isinstance(tree[name], kinds)] for tree in (given, own))
    if names and expected and (other := {*names} ^ {*expected}):
        first = next(name for name in names + expected if name in other)
        raise AgentError(f"{path} {'has the unexpected' if first in names else 'lacks'} {first!r}")
    for name in [name for name in given if name in own]:
        _check_shapes(given[name], own[name], f"{path}[{name!r}]")
