"""Scalars of one scope: what its agent tracks, and what its runner measures, on their way to the driver.

An agent is read through skrl's members, whoever wrote it: ``write_tracking_data(timestep=…, timesteps=…)`` hands all
that the agent has tracked since the last call to ``agent.writer.add_scalar(tag=…, value=…, timestep=…)`` and forgets
it; the writer is ours. An agent without these members still gets every call of ``track_data``, but what it makes of
them is its own business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from workers.frameworks import Framework
from workers.types import Arrays, Tick

__all__ = ["AgentTracking", "Episodes", "ScalarWriter", "Scalars"]

_NEVER = 2**62
"""An interval, in timesteps, that does not come round."""


class Scalars:
    """Values by tag, in bounded memory: their mean is kept, or the extreme where the tag ends in (min) or (max)."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[float, int]] = {}

    def add(self, tag: str, value: float) -> None:
        """Take note of a value."""
        value = float(value)
        kept, count = self._kept.get(tag, (None, 0))
        if kept is None:
            self._kept[tag] = (value, 1)
        elif tag.endswith("(min)"):
            self._kept[tag] = (min(kept, value), 1)
        elif tag.endswith("(max)"):
            self._kept[tag] = (max(kept, value), 1)
        else:
            self._kept[tag] = (kept + value, count + 1)

    def drain(self) -> dict[str, float]:
        """What has been noted since the last call, by tag."""
        drained = {tag: total / count for tag, (total, count) in self._kept.items()}
        self._kept.clear()
        return drained


class ScalarWriter:
    """What an agent takes for its TensorBoard writer.

    Attributes:
        scalars: What the agent has written.
        own: The agent's own writer, which keeps getting everything; None if it has none.
    """

    def __init__(self) -> None:
        self.scalars = Scalars()
        self.own: Any = None

    def add_scalar(self, *, tag: str, value: float, timestep: int) -> None:
        """Take note of a scalar."""
        self.scalars.add(tag, value)
        if self.own is not None:
            self.own.add_scalar(tag=tag, value=value, timestep=timestep)

    def flush(self) -> None:
        """Flush the agent's own writer."""
        if self.own is not None:
            self.own.flush()

    def close(self) -> None:
        """Close the agent's own writer."""
        if self.own is not None:
            self.own.close()

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__.get("own")
        if own is None:
            raise AttributeError(f"the trainer's writer has no {name!r}; it takes scalars, by add_scalar")
        return getattr(own, name)


class AgentTracking:
    """Reads what one agent tracks, and keeps it from writing files where it must not.

    Attributes:
        writer: What the agent's writer is replaced by.
    """

    def __init__(self, agent: Any, *, keeps_files: bool) -> None:
        """Prepare an agent, before its ``init``.

        Args:
            agent: The agent.
            keeps_files: Whether it may write the files that its own configuration asks for: an instance of the user's,
                in the user's process. Any other is kept from making folders, event files and checkpoints.
        """
        self.writer = ScalarWriter()
        self._agent = agent
        self._before: dict[str, Any] = {}
        self._intervals: dict[str, int] = {}  # skrl's names
        if not keeps_files:
            self._intervals = {name: 0 for name in ("write_interval", "checkpoint_interval") if hasattr(agent, name)}
        self._put(self._intervals)
        interval = self._before.get("write_interval")
        if interval == "auto" or (isinstance(interval, int) and interval > 0):
            self._intervals["write_interval"] = _NEVER  # skrl tracks returns only where this is not 0

    def start(self) -> None:
        """Put the writer in its place, after the agent's ``init``."""
        self._put(self._intervals)
        if hasattr(self._agent, "write_tracking_data"):
            self.writer.own = getattr(self._agent, "writer", None)
            self._put({"writer": self.writer})

    def flush(self, tick: Tick) -> None:
        """Have the agent hand over what it has tracked, which it forgets; one with a writer of its own does so itself.

        Args:
            tick: The last iteration.
        """
        if "writer" in self._before and self.writer.own is None:
            self._agent.write_tracking_data(timestep=tick.timestep, timesteps=tick.timesteps)

    def stop(self) -> None:
        """Give the agent back as it was: it is going to the user."""
        for name, value in self._before.items():
            if value is _ABSENT:
                delattr(self._agent, name)
            else:
                setattr(self._agent, name, value)
        self._before.clear()

    def _put(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            self._before.setdefault(name, getattr(self._agent, name, _ABSENT))
            setattr(self._agent, name, value)


_ABSENT = object()


class EndedEpisodes(NamedTuple):
    """Rows whose episode ended in a step, and its return (a sum in float64) and length (in timesteps)."""

    rows: npt.NDArray[np.int64]
    returns: npt.NDArray[np.float64]
    lengths: npt.NDArray[np.int64]


class Episodes:
    """Returns and lengths of the episodes of some rows: of the only agent, or of each agent and of all as a team.

    An agent's episode ends with its flags, and its length is the number of timesteps in which it acted. A team's is
    that of the environment: its return is the sum over the agents, and its length the number of all timesteps.
    """

    def __init__(self, num_envs: int) -> None:
        self._num_envs = num_envs
        self._sums: dict[str, _Sums] = {}
        self._ended: dict[str, npt.NDArray[np.bool_]] = {}  # who has, since the last end of their environment

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
        """Take note of one step.

        Args:
            rewards: ``(num_envs, 1)``.
            terminated: ``(num_envs, 1)``, bool.
            truncated: ``(num_envs, 1)``, bool.
            framework: Whose arrays they are.
            before: Infos that came with the observations before the step; they matter for a team only.
            infos: Those of the step.

        Returns:
            What ended: of each agent by its name, and last of the team, or the only agent, by the name ``""``.
        """

        def numbers(array: Any) -> npt.NDArray[Any]:
            return np.reshape(framework.to_numpy(array) if framework.is_array(array) else array, -1)

        if not isinstance(rewards, dict):
            ended = numbers(terminated) | numbers(truncated)
            return {"": self._of("").add(numbers(rewards), ended)}
        result, alive = {}, before.get("alive", {})
        total, over = np.zeros(self._num_envs), np.ones(self._num_envs, np.bool_)
        nobody = np.zeros(self._num_envs, np.bool_)
        for name in rewards:
            row_rewards = numbers(rewards[name])
            ended = numbers(terminated[name]) | numbers(truncated[name])
            acted = numbers(alive[name]) if name in alive else True
            result[name] = self._of(name).add(row_rewards, ended, acted)
            total += row_rewards
            self._ended[name] = self._ended.get(name, nobody) | ended
            over &= self._ended[name]
        if "alive" in infos:  # else in another library's wrapper, which ends with the last agent
            over = numbers(infos.get("_final_obs", nobody))
        self._ended = {name: ended & ~over for name, ended in self._ended.items()}
        return result | {"": self._of("").add(total, over)}

    def restart(self) -> None:
        """Forget the episodes in progress."""
        self._sums.clear()
        self._ended.clear()

    def _of(self, name: str) -> _Sums:
        if name not in self._sums:
            self._sums[name] = _Sums(self._num_envs)
        return self._sums[name]


class _Sums:
    """What has come together in the episodes in progress."""

    def __init__(self, num_envs: int) -> None:
        self._returns = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, dtype=np.int64)

    def add(self, rewards: npt.NDArray[Any], ended: npt.NDArray[np.bool_], acted: Any = True) -> EndedEpisodes:
        self._returns += rewards
        self._lengths += acted
        rows = np.flatnonzero(ended)
        result = EndedEpisodes(rows, self._returns[rows], self._lengths[rows])
        if rows.size:
            self._returns[rows] = 0.0
            self._lengths[rows] = 0
        return result
