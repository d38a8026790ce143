"""The attributes of the layers of an environment, stored and set by value."""

from __future__ import annotations

from typing import Any

from workers.envs.states.generators import is_generator
from workers.envs.states.values import STATIC, Unsuitable, decode, encode, same
from workers.envs.statistics import layers
from workers.frameworks import Framework

__all__ = ["read_attributes", "write_attributes"]

_SKIPPED = {"_ezpickle_args", "_ezpickle_kwargs", "_saved_kwargs", "metadata"}
"""How an environment was made, and what it says of itself."""


def read_attributes(
    layer: Any, framework: Framework, *, ignored: tuple[type, ...] = (), partly: bool = False
) -> dict[str, Any]:
    """Return the attributes of one layer that may change, as trees; without generators, which are kept by their paths.

    Args:
        layer: A wrapper or an environment; not what it wraps.
        framework: The framework of its arrays.
        ignored: Types of attributes that are kept in another way.
        partly: Whether attributes that are neither plain nor static are left out.

    Raises:
        Unsuitable: An attribute is neither plain nor static; the message names it.
    """
    inner = {id(one) for one in layers(layer)}
    attributes = {}
    for name, value in vars(layer).items():
        if name in _SKIPPED or id(value) in inner or is_generator(value) or isinstance(value, ignored):
            continue
        try:
            tree = encode(value, framework)
        except Unsuitable as reason:
            if partly:
                continue
            raise Unsuitable(f"{type(layer).__name__}.{name} is or has {reason}") from reason
        if tree is not STATIC:
            attributes[name] = tree
    return attributes


def write_attributes(layer: Any, attributes: dict[str, Any], framework: Framework, *, in_place: bool = False) -> None:
    """Set attributes of one layer to stored values; those that have them already are left alone, as are their aliases.

    Args:
        layer: A wrapper or an environment.
        attributes: Trees of `read_attributes`.
        framework: The framework of its arrays.
        in_place: See `decode`.
    """
    for name, tree in attributes.items():
        current = vars(layer).get(name)
        if name not in vars(layer) or not _has(current, tree, framework):
            vars(layer)[name] = decode(tree, framework, current, in_place=in_place)


def _has(current: Any, tree: Any, framework: Framework) -> bool:
    try:
        return same(encode(current, framework), tree, framework)
    except Unsuitable:
        return False
