"""Returns and lengths of episodes, computed from the steps of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from workers.frameworks import Framework
from workers.types import Arrays

__all__ = ["EndedEpisodes", "Episodes"]


class EndedEpisodes(NamedTuple):
    """Rows whose episodes ended in a step, with their returns (sums in float64) and lengths (in timesteps)."""

    rows: npt.NDArray[np.int64]
    returns: npt.NDArray[np.float64]
    lengths: npt.NDArray[np.int64]

    def kept(self, mask: npt.NDArray[np.bool_]) -> EndedEpisodes:
        """Return those that the mask selects."""
        return EndedEpisodes(self.rows[mask], self.returns[mask], self.lengths[mask])


class Episodes:
    """Returns and lengths of the episodes of some rows: of a single agent, or of each agent and of the team.

    An agent's episode ends with its flags; its length is the number of timesteps in which the agent acted. A team's
    episode is that of the environment: its return is the sum over the agents, and its length counts all timesteps.

    An episode with steps of both modes, training and evaluation, is not one of either: it is left out.
    """

    def __init__(self, num_envs: int, *, midway: bool = False) -> None:
        """Start to count.

        Args:
            num_envs: Number of rows.
            midway: Whether their first episodes have begun before, so that their returns will never be known.
        """
        self._num_envs = num_envs
        # rows whose environment has not ended since; None if there are none
        self._midway = np.ones(num_envs, np.bool_) if midway else None
        self._sums: dict[str, _Sums] = {}
        self._ended: dict[str, npt.NDArray[np.bool_]] = {}  # rows by agent, until their environment ends

    def add(
        self,
        rewards: Arrays,
        terminated: Arrays,
        truncated: Arrays,
        framework: Framework,
        *,
        before: Mapping[str, Any] = {},
        infos: Mapping[str, Any] = {},
    ) -> dict[str, EndedEpisodes]:
        """Record one step.

        Args:
            rewards: ``(num_envs, 1)``.
            terminated: ``(num_envs, 1)``, bool or 0 and 1.
            truncated: ``(num_envs, 1)``, bool or 0 and 1.
            framework: Framework of the arrays.
            before: Infos of the observations before the step; used for a team only.
            infos: Infos of the step.

        Returns:
            Ended episodes of each agent by name, and last of the team, or a single agent, by the name ``""``.
        """

        def numbers(array: Any) -> npt.NDArray[Any]:
            return np.reshape(framework.to_numpy(array) if framework.is_array(array) else array, -1)

        def either(one: Any, other: Any) -> npt.NDArray[np.bool_]:
            return np.logical_or(numbers(one), numbers(other))  # of any dtype

        if not isinstance(rewards, dict):
            ended = either(terminated, truncated)
            return self._counted({"": self._of("").add(numbers(rewards), ended)}, ended)
        result, alive = {}, before.get("alive", {})
        total, over = np.zeros(self._num_envs), np.ones(self._num_envs, np.bool_)
        nobody = np.zeros(self._num_envs, np.bool_)
        for name in rewards:
            row_rewards = numbers(rewards[name])
            ended = either(terminated[name], truncated[name])
            acted = numbers(alive[name]) if name in alive else True
            result[name] = self._of(name).add(row_rewards, ended, acted)
            total += row_rewards
            self._ended[name] = self._ended.get(name, nobody) | ended
            over &= self._ended[name]
        if "alive" in infos:  # else another library's wrapper, which ends with the last agent
            over = numbers(infos.get("_final_obs", nobody))
        self._ended = {name: ended & ~over for name, ended in self._ended.items()}
        return self._counted(result | {"": self._of("").add(total, over)}, over)

    def _counted(self, ended: dict[str, EndedEpisodes], over: npt.NDArray[np.bool_]) -> dict[str, EndedEpisodes]:
        """Leave out the episodes that were in progress at the start."""
        if self._midway is None:
            return ended
        whole = ~self._midway
        self._midway[np.flatnonzero(over)] = False
        if not self._midway.any():
            self._midway = None
        return {name: episodes.kept(whole[episodes.rows]) for name, episodes in ended.items()}

    def restart(self) -> None:
        """Discard the episodes in progress."""
        self._midway = None
        self._sums.clear()
        self._ended.clear()

    def leave_out(self) -> None:
        """Leave out the episodes in progress: their next steps are of the other mode."""
        for sums in self._sums.values():
            sums.leave_out()

    def state(self) -> dict[str, Any]:
        """Return the episodes in progress as plain data."""
        sums = {name: each.state() for name, each in self._sums.items()}
        midway = None if self._midway is None else self._midway.copy()
        return {"midway": midway, "sums": sums, "ended": dict(self._ended)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Set a result of `state` of as many rows.

        Raises:
            LookupError, TypeError, ValueError: It is something else.
        """
        midway = state["midway"]
        self._midway = None if midway is None else _rows(midway, self._num_envs)
        self._ended = {name: _rows(ended, self._num_envs) for name, ended in state["ended"].items()}
        self._sums = {name: _Sums(self._num_envs) for name in state["sums"]}
        for name, sums in self._sums.items():
            sums.load(state["sums"][name])

    def _of(self, name: str) -> _Sums:
        if name not in self._sums:
            self._sums[name] = _Sums(self._num_envs)
        return self._sums[name]


class _Sums:
    """Running returns and lengths of the episodes in progress."""

    def __init__(self, num_envs: int) -> None:
        self._returns = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, dtype=np.int64)
        self._left_out = np.zeros(num_envs, dtype=np.bool_)

    def leave_out(self) -> None:
        """Leave out the episodes in progress."""
        self._left_out |= (self._lengths > 0) | (self._returns != 0)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        return {"returns": self._returns.copy(), "lengths": self._lengths.copy(), "left_out": self._left_out.copy()}

    def load(self, state: Mapping[str, Any]) -> None:
        self._returns = _rows(state["returns"], len(self._returns), np.float64)
        self._lengths = _rows(state["lengths"], len(self._lengths), np.int64)
        self._left_out = _rows(state["left_out"], len(self._left_out))

    def add(self, rewards: npt.NDArray[Any], ended: npt.NDArray[np.bool_], acted: Any = True) -> EndedEpisodes:
        self._returns += rewards
        self._lengths += acted
        rows = np.flatnonzero(ended)
        whole = rows[~self._left_out[rows]] if rows.size else rows
        result = EndedEpisodes(whole, self._returns[whole], self._lengths[whole])
        if rows.size:
            self._returns[rows] = 0.0
            self._lengths[rows] = 0
            self._left_out[rows] = False
        return result


def _rows(values: Any, num_envs: int, dtype: Any = np.bool_) -> npt.NDArray[Any]:
    """Return a copy of values that are of one dtype, one for each row."""
    array = np.array(values)
    if array.shape != (num_envs,) or array.dtype != dtype:
        raise ValueError(f"episodes of shape {array.shape} and dtype {array.dtype}; expected ({num_envs},) {dtype}")
    return array
