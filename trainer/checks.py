"""Checks of a trainer's arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from operator import index
from typing import Any

from orchestrator import LocalOrchestrator
from orchestrator.base import Orchestrator
from workers.envs import EnvFactory
from workers.envs.checking import check_num_envs, check_wrapped
from workers.errors import AgentError, ConfigError, DivergedError, EnvError, ScopeError
from workers.frameworks import Framework
from workers.members import is_factory, missing_members
from workers.scope.checks import check_agent
from workers.storage.agent_file import check_alike
from workers.types import Description, Scope, is_integer

__all__ = [
    "check_agents",
    "check_clone",
    "checked_count",
    "checked_index",
    "checked_num_envs",
    "checked_seed",
    "is_number",
    "resolve_orchestrator",
]


def resolve_orchestrator(orchestrator: Any) -> Orchestrator:
    """Return the orchestrator object. Ray is imported only if the orchestrator needs it."""
    if orchestrator == "local":
        return LocalOrchestrator()
    if orchestrator == "ray":
        from orchestrator.ray import RayOrchestrator

        return RayOrchestrator()
    if isinstance(orchestrator, type) or missing_members(orchestrator, Orchestrator):
        raise ConfigError(
            f"orchestrator is {orchestrator!r}; expected 'local', 'ray', a LocalOrchestrator or a RayOrchestrator"
        )
    started: Orchestrator = orchestrator
    return started


def checked_seed(seed: Any) -> int | None:
    """Return the seed as an integer, or None."""
    if seed is None:
        return None
    try:
        value = index(seed)
    except TypeError as error:
        raise ConfigError(f"seed is {seed!r}; expected an integer of at least 0, or None") from error
    if value < 0:
        raise ConfigError(f"seed is {value}; expected an integer of at least 0, or None")
    return value


def checked_count(name: str, value: Any, *, least: int) -> int:
    """Return `value` as an integer, at least `least`."""
    try:
        count = index(value)
    except TypeError as error:
        raise ConfigError(f"{name} is {value!r}; expected an integer of at least {least}") from error
    if count < least:
        raise ConfigError(f"{name} is {count}; expected {least} or more")
    return count


def checked_index(name: str, value: Any, count: int) -> int:
    """Return `value` as the index of one of `count` scopes."""
    if not is_integer(value) or not 0 <= value < count:
        raise ScopeError(f"{name} is {value!r}; expected the index of a scope, from 0 to {count - 1}")
    return int(value)


def is_number(value: Any) -> bool:
    """Return whether a value is a number, and no boolean."""
    return isinstance(value, Real) and not isinstance(value, bool)


def checked_num_envs(env: Any, framework: Framework) -> int:
    """Return the number of environments, after all checks that are possible before building."""
    if not isinstance(env, EnvFactory):
        check_wrapped(env, framework.name)
        return int(env.num_envs)
    if env.framework not in (None, framework.name):
        raise EnvError(f"the environment factory is for {env.framework!r}, but the trainer is for {framework.name!r}")
    check_num_envs(env.num_envs, "the environment factory")
    return env.num_envs


def check_agents(agents: Sequence[Any], scopes: Sequence[Scope]) -> None:
    """Check the agents that are instances: each is complete, and none is in several scopes."""
    instances = [agent for agent in agents if not is_factory(agent)]
    for agent, scope in zip(agents, scopes, strict=True):
        if not is_factory(agent):
            check_agent(agent, scope)
            if sum(agent is other for other in instances) > 1:
                raise AgentError(
                    f"one {type(agent).__qualname__} instance is in several scopes; "
                    "build one instance for each simultaneous agent, or pass a factory for each"
                )


def check_clone(files: Mapping[int, tuple[str, bytes]], workers: Sequence[Description], source: int) -> None:
    """Check that the other agents can take over what the agent of scope `source` has learnt.

    Args:
        files: The agents' files, by scope.
        workers: Description of the workers of all scopes.
        source: Index of the scope whose agent is copied.
    """
    given = workers[source]
    for target in sorted(files.keys() - {source}):
        own = workers[target]
        try:
            if own.agent != given.agent:
                raise AgentError(f"it is a {own.agent}")
            if own.architecture != given.architecture:
                raise AgentError(f"it has {own.architecture or 'no architecture'}; expected {given.architecture}")
            check_alike(files[source], files[target])
        except (AgentError, DivergedError) as error:
            raise type(error)(
                f"the agent of scope {target} cannot take over the state of that of scope {source}, a {given.agent}: "
                f"{error}"
            ) from error
