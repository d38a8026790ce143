"""Scopes: from environment counts to validated rows of the full batch."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

from workers.errors import ScopeError
from workers.seeding import agent_seed
from workers.types import Scope

__all__ = ["generate_equally_spaced_scopes", "resolve_scopes"]


def generate_equally_spaced_scopes(*, num_envs: int, num_simultaneous_agents: int) -> list[int]:
    """Divide environments as equally as possible; the last agent also gets the remainder.

    Args:
        num_envs: Number of environments.
        num_simultaneous_agents: Number of simultaneous agents.

    Returns:
        Number of environments of each simultaneous agent.

    Raises:
        ScopeError: There are no agents, or fewer environments than agents.
    """
    if num_simultaneous_agents < 1:
        raise ScopeError(f"there are {num_simultaneous_agents} simultaneous agents; expected at least 1")
    if num_simultaneous_agents > num_envs:
        raise ScopeError(
            f"there are more simultaneous agents ({num_simultaneous_agents}) than environments ({num_envs}); "
            "every agent needs an environment"
        )
    share, remainder = divmod(num_envs, num_simultaneous_agents)
    return [share] * (num_simultaneous_agents - 1) + [share + remainder]


def resolve_scopes(
    sizes: Sequence[int] | None, *, num_envs: int, num_simultaneous_agents: int, seed: int | None = None
) -> tuple[Scope, ...]:
    """Return contiguous scopes that cover all environments, one for each simultaneous agent.

    Args:
        sizes: Number of environments of each simultaneous agent; None (or an empty list) divides them equally.
        num_envs: Number of environments.
        num_simultaneous_agents: Number of simultaneous agents.
        seed: The trainer's seed, from which the seed of each scope is derived.

    Raises:
        ScopeError: The sizes are not positive integers, are not one per agent, or do not add up to `num_envs`.
    """
    if sizes is None or (isinstance(sizes, (list, tuple)) and not sizes):
        sizes = generate_equally_spaced_scopes(num_envs=num_envs, num_simultaneous_agents=num_simultaneous_agents)
    try:
        sizes = [index(size) for size in sizes]  # TypeError also for a single number
    except TypeError as error:
        raise ScopeError(f"scopes is {sizes!r}; expected a list of environment counts, such as [32, 32]") from error
    if len(sizes) != num_simultaneous_agents:
        raise ScopeError(
            f"scopes {sizes} have length {len(sizes)}, but there are {num_simultaneous_agents} simultaneous agents; "
            "give one number of environments per agent"
        )
    if min(sizes) < 1:
        raise ScopeError(f"scopes {sizes} contain {min(sizes)}; every agent needs at least 1 environment")
    if sum(sizes) != num_envs:
        raise ScopeError(f"scopes {sizes} add up to {sum(sizes)}, but there are {num_envs} environments")
    stops = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return tuple(
        Scope(i, stop - size, stop, None if seed is None else agent_seed(seed, i))
        for i, (size, stop) in enumerate(zip(sizes, stops, strict=True))
    )
