"""The form that keeps each layer of a copy by its own state, by MuJoCo's, or by its attributes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from workers.envs.states.attributes import read_attributes, write_attributes
from workers.envs.states.generators import are_states, generator_states, set_generators
from workers.envs.states.log import Trace
from workers.envs.states.mujoco import has_simulation, objects_of, read_simulation, write_simulation
from workers.envs.states.own import own_state
from workers.envs.states.values import STATIC, Unsuitable, are_attributes, decode, encode, is_encoded
from workers.envs.statistics import layers
from workers.frameworks import Framework

__all__ = ["Layers", "are_layers", "read_layer", "write_layers"]


class Layers:
    """Each layer by its own state, by MuJoCo's, or by its attributes; and the generators of all."""

    def __init__(self, name: str, *, in_place: bool = False) -> None:
        """Take the name of the form, and whether arrays are written in place; see `decode`."""
        self.name = name
        self._in_place = in_place

    def read(self, copy: Any, trace: Callable[[], Trace], framework: Framework) -> dict[str, Any]:
        """Return the states of the layers, and of the generators by their paths."""
        parts = [read_layer(layer, framework) for layer in _kept(copy.env)]
        if self._in_place and not any(_has_array(part.get("attributes"), framework) for part in parts):
            raise Unsuitable("it has no arrays")
        return {"layers": parts, "generators": generator_states(copy.env)}

    def write(self, copy: Any, state: Any, framework: Framework) -> None:
        """Reset the copy, which makes what the first reset makes, and set its state."""
        copy.reset(seed=0)
        write_layers(_kept(copy.env), state["layers"], framework, in_place=self._in_place)
        set_generators(copy.env, state["generators"])

    def check(self, state: Any, framework: Framework) -> bool:
        """Return whether a tree can be a state of this form."""
        return (
            isinstance(state, dict)
            and are_layers(state.get("layers"), framework)
            and are_states(state.get("generators"))
        )


def _kept(env: Any) -> list[Any]:
    """Return the layers from the outside in, up to the first with a state of its own, which is that of all inside."""
    kept = []
    for layer in layers(env):
        kept.append(layer)
        if own_state(layer) is not None:
            break
    return kept


def read_layer(layer: Any, framework: Framework) -> dict[str, Any]:
    """Return the state of one layer.

    Raises:
        Unsuitable: It has an attribute that cannot be kept.
    """
    part: dict[str, Any] = {"class": type(layer).__qualname__}
    if (own := own_state(layer)) is not None:
        tree = encode(own[0](), framework)
        if tree is STATIC:
            raise Unsuitable("its get_state() returns a function, a space or the like")
        return part | {"own": tree}
    if has_simulation(layer):
        attributes = read_attributes(layer, framework, ignored=objects_of(layer))
        return part | {"simulation": read_simulation(layer), "attributes": attributes}
    return part | {"attributes": read_attributes(layer, framework)}


def write_layers(
    found: Sequence[Any], parts: list[dict[str, Any]], framework: Framework, *, in_place: bool = False
) -> None:
    """Set the states of layers; see `decode` for `in_place`.

    Raises:
        Unsuitable: The layers are others.
    """
    given, stored = [type(layer).__qualname__ for layer in found], [part["class"] for part in parts]
    if given != stored:
        raise Unsuitable(f"it consists of {', '.join(given)}; stored are {', '.join(stored)}")
    for layer, part in zip(found, parts, strict=True):
        if "simulation" in part:
            write_simulation(layer, part["simulation"])
        if "attributes" in part:
            write_attributes(layer, part["attributes"], framework, in_place=in_place)
        elif (own := own_state(layer)) is not None:
            own[1](decode(part["own"], framework))
        else:
            raise Unsuitable(f"{type(layer).__qualname__} has no set_state() any more")


def are_layers(parts: Any, framework: Framework) -> bool:
    """Return whether a tree can hold the states of layers."""
    return isinstance(parts, list) and all(
        isinstance(part, dict)
        and isinstance(part.get("class"), str)
        and (is_encoded(part["own"], framework) if "own" in part else are_attributes(part.get("attributes"), framework))
        and ("simulation" not in part or _is_simulation(part["simulation"]))
        for part in parts
    )


def _has_array(tree: Any, framework: Framework) -> bool:
    if isinstance(tree, (dict, list, tuple)):
        return any(_has_array(part, framework) for part in (tree.values() if isinstance(tree, dict) else tree))
    return isinstance(tree, np.ndarray) or framework.is_array(tree)


def _is_simulation(tree: Any) -> bool:
    if not isinstance(tree, dict) or not isinstance(tree.get("derived"), dict):
        return False
    return all(isinstance(array, np.ndarray) for array in (tree.get("state"), *tree["derived"].values()))
