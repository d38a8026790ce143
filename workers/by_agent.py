"""Arrays of rows, or in a multi-agent environment dictionaries of them by agent name: the same functions take both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from workers.frameworks import Framework

__all__ = ["concatenate_rows", "map_arrays", "row_splitter"]


def map_arrays(function: Callable[..., Any], first: Any, *others: Any) -> Any:
    """What `function` makes of the arrays, or of those of each agent: a dictionary by name then, as `first` is one."""
    if isinstance(first, dict):
        return {name: function(value, *(other[name] for other in others)) for name, value in first.items()}
    return function(first, *others)


def concatenate_rows(parts: Sequence[Any], framework: Framework) -> Any:
    """The rows of all parts, one after the other, as fresh arrays; every part has the same agents."""
    if isinstance(parts[0], dict):
        return {name: concatenate_rows([part[name] for part in parts], framework) for name in parts[0]}
    return framework.concatenate(parts)


def row_splitter(framework: Framework, sizes: Sequence[int], *, by_agent: bool) -> Callable[[Any], Sequence[Any]]:
    """A function that gives groups of rows, ``sizes[i]`` rows in the i-th, as fresh copies.

    Copies, because a view may give other bits than a remote agent sees.

    Args:
        framework: Whose arrays they are.
        sizes: Number of rows of each group.
        by_agent: Whether it is given dictionaries by agent name, in which there may be None.
    """
    split, copy, nothing = framework.split, framework.copy, (None,) * len(sizes)

    def split_array(array: Any) -> Sequence[Any]:
        return (copy(array),) if len(sizes) == 1 else split(array, sizes)

    def split_each(arrays: dict[str, Any]) -> Sequence[Any]:
        # agents may have one and the same array, such as a global state, which may be large
        parts = {id(array): nothing if array is None else split_array(array) for array in _different(arrays)}
        return [{name: parts[id(array)][i] for name, array in arrays.items()} for i in range(len(sizes))]

    if by_agent:
        return split_each
    # without a call between: it runs several times a step and agent
    return (lambda array: (copy(array),)) if len(sizes) == 1 else (lambda array: split(array, sizes))


def _different(arrays: dict[str, Any]) -> list[Any]:
    return list({id(array): array for array in arrays.values()}.values())
