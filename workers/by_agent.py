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


def row_splitter(framework: Framework, sizes: Sequence[int]) -> Callable[[Any], Sequence[Any]]:
    """A function that gives groups of rows, ``sizes[i]`` rows in the i-th, as fresh copies; of None it gives None.

    Copies, because a view may give other bits than a remote agent sees.
    """
    split, copy = framework.split, framework.copy
    nothing = (None,) * len(sizes)

    def split_rows(tree: Any) -> Sequence[Any]:
        if tree is None:
            return nothing
        if isinstance(tree, dict):
            # agents may have one and the same array, such as a global state, which may be large
            parts = {id(value): split_rows(value) for value in {id(value): value for value in tree.values()}.values()}
            return [{name: parts[id(value)][i] for name, value in tree.items()} for i in range(len(sizes))]
        return (copy(tree),) if len(sizes) == 1 else split(tree, sizes)

    return split_rows
