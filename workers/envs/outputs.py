"""Checks of what environments give, whatever their wrapper: agents, kinds of arrays, shapes, and finite numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from workers.by_agent import map_arrays
from workers.envs.base import MultiAgentEnvWrapper, Wrapper
from workers.envs.checking import is_multi_agent
from workers.envs.expected import FLAGS, Expected, expected_of, spaces_of
from workers.errors import EnvError, mark_row, type_name
from workers.frameworks import Framework, Reading
from workers.types import Arrays, Outcome, Transition

__all__ = ["EnvChecks"]

_READ_INTERVAL = 16
"""Number of steps whose probes travel from a device to the host together."""


class EnvChecks:
    """Checks of the outputs of one environment in every step.

    Our base classes must keep their contract. Objects of other libraries may do what skrl's wrappers do: leave out dead
    agents (as PettingZoo does), give a category as one number, floats for a Box of integers, no states in spite of
    a state space, and, if they are skrl's, flags that are floats and images of integers for a Box of floats.

    On the CPU, a step with NaN or infinity is refused at once. On another device that would wait for the device, so a
    probe of each step is kept there, and read a few steps later; values of flags are not read there.

    Attributes:
        name: The environment's name in messages.
    """

    def __init__(self, env: Any, framework: Framework) -> None:
        """Prepare the checks.

        Args:
            env: The environment. If it has a true attribute ``allow_nonfinite``, its numbers need not be finite.
            framework: The trainer's framework.
        """
        self._env = env
        self._framework = framework
        self._is_ours = isinstance(env, (Wrapper, MultiAgentEnvWrapper))
        self._is_users = self._is_ours and not type(env).__module__.startswith("workers.envs.")
        self.name = f"environment {env if self._is_ours else type(env).__qualname__}"
        self._num_envs = int(env.num_envs)
        self._is_team = is_multi_agent(env)
        self._expected = expected_of(env, self._num_envs, is_ours=self._is_ours, is_team=self._is_team)
        state_spaces = spaces_of(env, "state_space", is_team=self._is_team)
        # agents whose states may not be None: those that have had some, too
        self._with_states = {name for name, space in state_spaces.items() if self._is_ours and space is not None}
        self._column = (self._num_envs, 1)
        self._usual: Any = None  # the arrays' type, the observations' shape and the dtypes, once they were checked
        self._is_finite_needed = not getattr(env, "allow_nonfinite", False)
        self._uses_alive = not getattr(env, "dead_rows_are_zero", False)
        self._alive: list[Mapping[str, Any]] = [{}, {}]  # before and after the step, if the environment says so
        self._probes: list[tuple[int, Any]] = []  # on a device, by timestep
        self._reading: tuple[list[int], Reading] | None = None  # those on their way, with a timestep for each number
        self._first_bad: int | None = None  # first timestep whose probe was not finite

    @property
    def alive(self) -> Mapping[str, Any]:
        """Which agents are alive after the last step, ``(num_envs,)`` by name, where dead rows are not surely zero."""
        return self._alive[1]

    def check_reset(self, observations: Arrays, states: Arrays | None, infos: dict[str, Any], timestep: int) -> None:
        """Check what ``reset`` and ``state`` returned.

        Raises:
            EnvError: Agents are missing or unknown, or an array is of another kind, shape or dtype, or is not finite;
                the error is marked with the row if it is known.
        """
        if self._uses_alive:
            self._alive = [self._alive_in(infos)] * 2
        self.check_arrays("observations", observations)
        self.check_arrays("states", states)
        by_agent = states if isinstance(states, dict) else {None: states}
        self._with_states.update(name for name, array in by_agent.items() if array is not None)
        self._check_finite([("observations", observations), ("states", states)], timestep)

    def transition(
        self, outcome: Outcome, states: Arrays | None, *, timestep: int, step_time: float = 0.0
    ) -> Transition:
        """Check what ``step`` and ``state`` returned; return the transition, with true final observations and states.

        Raises:
            EnvError: As for `check_reset`; or flags are not 0 and 1, or an environment has ended without a final
                observation.
        """
        observations, rewards, terminated, truncated, infos = outcome
        if infos and self._uses_alive:
            self._alive = [self._alive[1], self._alive_in(infos)]
        if not self._are_as_usual(observations, rewards, terminated, truncated):
            self._check_outputs(outcome)
        if states is not None or self._is_team or self._with_states:
            self.check_arrays("states", states)
        next_observations, next_states = observations, states
        if self._is_ours and infos:
            next_observations = self._final(infos, "final_obs", "final observations", observations)
            next_states = self._final(infos, "final_state", "final states", states)
        if self._is_users and not self._is_team and self._framework.is_on_host(terminated):
            self.check_ends(outcome)
        given = [("observations", observations), ("rewards", rewards), ("states", states)]
        if next_observations is not observations:
            given.append(("final observations", next_observations))
        if next_states is not states:
            given.append(("final states", next_states))
        self._check_finite(given, timestep)
        return Transition(rewards, next_observations, next_states, terminated, truncated, infos, step_time)

    def check_ends(self, outcome: Outcome) -> None:
        """Check that each environment that has ended has a final observation; this reads the flags.

        Raises:
            EnvError: One has none.
        """
        to_numpy, infos = self._framework.to_numpy, outcome.infos
        ended = np.logical_or(to_numpy(outcome.terminated), to_numpy(outcome.truncated))[:, 0]
        marked = infos.get("_final_obs") if "final_obs" in infos else None
        told = np.zeros_like(ended) if marked is None else self._to_numpy(marked).reshape(-1)
        if missing := np.flatnonzero(ended & ~told).tolist():
            error = EnvError(
                f"{self.name}: it has ended, but infos['final_obs'] and infos['_final_obs'] do not have its final "
                "observation; step() must reset ended environments and return them there"
            )
            mark_row(error, missing[0], self.name)
            raise error

    def _final(self, infos: dict[str, Any], key: str, what: str, arrays: Arrays | None) -> Arrays | None:
        """Return the arrays with the true final rows of `infos` in place of those after a reset."""
        mask, select = infos.get(f"_{key}"), self._framework.select
        if mask is None or arrays is None:
            return arrays
        mask = self._mask(f"infos['_{key}']", mask)
        self.check_arrays(what, final := infos.get(key))
        return map_arrays(lambda array, final: array if array is None else select(mask, final, array), arrays, final)

    def _are_as_usual(self, observations: Any, rewards: Any, terminated: Any, truncated: Any) -> bool:
        """Return whether these arrays are like those of an earlier step, in a fifth of the time of a check."""
        if self._usual is None:
            return False
        kind, shape, dtype, reward_dtype, flag_dtype = self._usual
        column = self._column
        return (
            type(observations) is type(rewards) is type(terminated) is type(truncated) is kind
            and observations.dtype is dtype
            and rewards.dtype is reward_dtype
            and terminated.dtype is truncated.dtype is flag_dtype
            and observations.shape == shape
            and rewards.shape == terminated.shape == truncated.shape == column
        )

    def _check_outputs(self, outcome: Outcome) -> None:
        observations, rewards, terminated, truncated, _ = outcome
        acted = (rewards, terminated, truncated)
        self.check_arrays("observations", observations)
        self.check_arrays("rewards", rewards, acted)
        self.check_arrays("terminated", terminated, acted)
        self.check_arrays("truncated", truncated, acted)
        # integers as flags must be looked at in every step
        is_usual = not self._is_team and self._framework.kind(terminated) == self._framework.kind(truncated) == "b"
        dtypes = (observations.dtype, rewards.dtype, terminated.dtype) if is_usual else ()
        self._usual = (type(rewards), observations.shape, *dtypes) if is_usual else None

    def forget(self) -> None:
        """Forget the steps that have not been looked at: they are undone."""
        self._probes, self._reading, self._first_bad = [], None, None

    def read(self) -> None:
        """Wait for the device, and check all steps up to now.

        Raises:
            EnvError: One of them was not finite.
        """
        while self._reading or self._probes:
            self._read()
        self._tell()

    def check_arrays(self, what: str, arrays: Any, acted: tuple[Any, ...] = ()) -> None:
        """Check agents, kinds, shapes and dtypes of one output.

        Args:
            what: Name of the output, such as ``"rewards"`` or ``"final observations"``.
            arrays: The array, or the dictionary of arrays by agent name.
            acted: Other dictionaries of the same step, whose agents this one must have, too.

        Raises:
            EnvError: As for `transition`.
        """
        expected = self._expected[what]
        if not self._is_team:
            self._check_array(what, None, arrays, expected[None])
            return
        if not isinstance(arrays, dict):
            raise self._error(what, f"type {type_name(type(arrays))}", f"a dictionary of the agents {list(expected)}")
        if arrays.keys() != expected.keys():
            self._check_agents(what, arrays, acted)
        for name, array in arrays.items():
            self._check_array(what, name, array, expected[name])

    def _check_agents(self, what: str, arrays: dict[Any, Any], acted: tuple[Any, ...]) -> None:
        names = list(self._expected[what])
        if unknown := [name for name in arrays if name not in names]:
            raise EnvError(f"{self.name}: {what} have the unknown agent {unknown[0]!r}; expected the agents {names}")
        alive = set(names if self._is_ours else self._env.agents)
        alive.update(*(others for others in acted if isinstance(others, dict)))
        needed = [name for name in names if name in alive]
        if missing := [name for name in needed if name not in arrays]:
            raise EnvError(f"{self.name}: {_of(what, missing[0])} are missing; expected those of {needed}")

    def _check_array(self, what: str, name: str | None, array: Any, expected: Expected) -> None:
        framework = self._framework
        if not framework.is_array(array):
            if array is None and what.endswith("states") and name not in self._with_states:
                return
            given = f"type {type_name(type(array))}"
            raise self._error(_of(what, name), given, f"a {framework.name} array of shape {expected.text}")
        if not expected.fits(array.shape):
            given = f"shape {tuple(array.shape)}"
            raise self._error(_of(what, name), given, f"a {framework.name} array of shape {expected.text}")
        kind = framework.kind(array)
        if kind not in expected.kinds:
            given = f"dtype {getattr(array.dtype, '__name__', array.dtype)}"
            raise self._error(_of(what, name), given, expected.dtypes)
        if expected.is_flag and kind != "b" and framework.is_on_host(array):
            self._check_flags(_of(what, name), framework.to_numpy(array))

    def _check_flags(self, what: str, values: Any) -> None:
        wrong = values != (values != 0)
        if np.count_nonzero(wrong):
            row = int(np.flatnonzero(wrong)[0])
            error = EnvError(f"{self.name}: {what} are {values[row, 0]}; expected {FLAGS}")
            mark_row(error, row, self.name)
            raise error

    def _error(self, what: str, given: str, expected: str) -> EnvError:
        return EnvError(f"{self.name}: {what} have {given}; expected {expected}")

    def _check_finite(self, given: list[tuple[str, Any]], timestep: int) -> None:
        if not self._is_finite_needed:
            return
        framework, elsewhere = self._framework, []
        for what, arrays in given:
            if arrays is None:
                continue
            for name, array in _each(arrays) if isinstance(arrays, dict) else ((None, arrays),):
                if not framework.is_on_host(array):
                    elsewhere.append(self._without_dead(what, name, array))
                elif not framework.is_finite(array):
                    self._refuse(what, name, array)
        if elsewhere:
            self._add(elsewhere, timestep)

    def _refuse(self, what: str, name: str | None, array: Any) -> None:
        """Raise an error for the first row that is not finite, unless its agent is dead."""
        values = self._framework.to_numpy(array).reshape(self._num_envs, -1)
        bad = ~np.isfinite(values)
        if masks := self._masks(what, name):
            bad &= np.logical_or.reduce([self._to_numpy(mask) for mask in masks])[:, None]
        rows = np.flatnonzero(bad.any(axis=1))
        if not rows.size:
            return
        row = int(rows[0])
        column = int(np.flatnonzero(bad[row])[0])
        where = "" if values.shape[1] == 1 else f" in column {column}"
        others = f" (and in {len(rows) - 1} more environment{'s' * (len(rows) > 2)})" if len(rows) > 1 else ""
        fit = " that fit float32" if np.isinf(values[row, column]) else ""
        error = EnvError(
            f"{self.name}: {_of(what, name)} are {values[row, column]}{where}{others}; expected finite numbers{fit}. "
            "Correct the environment, or set allow_nonfinite=True (make_env, wrap_env, EnvFactory, or "
            "env.allow_nonfinite of a configuration)"
        )
        mark_row(error, row, self.name)
        raise error

    def _masks(self, what: str, name: str | None) -> list[Any]:
        """Return the masks of the rows in which an agent is alive: before the step, and, except for rewards, after."""
        alive = self._alive[:1] if what == "rewards" else self._alive
        return [masks[name] for masks in alive if name is not None and name in masks]

    def _without_dead(self, what: str, name: str | None, array: Any) -> Any:
        """Return an array with zeros in the rows of dead agents."""
        if not (masks := self._masks(what, name)):
            return array
        rest = self._framework.zeros_like(array)
        for mask in masks:
            rest = self._framework.select(mask, array, rest)
        return rest

    def _alive_in(self, infos: Mapping[str, Any]) -> dict[str, Any]:
        """Return which agents are alive, by name and row, as far as the environment says so."""
        alive = infos.get("alive")
        if not self._is_team or not isinstance(alive, dict):
            return {}
        masks = {name: self._mask(f"infos['alive'][{name!r}]", mask) for name, mask in alive.items()}
        # the environment may write to the same arrays in the next step
        return {
            name: mask.copy() if isinstance(mask, np.ndarray) else self._framework.copy(mask)
            for name, mask in masks.items()
        }

    def _mask(self, what: str, mask: Any) -> Any:
        """Return a mask of the environments, NumPy's or the framework's, as ``(num_envs,)``.

        Raises:
            EnvError: It is something else.
        """
        is_array, shape = isinstance(mask, np.ndarray) or self._framework.is_array(mask), self._column[:1]
        if not is_array:
            given = f"type {type_name(type(mask))}"
        elif tuple(mask.shape) not in (shape, self._column):
            given = f"shape {tuple(mask.shape)}"
        elif (mask.dtype.kind if isinstance(mask, np.ndarray) else self._framework.kind(mask)) != "b":
            given = f"dtype {getattr(mask.dtype, '__name__', mask.dtype)}"
        else:
            return mask.reshape(shape)
        raise EnvError(f"{self.name}: {what} has {given}; expected a bool array of shape {shape}")

    def _to_numpy(self, array: Any) -> Any:
        return self._framework.to_numpy(array) if self._framework.is_array(array) else array

    def _add(self, arrays: Iterable[Any], timestep: int) -> None:
        """Check arrays on a device without waiting for it."""
        self._probes.append((timestep, self._framework.probe(list(arrays))))
        if len(self._probes) >= _READ_INTERVAL and (self._reading is None or self._reading[1].is_ready()):
            self._read()
            self._tell()

    def _read(self) -> None:
        """Look at what has arrived from the device, or wait for it, and send the next probes."""
        reading, probes, self._reading = self._reading, self._probes, None
        if probes:
            timesteps = [timestep for timestep, probe in probes for _ in range(probe.shape[0])]
            self._reading = timesteps, self._framework.read_later([probe for _, probe in probes])
            self._probes = []
        if reading is None:
            return
        timesteps, numbers = reading[0], np.concatenate(reading[1].result())
        bad = np.flatnonzero(~np.isfinite(numbers))
        if bad.size and self._first_bad is None:
            self._first_bad = timesteps[int(bad[0])]

    def _tell(self) -> None:
        if self._first_bad is not None:
            raise EnvError(
                f"{self.name}: observations, states or rewards are not finite since timestep {self._first_bad}; "
                "correct the environment, or set allow_nonfinite=True"
            )


def _each(arrays: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each different array with the name of its first agent."""
    different = {id(array): (name, array) for name, array in reversed(arrays.items()) if array is not None}
    yield from different.values()


def _of(what: str, name: str | None) -> str:
    return what if name is None else f"{what} of {name!r}"
