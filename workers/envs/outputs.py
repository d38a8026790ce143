"""Checks of what environments give, whatever their wrapper: kinds of arrays, shapes, and finite numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces.utils import flatdim

from workers.envs.checking import is_multi_agent
from workers.errors import EnvError, mark_row, type_name
from workers.frameworks import Framework
from workers.types import Arrays, Outcome, Transition

__all__ = ["EnvChecks"]

_READ_INTERVAL = 16
"""Number of steps after which the number of the first bad step travels from a device to the host."""


class EnvChecks:
    """Checks of the outputs of one environment in every step.

    On the CPU, a step with NaN or infinity is refused at once. On another device that would wait for the device, so the
    number of the first bad step is kept there and read a few steps later.
    """

    def __init__(self, env: Any, framework: Framework) -> None:
        """Prepare the checks.

        Args:
            env: The environment. If it has a true attribute ``allow_nonfinite``, its numbers need not be finite.
            framework: The trainer's framework.
        """
        suffix = "s" if is_multi_agent(env) else ""
        self._widths = _widths(getattr(env, f"observation_space{suffix}"))
        self._state_widths = _widths(getattr(env, f"state_space{suffix}", None))
        self._env = env
        self._framework = framework
        self._num_envs = int(env.num_envs)
        self._kinds: set[type] = set()  # of the arrays of the first step
        self._flat, self._column = (self._num_envs, self._widths), (self._num_envs, 1)
        self._is_finite_needed = not getattr(env, "allow_nonfinite", False)
        self._uses_alive = not getattr(env, "dead_rows_are_zero", False)
        self._alive: list[Mapping[str, Any]] = [{}, {}]  # before and after the step, if the environment says so
        self._first_bad: Any = None  # on a device: the timestep of the first bad step, negative if there is none
        self._read: Any = None
        self._added = 0

    def check_reset(self, observations: Arrays, states: Arrays | None, infos: dict[str, Any], timestep: int) -> None:
        """Check what ``reset`` and ``state`` returned.

        Raises:
            EnvError: An array is of another kind or shape, or is not finite; the error is marked with the row.
        """
        self._alive = [_alive(infos)] * 2
        self._check_arrays("observations", observations, self._widths)
        self._check_arrays("states", states, self._state_widths)
        self._check_finite([("observations", observations), ("states", states)], timestep)

    def check_step(self, outcome: Outcome, states: Arrays | None, transition: Transition, timestep: int) -> None:
        """Check what ``step`` and ``state`` returned, and the true final observations and states.

        Raises:
            EnvError: As for `check_reset`.
        """
        observations, rewards, terminated, truncated, infos = outcome
        if infos and self._uses_alive:
            self._alive = [self._alive[1], _alive(infos)]
        if not self._are_as_usual(observations, rewards, terminated, truncated):
            self._check_arrays("observations", observations, self._widths)
            self._check_arrays("rewards", rewards, 1)
            self._check_arrays("terminated", terminated, 1)
            self._check_arrays("truncated", truncated, 1)
            self._kinds = set() if isinstance(observations, dict) else {type(observations)}
        self._check_arrays("states", states, self._state_widths)
        given = [("observations", observations), ("rewards", rewards), ("states", states)]
        if transition.next_observations is not observations:
            given.append(("final observations", transition.next_observations))
        if transition.next_states is not states:
            given.append(("final states", transition.next_states))
        self._check_finite(given, timestep)

    def _are_as_usual(self, observations: Any, rewards: Any, terminated: Any, truncated: Any) -> bool:
        """Return whether these are flat arrays that need no further check, in a fifth of its time."""
        kinds, column = {type(observations), type(rewards), type(terminated), type(truncated)}, self._column
        return (
            kinds == self._kinds
            and observations.shape == self._flat
            and rewards.shape == column
            and terminated.shape == column
            and truncated.shape == column
        )

    def read(self) -> None:
        """Wait for the device, and check all steps up to now.

        Raises:
            EnvError: One of them was not finite.
        """
        if self._first_bad is not None:
            self._tell(self._framework.read_later(self._first_bad)())

    @property
    def _name(self) -> str:
        return f"environment {type(self._env).__qualname__}"

    def _check_arrays(self, what: str, arrays: Any, widths: Any) -> None:
        if isinstance(arrays, dict):
            for name, array in arrays.items():
                if array is not None:
                    self._check_array(what, name, array, widths.get(name) if isinstance(widths, dict) else widths)
        elif arrays is not None:
            self._check_array(what, None, arrays, widths)

    def _check_array(self, what: str, name: str | None, array: Any, width: int | None) -> None:
        rows, is_array = self._num_envs, self._framework.is_array(array)
        if is_array and array.shape == (rows, width):
            return
        shape = tuple(array.shape) if is_array else ()
        if len(shape) > 1 and shape[0] == rows:
            size = math.prod(shape[1:])
            # rewards and flags are columns; the elements of an observation or a state may have any shape
            if width is None or (size == width and what in ("observations", "states")):
                return
        given = f"shape {shape}" if is_array else f"type {type_name(type(array))}"
        expected = f"({rows}, {'size' if width is None else width})"
        raise EnvError(
            f"{self._name}: {_of(what, name)} have {given}; expected a {self._framework.name} array of shape {expected}"
        )

    def _check_finite(self, given: list[tuple[str, Any]], timestep: int) -> None:
        if not self._is_finite_needed:
            return
        framework, elsewhere = self._framework, []
        for what, arrays in given:
            if arrays is None:
                continue
            for name, array in _each(arrays) if isinstance(arrays, dict) else ((None, arrays),):
                if not framework.is_on_host(array):
                    elsewhere.append(array)
                elif not framework.is_finite(array):
                    self._refuse(what, name, array)
        if elsewhere:
            self._add(elsewhere, timestep)

    def _refuse(self, what: str, name: str | None, array: Any) -> None:
        """Raise an error for the first row that is not finite, unless its agent is dead."""
        values = self._framework.to_numpy(array).reshape(self._num_envs, -1)
        bad = ~np.isfinite(values)
        masks = [
            np.reshape(self._to_numpy(alive[name]), (-1, 1))
            for alive in self._alive
            if name is not None and name in alive
        ]
        if masks:
            bad &= masks[0] if what == "rewards" else np.logical_or.reduce(masks)
        rows = np.flatnonzero(bad.any(axis=1))
        if not rows.size:
            return
        row = int(rows[0])
        column = int(np.flatnonzero(bad[row])[0])
        where = "" if values.shape[1] == 1 else f" in column {column}"
        others = f" (and in {len(rows) - 1} more environments)" if len(rows) > 1 else ""
        error = EnvError(
            f"{self._name}: {_of(what, name)} are {values[row, column]}{where}{others}; expected finite numbers. "
            "Correct the environment, or set allow_nonfinite=True (make_env, wrap_env, EnvFactory, or "
            "env.allow_nonfinite of a configuration)"
        )
        mark_row(error, row, type(self._env).__qualname__)
        raise error

    def _to_numpy(self, array: Any) -> Any:
        return self._framework.to_numpy(array) if self._framework.is_array(array) else array

    def _add(self, arrays: Iterable[Any], timestep: int) -> None:
        """Check arrays on a device without waiting for it."""
        self._first_bad = self._framework.first_bad(self._first_bad, timestep, list(arrays))
        self._added += 1
        if not self._added % _READ_INTERVAL:
            earlier, self._read = self._read, self._framework.read_later(self._first_bad)
            if earlier is not None:
                self._tell(earlier())

    def _tell(self, first_bad: int) -> None:
        if first_bad >= 0:
            raise EnvError(
                f"{self._name}: observations, states or rewards are not finite since timestep {first_bad}; correct the "
                "environment, or set allow_nonfinite=True"
            )


def _widths(spaces: Any) -> Any:
    """Return the number of elements of a sample; by agent name for a dictionary; None if unknown."""
    if isinstance(spaces, Mapping) and not isinstance(spaces, gymnasium.Space):
        return {name: _widths(space) for name, space in spaces.items()}
    return flatdim(spaces) if isinstance(spaces, gymnasium.Space) and spaces.is_np_flattenable else None


def _each(arrays: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each different array with the name of its first agent."""
    different = {id(array): (name, array) for name, array in reversed(arrays.items()) if array is not None}
    yield from different.values()


def _alive(infos: Mapping[str, Any]) -> Mapping[str, Any]:
    alive = infos.get("alive")
    return alive if isinstance(alive, dict) else {}


def _of(what: str, name: str | None) -> str:
    return what if name is None else f"{what} of {name!r}"
