"""Checks of an agent against its scope, and the observation shapes that it requests."""

from __future__ import annotations

import inspect
from typing import Any

import gymnasium
from gymnasium.spaces.utils import flatdim

from workers.errors import AgentError
from workers.frameworks import Framework, available_frameworks
from workers.members import is_factory, missing_members
from workers.types import Agent, Arrays, Scope

__all__ = ["asked_shapes", "build_agent", "check_agent", "check_fit", "checked_pair"]

Spaces = gymnasium.Space[Any] | dict[str, gymnasium.Space[Any]]


def build_agent(agent: Any, scope: Scope) -> Any:
    """Return the agent of a scope, built if it is a factory.

    Raises:
        AgentError: The factory cannot be called with the scope, or does not return an agent.
    """
    if is_factory(agent):
        factory = f"the factory of scope {scope.index}, {getattr(agent, '__qualname__', type(agent).__qualname__)},"
        if reason := _refuses(agent, scope):
            raise AgentError(
                f"{factory} cannot be called with the Scope as its only argument ({reason}); pass a function such as "
                "lambda scope: PPO(…, num_envs=scope.num_envs)"
            )
        agent = agent(scope)
        if agent is None:
            raise AgentError(f"{factory} returned None; expected an agent")
    check_agent(agent, scope)
    return agent


def _refuses(factory: Any, scope: Scope) -> str | None:
    """Return why a factory cannot be called with a scope; None if it can, or if that is unknown."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # not written in Python
        return None
    try:
        signature.bind(scope)
    except TypeError as error:
        return str(error)
    return None


def check_agent(agent: Any, scope: Scope) -> None:
    """Check that `agent` has all required members.

    Raises:
        AgentError: Members are missing; the message names them.
    """
    if missing := missing_members(agent, Agent):
        raise AgentError(
            f"the agent of scope {scope.index}, {type(agent).__qualname__}, lacks {', '.join(missing)}; "
            "add them with skrl's signatures"
        )


def check_fit(agent: Any, scope: Scope, framework: Framework, observation_space: Spaces) -> None:
    """Check that an agent is made for this framework and these environments, as far as it declares this.

    Args:
        agent: The agent.
        scope: Its scope.
        framework: The trainer's framework.
        observation_space: Observation space of one environment; by agent name in a multi-agent environment.

    Raises:
        AgentError: The agent is made for another framework, other agents or observations of another width.
    """
    kind = f"the agent of scope {scope.index}, {type(agent).__module__}.{type(agent).__qualname__},"
    given = getattr(agent, "framework", framework.name)
    if given != framework.name and given in available_frameworks():
        raise AgentError(f"{kind} is for {given!r}, but the trainer is for {framework.name!r}")
    names = getattr(agent, "possible_agents", None)
    if not isinstance(observation_space, dict):
        if names is not None:
            raise AgentError(f"{kind} is a multi-agent for {list(names)}, but the environments have a single agent")
        _check_width(agent, kind, getattr(agent, "observation_space", None), observation_space)
        return
    own_spaces = getattr(agent, "observation_spaces", None) or {}
    if names is None and isinstance(getattr(agent, "observation_space", None), gymnasium.Space):
        raise AgentError(
            f"{kind} is a single agent, but the environments have the agents {list(observation_space)}; "
            "pass a multi-agent, such as workers.agents.independent.IndependentAgents"
        )
    if names is not None and set(names) != set(observation_space):
        raise AgentError(f"{kind} is for the agents {list(names)}, but the environments have {list(observation_space)}")
    for name, space in observation_space.items():
        _check_width(agent, f"{name!r} of {kind}", own_spaces.get(name), space)


def asked_shapes(agent: Any, scope: Scope, observation_space: Spaces) -> Any:
    """Return the shapes of the observations if the agent requests them unflattened, else None.

    Returns:
        A shape, or in a multi-agent environment a dictionary of shapes by agent name.

    Raises:
        AgentError: A space is not a Box.
    """
    if not getattr(agent, "unflatten_observations", False):
        return None
    if isinstance(observation_space, dict):
        return {name: asked_shapes(agent, scope, space) for name, space in observation_space.items()}
    if not isinstance(observation_space, gymnasium.spaces.Box):
        raise AgentError(
            f"the agent of scope {scope.index} requests unflattened observations, but the observation space is "
            f"{observation_space}; expected a Box"
        )
    return (scope.num_envs, *observation_space.shape)


def _check_width(agent: Any, owner: str, own_space: Any, space: Any) -> None:
    expected, given = _width(own_space), _width(space)
    if expected is not None and given is not None and expected != given:
        raise AgentError(
            f"{owner} expects observations of width {expected} ({own_space}), "
            f"but those of the environments have width {given} ({space})"
        )


def _width(space: Any) -> int | None:
    return flatdim(space) if isinstance(space, gymnasium.Space) and space.is_np_flattenable else None


def checked_pair(acted: Any) -> tuple[Arrays, dict[str, Any]]:
    """Return the actions and outputs that ``act`` returned."""
    if not isinstance(acted, tuple):
        given = f"an object of type {type(acted).__qualname__}"
    elif len(acted) != 2:
        given = f"a tuple of {len(acted)}"
    elif not isinstance(acted[1], dict):
        given = f"outputs of type {type(acted[1]).__qualname__}"
    else:
        return acted
    raise AgentError(
        f"act() returned {given}; expected (actions, outputs), where outputs is a dictionary, such as {{}}"
    )
