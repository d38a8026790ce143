"""What a snapshot keeps of an agent, with or without pickle."""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np

from workers.agents import load_skrl_parts
from workers.errors import AgentError, CheckpointError, message_of, type_name
from workers.frameworks import Framework
from workers.members import is_of_skrl
from workers.storage.state_file import encode_state

__all__ = ["agent_tree", "load_agent_tree", "plain_infos", "reason_not_kept"]

_logger = logging.getLogger("lockstep")


def keeps_itself(agent: Any) -> bool:
    """Return whether an agent offers its whole state as plain data: ``snapshot()`` and ``restore(state)``."""
    return hasattr(agent, "snapshot") and hasattr(agent, "restore")


def _parts(agent: Any, framework: Framework) -> Any:
    """Return the module that keeps an agent of skrl; None if it is another agent, or of another framework."""
    return load_skrl_parts(framework.name) if is_of_skrl(agent) else None


def agent_tree(agent: Any, framework: Framework, *, what: str, allow_pickle: bool) -> dict[str, Any]:
    """Return the state of an agent: plain data if it offers it, else the agent itself, which only pickle can hold.

    It may share memory with the agent.

    Args:
        agent: The agent.
        framework: Its framework.
        what: What messages call it.
        allow_pickle: Whether it may be the agent itself.

    Raises:
        CheckpointError: Only pickle can keep it, and may not.
    """
    kind, parts = type_name(type(agent)), _parts(agent, framework)
    if keeps_itself(agent):
        return {"kind": kind, "snapshot": agent.snapshot()}
    reason = "has no snapshot() and restore(state)"
    if parts is not None:
        try:
            return {"kind": kind, "parts": parts.read_parts(agent)}
        except Exception as error:  # the agent may be of a class derived from one of skrl's
            told = (
                message_of(error) if isinstance(error, AgentError) else f"{type(error).__name__}: {message_of(error)}"
            )
            reason += f", and {told}"
    if allow_pickle:
        return {"kind": kind, "pickle": agent}
    raise CheckpointError(
        f"{what} {reason}, so only pickle can keep it; pass allow_pickle=True to save(), and later to load(), or give "
        "it both methods"
    )


def load_agent_tree(agent: Any, tree: Mapping[str, Any], framework: Framework, *, is_trial: bool = False) -> None:
    """Put an agent that was built alike into the state of an `agent_tree`.

    Args:
        agent: The agent.
        tree: The state.
        framework: The agent's framework.
        is_trial: Whether this state is replaced by the one before, which may be this very agent, at once.

    Raises:
        AgentError: The state is of another kind of agent, or does not fit.
    """
    kind, parts = type_name(type(agent)), _parts(agent, framework)
    if tree["kind"] != kind:
        raise AgentError(f"the state is that of a {tree['kind']}; expected that of a {kind}")
    if "snapshot" in tree:
        agent.restore(tree["snapshot"])
    elif "parts" in tree:
        parts.check_parts(agent, tree["parts"])
        if not is_trial:
            parts.write_parts(agent, tree["parts"])
    elif type(tree["pickle"]) is not type(agent):
        raise AgentError(f"the pickle holds a {type_name(type(tree['pickle']))}; expected a {kind}")
    elif not is_trial:
        _become(agent, tree["pickle"])


def _become(agent: Any, other: Any) -> None:
    """Give an agent all parts of another one, which remain one whole: optimisers refer to its models, for example."""
    if hasattr(type(agent), "__setstate__"):
        agent.__setstate__(other.__getstate__())
        return
    vars(agent).clear()
    vars(agent).update(vars(other))
    other.__dict__ = vars(agent)  # some of its parts may refer to it


def reason_not_kept(agent: Any, framework: Framework, pickler: type[pickle.Pickler]) -> str:
    """Return why a snapshot cannot keep an agent, even with pickle; empty if it can.

    Args:
        agent: The agent. The contents of its arrays are not pickled in the attempt.
        framework: Its framework.
        pickler: What a snapshot pickles it with.
    """
    if keeps_itself(agent) or "parts" in agent_tree(agent, framework, what="it", allow_pickle=True):
        return ""

    class Attempt(pickler):  # type: ignore[misc, valid-type]
        def persistent_id(self, value: Any) -> str | None:
            is_array = type(value) is np.ndarray and value.dtype.kind != "O"
            is_array = is_array or (framework.can_pickle_arrays and framework.is_array(value))
            return "array" if is_array else None

    try:
        Attempt(_Nowhere(), pickle.HIGHEST_PROTOCOL).dump(agent)
    except Exception as error:
        return f"{type(error).__name__}: {message_of(error)}"
    return ""


class _Nowhere(io.RawIOBase):
    def write(self, data: Any) -> int:
        return len(data)


def plain_infos(infos: dict[str, Any], framework: Framework) -> dict[str, Any]:
    """Return the infos that can be written without pickle, with their masks; log which cannot."""
    if _is_plain(infos, framework):
        return infos
    left_out = [key for key, value in infos.items() if not _is_plain({key: value}, framework)]
    _logger.warning(
        "a snapshot leaves out what the infos hold at %s: it is more than arrays and plain values", left_out
    )
    return {key: value for key, value in infos.items() if key not in left_out and str(key)[1:] not in left_out}


def _is_plain(value: Any, framework: Framework) -> bool:
    try:
        encode_state(value, framework)
    except AgentError:
        return False
    return True
