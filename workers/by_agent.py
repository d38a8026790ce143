"""Functions for arrays of rows, for dictionaries of them by agent name in multi-agent environments, and for trees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from workers.frameworks import Framework

__all__ = ["concatenate_rows", "map_arrays", "map_tree", "row_splitter"]


def map_arrays(function: Callable[..., Any], first: Any, *others: Any) -> Any:
    """Apply `function` to the arrays; apply it by agent name to dictionaries, and return a dictionary."""
    if isinstance(first, dict):
        return {name: function(value, *(other[name] for other in others)) for name, value in first.items()}
    return function(first, *others)


def map_tree(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply `function` to the leaves of a tree of dictionaries and tuples; named tuples keep their class."""
    if isinstance(tree, dict):
        return {key: map_tree(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        parts = (map_tree(function, value) for value in tree)
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return function(tree)


def concatenate_rows(parts: Sequence[Any], framework: Framework) -> Any:
    """Concatenate the rows of all parts into fresh arrays; every part has the same agents."""
    if isinstance(parts[0], dict):
        return {name: concatenate_rows([part[name] for part in parts], framework) for name in parts[0]}
    return framework.concatenate(parts)


def row_splitter(framework: Framework, sizes: Sequence[int], *, by_agent: bool) -> Callable[[Any], Sequence[Any]]:
    """Return a function that splits arrays into fresh copies of groups of rows, ``sizes[i]`` rows in the i-th.

    It copies because computations on a view may give different bits than on the array of a remote agent.

    Args:
        framework: Framework of the arrays.
        sizes: Number of rows of each group.
        by_agent: Whether the function takes dictionaries by agent name, whose values may be None.
    """
    split, copy, nothing = framework.split, framework.copy, (None,) * len(sizes)

    def split_array(array: Any) -> Sequence[Any]:
        return (copy(array),) if len(sizes) == 1 else split(array, sizes)

    def split_each(arrays: dict[str, Any]) -> Sequence[Any]:
        # agents may share one array, such as a global state, which may be large: split it once
        parts = {id(array): nothing if array is None else split_array(array) for array in _different(arrays)}
        return [{name: parts[id(array)][i] for name, array in arrays.items()} for i in range(len(sizes))]

    if by_agent:
        return split_each
    # no intermediate call: this runs several times per step and agent
    return (lambda array: (copy(array),)) if len(sizes) == 1 else (lambda array: split(array, sizes))


def _different(arrays: dict[str, Any]) -> list[Any]:
    return list({id(array): array for array in arrays.values()}.values())
