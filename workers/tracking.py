"""Scalars of one scope: what its agent tracks, and what its runner measures, on their way to the driver.

An agent is read through skrl's members, whoever wrote it: ``write_tracking_data(timestep=…, timesteps=…)`` hands all
that the agent has tracked since the last call to ``agent.writer.add_scalar(tag=…, value=…, timestep=…)`` and forgets
it; the writer is ours. An agent without these members still gets every call of ``track_data``, but what it makes of
them is its own business.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from workers.frameworks import Framework
from workers.types import Array, Tick

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


class Episodes:
    """Returns and lengths of the episodes of some rows."""

    def __init__(self, num_envs: int) -> None:
        self._returns = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, dtype=np.int64)

    def add(
        self, rewards: Array, terminated: Array, truncated: Array, framework: Framework
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Take note of one step.

        Args:
            rewards: ``(num_envs, 1)``.
            terminated: ``(num_envs, 1)``, bool.
            truncated: ``(num_envs, 1)``, bool.
            framework: Whose arrays they are.

        Returns:
            Rows whose episode ended in this step, and its return (a sum in float64) and length (in timesteps).
        """
        self._returns += framework.to_numpy(rewards)[:, 0]
        self._lengths += 1
        ended = np.flatnonzero(framework.to_numpy(terminated)[:, 0] | framework.to_numpy(truncated)[:, 0])
        result = ended, self._returns[ended], self._lengths[ended]
        if ended.size:
            self._returns[ended] = 0.0
            self._lengths[ended] = 0
        return result

    def restart(self) -> None:
        """Forget the episodes in progress."""
        self._returns[:] = 0.0
        self._lengths[:] = 0
