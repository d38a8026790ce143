"""The state of wrapped environments: by row where they are made of copies, else as a whole."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from workers.envs.states.choice import NONE, Memory, choose_form, not_kept, remembered_choice
from workers.envs.states.copy import WholeCopy
from workers.envs.states.log import ActionLog
from workers.envs.states.rows import check_rows, read_rows, write_rows
from workers.envs.states.whole import check_whole, read_whole, read_wrappers, write_whole, write_wrappers
from workers.envs.statistics import layers
from workers.errors import EnvError, type_name
from workers.frameworks import Framework
from workers.types import is_integer

__all__ = [
    "NOT_KEPT",
    "EnvState",
    "check_state",
    "explain_state",
    "prepare_state",
    "read_state",
    "set_replay_limit",
    "write_state",
]


class EnvState(NamedTuple):
    """The state of wrapped environments, as trees of plain data and arrays.

    Attributes:
        rows: The tree of each row; None if the environments can only be kept as a whole.
        whole: The tree of environments, or of wrappers around them, that can only be kept as a whole; None if there are
            none.
    """

    rows: list[dict[str, Any]] | None
    whole: dict[str, Any] | None


NOT_KEPT = EnvState(None, {"form": NONE})
"""The state of environments whose episodes do not go on: all are truncated when it is restored."""


def prepare_state(env: Any, framework: Framework, *, allow_pickle: bool) -> None:
    """Find the form that keeps environments before their first reset; if none does, log the reasons and a remedy once.

    Without this call the first `read_state` does it, when fewer environments can be tried on copies.

    Args:
        env: Wrapped environments.
        framework: The trainer's framework.
        allow_pickle: Whether the state may hold objects that only pickle can store.
    """
    remembered_choice(_first_copy(env, framework), _memory_of(env), framework, allow_pickle=allow_pickle, in_use=False)


def read_state(env: Any, framework: Framework, *, allow_pickle: bool) -> EnvState:
    """Return the state between two iterations; what cannot be kept is logged once, with the reasons and a remedy.

    Args:
        env: Wrapped environments.
        framework: The trainer's framework.
        allow_pickle: Whether the state may hold objects that only pickle can store.
    """
    memory = _memory_of(env)
    wrappers, copies = _parts(env)
    if copies is None:
        return EnvState(None, read_whole(env, memory, framework, allow_pickle=allow_pickle))
    whole = read_wrappers(env, wrappers, memory, framework) if wrappers else None
    if whole is not None and whole["form"] == NONE:
        return EnvState(None, whole)
    return EnvState(read_rows(copies, memory, framework, allow_pickle=allow_pickle), whole)


def check_state(env: Any, framework: Framework, state: EnvState) -> None:
    """Check that a state can belong to these environments; nothing is changed.

    Args:
        env: Wrapped environments.
        framework: The trainer's framework.
        state: The state, in which anything may have been stored.

    Raises:
        EnvError: It cannot: it has another number of rows, an unknown form, or missing or odd parts.
    """
    try:
        _check(env, framework, state)
    except EnvError:
        raise
    except Exception as error:  # a tree may hold anything, whose methods may raise anything
        kind = type_name(type(error))
        raise EnvError(f"the stored state of {env} is damaged ({kind}: {error}); use another one") from error


def _check(env: Any, framework: Framework, state: EnvState) -> None:
    wrappers, copies = _parts(env)
    rows, whole = state
    if rows is None:
        check_whole(env, whole, framework, has_rows=False)
        return
    if copies is None:
        raise EnvError(f"{env} can only be restored as a whole, but its state was stored by row")
    check_rows(copies, rows, framework)
    if whole is not None:
        check_whole(env, whole, framework, has_rows=True)
    stored = [] if whole is None else [part["class"] for part in whole["layers"]]
    if stored != (given := [type(wrapper).__qualname__ for wrapper in wrappers]):
        raise EnvError(f"{env} has the wrappers {given}; stored is the state of {stored}")


def write_state(env: Any, framework: Framework, state: EnvState) -> npt.NDArray[np.bool_]:
    """Restore environments that were built alike; each step's results go on as if they had not been stopped.

    Rows that do not arrive are named in a warning. They show the stored observation, and are truncated with it in their
    next step, in which their environment is not stepped.

    Args:
        env: Wrapped environments, new or used.
        framework: The trainer's framework.
        state: A state that `check_state` accepts.

    Returns:
        ``(num_envs,)`` bool, True in the rows that were not restored. If environments that can only be kept as a whole
        were not, nothing is truncated and all are True.
    """
    wrappers, copies = _parts(env)
    rows, whole = state
    if rows is None or copies is None:
        assert whole is not None
        return np.full(env.num_envs, not write_whole(env, whole, framework))
    lost = write_rows(copies, _name_of(env), rows, framework)
    if whole is not None:
        write_wrappers(wrappers, whole, framework)
    return lost


def explain_state(env: Any, framework: Framework) -> str:
    """Return which form keeps environments without pickling, or why none does and what to do.

    Args:
        env: Wrapped environments that nobody steps afterwards without a reset.
        framework: The trainer's framework.
    """
    copy = _first_copy(env, framework)
    choice = choose_form(copy, framework, allow_pickle=False, in_use=False)
    if choice.form is None:
        return not_kept(choice, copy, _name_of(env))
    proof = (
        "as a restored copy went on exactly" if choice.is_proved else "without a proof: it cannot be tried on a copy"
    )
    return f"kept {_HOW[choice.form.name]}, {proof}; what outlives resets and does not show is beyond the proof"


_HOW = {
    "own": "by its own state",
    "mujoco": "by MuJoCo's state, generators and attributes",
    "replay": "by its generators, and actions that are played back",
    "attributes": "by its attributes and generators",
    "arrays": "as a whole, by its arrays, attributes and generators",
}


def set_replay_limit(env: Any, limit: int) -> None:
    """Set after how many actions since its last reset a copy is no longer restored by playing them back.

    The log of actions holds at most about twice as many. Environments that are not made of copies have none.

    Args:
        env: Wrapped environments.
        limit: The number of actions, 10,000 by default; 0 keeps no log.

    Raises:
        EnvError: `limit` is not an integer of at least 0.
    """
    if not is_integer(limit) or limit < 0:
        raise EnvError(f"the replay limit is {limit!r}; expected an integer of at least 0")
    _, copies = _parts(env)
    if copies is not None:
        copies.log.set_limit(limit)


def _first_copy(env: Any, framework: Framework) -> Any:
    _, copies = _parts(env)
    return WholeCopy(env, framework) if copies is None else copies.copy_of(0)


def _name_of(env: Any) -> str:
    kind = type(env)
    return kind.__qualname__ if kind.__repr__ is object.__repr__ and kind.__str__ is object.__str__ else str(env)


def _parts(env: Any) -> tuple[list[Any], Any]:
    """Return the wrappers with a state, and the environments made of copies; None if there are none."""
    wrappers: list[Any] = []
    for layer in layers(env):
        if isinstance(vars(layer).get("log"), ActionLog):
            return wrappers, layer
        if not vars(type(layer)).get("is_stateless"):
            wrappers.append(layer)
    return wrappers, None


_memories: dict[int, tuple[Any, Memory]] = {}


def _memory_of(env: Any) -> Memory:
    """Return what is remembered of an environment, which may have a class that cannot be hashed."""
    key = id(env)
    if key not in _memories:
        reference = weakref.ref(env, lambda _: _memories.pop(key, None))
        _memories[key] = reference, Memory(_name_of(env))
    return _memories[key][1]
