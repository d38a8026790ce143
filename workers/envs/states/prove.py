"""The proof that a form keeps an environment: a copy that was restored goes on like the one that was stored."""

from __future__ import annotations

import copy
import ctypes
import gc
import random
import socket
import subprocess
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import IOBase
from multiprocessing.process import BaseProcess
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from workers.envs.states.copy import choose, progress, set_progress, step
from workers.envs.states.forms import Form
from workers.envs.states.generators import generator_states
from workers.envs.states.log import CopyLog, Trace
from workers.envs.states.values import Unsuitable, same, stack
from workers.envs.statistics import layers
from workers.errors import type_name
from workers.frameworks import Framework

__all__ = ["NoProof", "harmless", "prove", "reason_of"]

_SEED = 1
_STEPS = 6
_MOST_BYTES = 200 * 2**20
_MOST_OBJECTS = 200_000
_LONGEST_TOLD = 200
"""Most characters of an exception that a reason tells."""


class NoProof(Unsuitable):
    """A copy cannot be duplicated."""


def prove(form: Form, original: Any, framework: Framework, *, in_use: bool) -> str:
    """Restore a duplicate of a copy from the state of another duplicate, and compare how both go on.

    The copy itself is not used: counters and statistics that outlive resets would change.

    Args:
        form: The form.
        original: A copy, as in `workers.envs.states.copy`.
        framework: The environments' framework.
        in_use: Whether the copy has been reset. A duplicate may hold the number of a simulator in another library, and
            would move the copy's: then only classes of Gymnasium, PettingZoo and MPE are duplicated. Before the first
            reset it does no harm.

    Returns:
        Why the form does not keep it; empty if it does.

    Raises:
        NoProof: The copy cannot be duplicated.
    """
    driven, other = _duplicates(original, in_use)
    try:
        drive = _Drive(driven, framework)
        drive.reset(_SEED)
        drive.play(_STEPS)
        drive.reset(None)
        drive.play(_STEPS // 2)
        state, at = form.read(driven, drive.trace, framework), progress(driven)
        start = len(drive.calls)
        drive.play(_STEPS)
        drive.reset(None)
        drive.play(_STEPS)
        form.write(other, state, framework)
        set_progress(other, at)
        return _compare(other, drive.calls[start:], framework)
    except Exception as error:  # the environment is the user's; whatever it raises is a reason
        return reason_of(error)


def reason_of(error: Exception) -> str:
    """Return an exception as a reason in a few words."""
    text = str(error) if isinstance(error, Unsuitable) else f"{type_name(type(error))}: {error}"
    # as a whole or not at all: a part of a secret would not be concealed
    return text if 0 < len(text) <= _LONGEST_TOLD else type_name(type(error))


class _Drive:
    """Plays random actions, and records each call with what it gave."""

    def __init__(self, driven: Any, framework: Framework) -> None:
        self.calls: list[tuple[Any, list[Any]]] = []
        self._copy = driven
        self._framework = framework
        self._generator = np.random.default_rng(_SEED)
        self._observation: Any = None
        self._log = CopyLog()
        self._steps: list[tuple[Any, Any]] = []

    def reset(self, seed: int | None) -> None:
        self._log.reset(self._copy.env, seed, 0)
        self._steps = []
        self._observation, _ = self._copy.reset(seed)
        self.calls.append((_RESET, _record(self._copy, [self._observation], self._framework)))

    def play(self, steps: int) -> None:
        for _ in range(steps):
            actions = choose(self._copy, self._observation, self._generator)
            kept = _copied(actions, self._framework)
            given = step(self._copy, actions)
            self._observation = given[0]
            self._steps.append((kept, _copied(given[1], self._framework)))
            self.calls.append((kept, _record(self._copy, given, self._framework)))
            if self._copy.is_over:
                self.reset(None)

    def trace(self) -> Trace:
        trace = self._log.trace()
        if not self._steps:
            return trace
        actions, rewards = stack(self._steps)
        return trace._replace(actions=actions, rewards=rewards, length=len(self._steps))


_RESET = object()
"""Marks a reset among actions."""


def _record(driven: Any, given: Sequence[Any], framework: Framework) -> list[Any]:
    """Return copies of what a call gave, with the states of the generators and the agents in the episode."""
    return [*_copied(list(given), framework), generator_states(driven.env), progress(driven)]


def _compare(other: Any, calls: list[tuple[Any, list[Any]]], framework: Framework) -> str:
    """Repeat calls; return which output differs, or nothing."""
    for at, (actions, expected) in enumerate(calls):
        given = _record(
            other, [other.reset()[0]] if actions is _RESET else step(other, _copied(actions, framework)), framework
        )
        names = ("observation after a reset", *_AFTER) if actions is _RESET else (*_OUTPUTS, *_AFTER)
        for name, one, another in zip(names, given, expected, strict=True):
            if not same(one, another, framework):
                return f"the {name} of a restored copy differs after {at + 1} calls"
    return ""


def _copied(value: Any, framework: Framework) -> Any:
    """Return a deep copy. Some arrays of frameworks, such as Warp's, can only be copied by these."""
    if isinstance(value, dict):
        return {key: _copied(item, framework) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(item, framework) for item in value)
    return framework.copy(value) if framework.is_array(value) else copy.deepcopy(value)


_OUTPUTS = ("observation", "reward", "terminated flag", "truncated flag")
_AFTER = ("random generator", "set of agents")


def _duplicates(original: Any, in_use: bool) -> tuple[Any, Any]:
    kinds = [type(layer) for layer in layers(original.env)]
    if in_use and (foreign := [kind for kind in kinds if kind.__module__.partition(".")[0] not in _KNOWN]):
        raise NoProof(
            f"it has been reset, and a copy of {type_name(foreign[0])} may share a simulator with it, so it is not "
            "tried on a copy any more; call save() before the first iteration"
        )
    _check_duplicable(original)
    try:
        return copy.deepcopy(original), copy.deepcopy(original)
    except Exception as error:  # the classes are the user's
        raise NoProof(f"it cannot be copied, to try it on a copy ({type_name(type(error))})") from error


def _check_duplicable(original: Any) -> None:
    """Check that the end of a deep copy cannot harm the original, and that it does not take much memory.

    A copy of a pipe to a process, for example, closes the original's when it is freed: Gymnasium's ``AsyncVectorEnv``
    does not survive that. References are followed as the garbage collector does, but not into objects that say
    themselves how they are copied, such as Gymnasium's ``EzPickle``.

    Raises:
        NoProof: It refers to an object with a finalizer, a process, a thread or a file, or to more than 200 MB.
    """
    queue, seen, size = deque([original]), set[int](), 0
    while queue and len(seen) < _MOST_OBJECTS:
        value = queue.popleft()
        if id(value) in seen or isinstance(value, _SHARED):
            continue
        seen.add(id(value))
        kind = type(value)
        if isinstance(value, _RESOURCES) or (hasattr(kind, "__del__") and not isinstance(value, VectorEnv)):
            raise NoProof(f"it refers to a {type_name(kind)}, so it is not tried on a copy")
        if _is_array(kind):
            size += value.nbytes if isinstance(value.nbytes, int) else 0
            if size > _MOST_BYTES:
                raise NoProof(f"its arrays have more than {_MOST_BYTES // 2**20} MB, so it is not tried on a copy")
        elif not _copies_itself(kind):
            queue.extend(gc.get_referents(value))


_KNOWN = ("gymnasium", "mpe2", "pettingzoo")
"""Packages whose environments share nothing with their copies."""

_SHARED = (ModuleType, FunctionType, type)
"""What a deep copy shares with the original."""

_RESOURCES = (BaseProcess, subprocess.Popen, threading.Thread, IOBase, socket.socket, ctypes.CDLL)


def _is_array(kind: type) -> bool:
    return hasattr(kind, "nbytes") and (hasattr(kind, "__array__") or hasattr(kind, "__cuda_array_interface__"))


def _copies_itself(kind: type) -> bool:
    methods = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__")
    return any(name in vars(base) for base in kind.__mro__[:-1] for name in methods)


@contextmanager
def harmless(framework: Framework) -> Iterator[None]:
    """Leave the global random generators of the process as they are, and do not repeat the environments' warnings."""
    legacy, python, own = np.random.get_state(legacy=False), random.getstate(), framework.rng_state()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        np.random.set_state(legacy)
        random.setstate(python)
        framework.set_rng_state(own)
