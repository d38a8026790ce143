"""Scalars of one scope: what its agent tracks, and what its runner measures, on their way to the driver.

An agent is read through skrl's members, whoever wrote it: ``write_tracking_data(timestep=…, timesteps=…)`` hands all
that the agent has tracked since the last call to ``agent.writer.add_scalar(tag=…, value=…, timestep=…)`` and forgets
it; the writer is ours. An agent without these members still gets every call of ``track_data``, but what it makes of
them is its own business.
"""

from __future__ import annotations

from typing import Any

from workers.scalars import Scalars
from workers.types import Tick

__all__ = ["AgentTracking", "ScalarWriter"]

_NEVER = 2**62
"""An interval, in timesteps, that does not come round."""


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
        unused: Names of the agent's intervals that do not count, because it must not write files.
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
        self.unused = tuple(name for name in self._intervals if getattr(agent, name) != 0)
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
