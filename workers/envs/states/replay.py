"""The form that keeps a copy by the generators before its last reset and its actions since, which are played back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from workers.copying import copy_containers
from workers.envs.sample_rows import take
from workers.envs.states.attributes import write_attributes
from workers.envs.states.copy import step
from workers.envs.states.generators import are_states, generator_states, set_generators
from workers.envs.states.log import Trace
from workers.envs.states.values import Unsuitable, are_attributes, same
from workers.envs.statistics import layers
from workers.frameworks import Framework, load_framework

__all__ = ["Replay", "trace_of"]


class Replay:
    """Arrival is proved by each reward of the way, by an episode that goes on, and by the generators.

    The observation is returned: who has the stored one must compare them.
    """

    name = "replay"

    def read(self, copy: Any, trace: Callable[[], Trace], framework: Framework) -> dict[str, Any]:
        """Return the trace, and the states of the generators on arrival."""
        return {"trace": trace()._asdict(), "generators": generator_states(copy.env)}

    def write(self, copy: Any, state: Any, framework: Framework) -> Any:
        """Reset the copy as it was reset, and play its actions back; return the last observation."""
        trace = trace_of(state)
        if not trace.is_seeded:
            copy.reset(seed=trace.seed or 0)  # makes its generators, and what is only made with the seed
            set_generators(copy.env, trace.generators)
        found = {str(number): layer for number, layer in enumerate(layers(copy.env))}
        for number, attributes in trace.carried.items():
            if number not in found:
                raise Unsuitable("it has fewer wrappers than the stored one")
            write_attributes(found[number], attributes, load_framework("numpy"))
        observation, _ = copy.reset(seed=trace.seed if trace.is_seeded else None)
        for at in range(trace.length):
            observation = _play(copy, trace, at, framework)
        if not same(generator_states(copy.env), state["generators"], framework):
            raise Unsuitable("its random generators arrived in other states")
        return observation

    def check(self, state: Any, framework: Framework) -> bool:
        """Return whether a tree can be a state of this form."""
        return (
            isinstance(state, dict) and are_states(state.get("generators")) and _is_trace(state.get("trace"), framework)
        )


def _is_trace(tree: Any, framework: Framework) -> bool:
    if not isinstance(tree, dict) or tree.keys() != set(Trace._fields):
        return False
    length, seed, carried = tree["length"], tree["seed"], tree["carried"]
    arrays = [*_leaves(tree["actions"]), *_leaves(tree["rewards"])] if length else []
    return (
        type(length) is int
        and (type(seed) is int or (seed is None and tree["is_seeded"] is False))
        and isinstance(tree["is_seeded"], bool)
        and are_states(tree["generators"])
        and isinstance(carried, dict)
        and all(are_attributes(part, framework) for part in carried.values())
        and all(isinstance(array, np.ndarray) and array.shape[:1] == (length,) for array in arrays)
    )


def trace_of(state: dict[str, Any]) -> Trace:
    """Return the trace in a state of `Replay`."""
    return Trace(**state["trace"])


def _play(copy: Any, trace: Trace, at: int, framework: Framework) -> Any:
    # a copy: the environment may change it
    observation, rewards, *_ = step(copy, copy_containers(take(trace.actions, at)))
    if copy.is_over:
        raise Unsuitable(f"its episode ends at action {at}")
    if not same(rewards, take(trace.rewards, at), framework):
        raise Unsuitable(f"its rewards differ at action {at}")
    return observation


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for part in tree.values() for leaf in _leaves(part)]
    return [leaf for part in tree for leaf in _leaves(part)] if isinstance(tree, tuple) else [tree]
