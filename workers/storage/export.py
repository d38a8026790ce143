"""Transfer of a trained agent from its worker: the whole agent if it can be pickled, else its state."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal, NamedTuple

from workers.errors import AgentError
from workers.pickling import dumps, loads

__all__ = [
    "ExportedAgent",
    "copy_state",
    "dump_file",
    "export_agent",
    "import_agent",
    "load_file",
    "load_modules",
    "module_states",
]


class ExportedAgent(NamedTuple):
    """A trained agent as plain data.

    Attributes:
        kind: ``"pickle"``: the whole agent. ``"state"``: its ``state_dict()``, pickled. ``"modules"``: the states of
            its ``checkpoint_modules``, pickled. ``"file"``: the output of its ``save``. ``"none"``: the export failed;
            `data` has the reasons.
        data: The bytes.
    """

    kind: Literal["pickle", "state", "modules", "file", "none"]
    data: bytes


def export_agent(agent: Any, dumps: Callable[[Any], bytes]) -> ExportedAgent:
    """Convert a trained agent to plain data in the first way that works; `dumps` pickles it."""
    ways: tuple[tuple[Literal["pickle", "state", "modules", "file"], Callable[[Any], bytes]], ...]
    ways = (("pickle", dumps), ("state", _dump_state), ("modules", _dump_modules), ("file", dump_file))
    reasons = []
    for kind, dump in ways:
        try:
            return ExportedAgent(kind, dump(agent))
        except Exception as error:
            reasons.append(f"{kind}: {type(error).__name__}: {error}")
    return ExportedAgent("none", "; ".join(reasons).encode())


def import_agent(exported: ExportedAgent, make: Callable[[], Any]) -> Any:
    """Return the trained agent.

    Args:
        exported: Result of `export_agent`.
        make: Builds an agent of the same kind; not called if the whole agent was pickled.

    Raises:
        AgentError: The agent could not be exported, or cannot be loaded in this process.
    """
    if exported.kind == "none":
        raise AgentError(
            "the trained agent cannot be brought back: it cannot be pickled, and none of state_dict(), "
            f"checkpoint_modules and save() works ({exported.data.decode(errors='replace')})"
        )
    try:
        return _loaded(exported, make)
    except Exception as error:
        raise AgentError(
            f"the trained agent was brought back ({exported.kind}), but cannot be loaded in this process: "
            f"{type(error).__name__}: {error}"
        ) from error


def _loaded(exported: ExportedAgent, make: Callable[[], Any]) -> Any:
    if exported.kind == "pickle":
        return loads(exported.data)
    agent = make()
    if exported.kind == "state":
        agent.load_state_dict(loads(exported.data))
    elif exported.kind == "modules":
        load_modules(agent, loads(exported.data))
    else:
        load_file(agent, exported.data)
    return agent


def copy_state(trained: Any, agent: Any) -> None:
    """Copy everything that `trained` has learned into `agent`.

    An agent that defines ``__setstate__`` and has no `checkpoint_modules` gets the pickled state of `trained`. For any
    other agent the `checkpoint_modules` are loaded in place, so that references to them stay valid, and so are tensors
    that are optimised by themselves, such as the entropy coefficient of skrl's SAC. Other attributes of `trained` that
    refer to these (a scheduler to the optimizer) then refer to those of `agent`.
    """
    if trained is agent:
        return
    mine, theirs = (getattr(one, "checkpoint_modules", {}) for one in (agent, trained))
    if hasattr(agent, "__setstate__") and not mine:
        agent.__setstate__(deepcopy(trained.__getstate__(), {id(trained): agent}))
        return
    memo = {id(trained): agent}
    _load_in_place(theirs, mine, memo)
    _copy_others(theirs, mine, memo)
    for name, value in vars(trained).items():
        own: Any = getattr(agent, name, None)
        if getattr(value, "requires_grad", False) and type(own) is type(value) and own.shape == value.shape:
            own.data.copy_(value.data)
            memo[id(value)] = own
    for name, value in vars(trained).items():
        setattr(agent, name, deepcopy(value, memo))


def _load_in_place(theirs: Any, mine: Any, memo: dict[int, Any]) -> None:
    """Load the modules, by agent name in a multi-agent, and record in `memo` which object replaces which."""
    memo[id(theirs)] = mine
    for name, module in theirs.items():
        if isinstance(module, dict) and isinstance(mine.get(name), dict):
            _load_in_place(module, mine[name], memo)
        elif module is not None and _is_module(mine.get(name)):
            mine[name].load_state_dict(_state(module))
            memo[id(module)] = mine[name]


def _copy_others(theirs: Any, mine: Any, memo: dict[int, Any]) -> None:
    for name, module in theirs.items():
        if memo.get(id(module)) is not mine.get(name, memo):
            mine[name] = deepcopy(module, memo)
        elif isinstance(module, dict):
            _copy_others(module, mine[name], memo)


def _is_module(value: Any) -> bool:
    return hasattr(value, "load_state_dict")


def _state(module: Any) -> Any:
    state_dict = getattr(module, "state_dict", lambda: module)
    if not callable(state_dict):  # in skrl's JAX models it is an object that also holds functions
        raise AgentError(
            f"{type(module).__qualname__}.state_dict is a {type(state_dict).__qualname__}; expected a method"
        )
    return state_dict()


def module_states(agent: Any) -> dict[str, Any]:
    """Return the states of the `checkpoint_modules` by name; in a multi-agent by agent name, then by name.

    Raises:
        AgentError: The state of a module is not plain data.
    """
    return _states(agent.checkpoint_modules)


def _states(modules: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _states(module) if isinstance(module, dict) else _state(module)
        for name, module in modules.items()
        if module is not None
    }


def load_modules(agent: Any, states: dict[str, Any]) -> None:
    """Load the result of `module_states`."""
    _load(agent.checkpoint_modules, states)


def _load(modules: dict[str, Any], states: dict[str, Any]) -> None:
    for name, state in states.items():
        module: Any = modules.get(name)
        if isinstance(module, dict):
            _load(module, state)
        elif _is_module(module):
            module.load_state_dict(state)
        else:
            modules[name] = state


def _dump_state(agent: Any) -> bytes:
    if not hasattr(agent, "load_state_dict"):
        raise AttributeError("it has no load_state_dict()")
    return dumps(agent.state_dict())


def _dump_modules(agent: Any) -> bytes:
    if not agent.checkpoint_modules:
        raise ValueError("checkpoint_modules is empty")
    return dumps(module_states(agent))


def dump_file(agent: Any) -> bytes:
    """Return what the agent's ``save(path)`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "agent")
        agent.save(path)
        with open(path, "rb") as file:
            return file.read()


def load_file(agent: Any, data: bytes) -> None:
    """Load the result of `dump_file` with the agent's ``load(path)``."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "agent")
        with open(path, "wb") as file:
            file.write(data)
        agent.load(path)
