"""Scalars that the agent of a scope tracks, on their way to the driver.

Every agent is read through skrl's members: ``write_tracking_data(timestep=…, timesteps=…)`` passes all that the agent
has tracked since the last call to ``agent.writer.add_scalar(tag=…, value=…, timestep=…)`` and discards it; the writer
is Lockstep's. An agent without these members still gets every call of ``track_data``, but Lockstep does not read them.
"""

from __future__ import annotations

from typing import Any

from workers.scalars import Scalars, prefix_of
from workers.types import Mode, Tick

__all__ = ["AgentTracking", "ScalarWriter"]

_NEVER = 2**62
"""An interval in timesteps that never elapses."""


class ScalarWriter:
    """Replacement for an agent's TensorBoard writer.

    Attributes:
        scalars: Scalars that the agent has written.
        own: The agent's own writer, which still gets everything; None if it has none.
    """

    def __init__(self) -> None:
        self.scalars = Scalars()
        self.own: Any = None
        self._counted: dict[str, tuple[list[float], int]] = {}  # lists of values whose first ones are in the scalars

    def count(self, tracked: Any) -> None:
        """Record values that the agent has tracked and will write later: lists by tag, as in skrl."""
        for tag, values in tracked.items() if isinstance(tracked, dict) else ():
            if not isinstance(values, list):
                continue
            before, counted = self._counted.get(tag, ((), 0))
            self._record(tag, values[counted if before is values else 0 :])
            self._counted[tag] = values, len(values)

    def add_scalar(self, *, tag: str, value: float, timestep: int) -> None:
        """Record a scalar."""
        values, counted = self._counted.pop(tag, ([value], 0))
        self._record(tag, values[counted:])
        if self.own is not None:
            self.own.add_scalar(tag=tag, value=value, timestep=timestep)

    def _record(self, tag: str, values: list[float]) -> None:
        """Record values as the one value to which an agent reduces them."""
        reduced = Scalars()
        for value in values:
            reduced.add(tag, value)
        for value in reduced.drain().values():
            self.scalars.add(tag, value)

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
            raise AttributeError(f"the trainer's writer has no {name!r}; it takes only scalars, through add_scalar")
        return getattr(own, name)


class AgentTracking:
    """Access to what one agent tracks; it also keeps the agent from writing files that it must not write.

    Attributes:
        writer: Replacement for the agent's writer.
        unused: Names of the agent's intervals that are ignored because it must not write files.
    """

    def __init__(self, agent: Any, *, keeps_files: bool) -> None:
        """Prepare an agent before its ``init``.

        Args:
            agent: The agent.
            keeps_files: Whether it may write the files that its own configuration requests: true for the user's
                instance in the user's process. Any other agent creates no folders, event files or checkpoints.
        """
        self.writer = ScalarWriter()
        self._agent = agent
        self._before: dict[str, Any] = {}
        self._intervals: dict[str, int] = {}  # by skrl's names
        if not keeps_files:
            self._intervals = {name: 0 for name in ("write_interval", "checkpoint_interval") if hasattr(agent, name)}
        self.unused = tuple(name for name in self._intervals if getattr(agent, name) != 0)
        self._put(self._intervals)
        interval = self._before.get("write_interval")
        if interval == "auto" or (isinstance(interval, int) and interval > 0):
            self._intervals["write_interval"] = _NEVER  # skrl tracks returns only if this is not 0

    def start(self) -> None:
        """Install the writer after the agent's ``init``."""
        self._put(self._intervals)
        if hasattr(self._agent, "write_tracking_data"):
            self.writer.own = getattr(self._agent, "writer", None)
            self._put({"writer": self.writer})

    def flush(self, tick: Tick) -> None:
        """Make the agent write and discard what it has tracked; an agent with its own writer does so itself.

        Args:
            tick: The last iteration.
        """
        if "writer" in self._before and self.writer.own is None:
            self._agent.write_tracking_data(timestep=tick.timestep, timesteps=tick.timesteps)

    def change_mode(self, tick: Tick, mode: Mode) -> None:
        """Read what the agent has tracked up to `tick`, and the rest under the tags of `mode`."""
        if "writer" in self._before and self.writer.own is not None:
            self.writer.count(getattr(self._agent, "tracking_data", None))  # the agent writes at its own times
        else:
            self.flush(tick)
        self.writer.scalars.prefix = prefix_of(mode)

    def stop(self) -> None:
        """Restore the agent's own attributes before it returns to the user."""
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
