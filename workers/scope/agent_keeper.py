"""AgentKeeper: what an agent has learnt, and its whole state, between two iterations."""

from __future__ import annotations

import pickle
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from workers.errors import AgentError, CheckpointError, message_of
from workers.frameworks import Framework
from workers.scope.agent_log import AgentLog
from workers.scope.agent_state import agent_tree, load_agent_tree, plain_infos
from workers.scope.tracking import AgentTracking
from workers.seeding import GlobalStream, RandomStream
from workers.storage.agent_file import dump_agent, load_agent
from workers.storage.snapshot import Part, decode_part, encode_part
from workers.types import Mode, Phase, Scope, Tick

__all__ = ["AgentKeeper"]


class AgentKeeper:
    """The part of `workers.scope.agent_runner.AgentRunner` that reads and replaces what its agent holds."""

    agent: Any
    scope: Scope
    phase: Phase
    agents: tuple[str, ...]
    _framework: Framework
    _pickler: type[pickle.Pickler]
    _staged: Any
    _stream: RandomStream | GlobalStream
    _infos: dict[str, Any]
    _tracking: AgentTracking
    _takes_infos: bool
    _log: AgentLog
    _unflushed: int
    _last_tick: Tick
    _reset_tick: Tick

    @contextmanager
    def as_handed_over(self) -> Iterator[Any]:
        """Yield the agent without the trainer's changes to it."""
        self._tracking.stop()
        try:
            yield self.agent
        finally:
            self._tracking.start()

    def agent_file(self) -> tuple[str, bytes]:
        """Return the name and content of the agent's file; see `workers.storage.agent_file.dump_agent`."""
        self.phase = Phase.STORE
        with self.as_handed_over() as agent:
            return dump_agent(agent, self._framework)

    def load_agent_file(self, name: str, data: bytes) -> None:
        """Load the file of another agent of this kind, between two iterations; see `load_agent`.

        Only what was learnt is replaced, and the rollout in progress is dropped if the agent drops it.

        Raises:
            AgentError: It does not fit.
        """
        self.phase = Phase.STORE
        with self.as_handed_over() as agent, self._stream:  # which stays its own
            load_agent(agent, name, data, self._framework)

    def hyperparameters(self) -> dict[str, float]:
        """Return the hyper-parameters that may change during a run, by name.

        Raises:
            AgentError: The agent does not offer them.
        """
        self.phase = Phase.STORE
        self._check_hyperparameters()
        with self._stream:
            values = self.agent.hyperparameters()
        try:
            return {str(name): float(value) for name, value in values.items()}
        except (AttributeError, TypeError, ValueError) as error:
            kind, given = type(self.agent).__qualname__, reprlib.repr(values)
            raise AgentError(f"{kind}.hyperparameters() returned {given}; expected numbers by name") from error

    def set_hyperparameters(self, values: Mapping[str, float]) -> None:
        """Change hyper-parameters between two iterations.

        Raises:
            AgentError: The agent does not offer them, or refuses these.
            ConfigError: It refuses a value.
        """
        self.phase = Phase.STORE
        self._check_hyperparameters()
        with self._stream:
            self.agent.set_hyperparameters(values)

    def _check_hyperparameters(self) -> None:
        if not all(hasattr(self.agent, name) for name in ("hyperparameters", "set_hyperparameters")):
            raise AgentError(
                f"{self._what} has no hyper-parameters that can change during a run; give it hyperparameters(), which "
                "returns numbers by name, and set_hyperparameters(values), and keep them in its snapshot()"
            )

    def snapshot(self, *, allow_pickle: bool) -> Part:
        """Return the whole state between two iterations.

        Args:
            allow_pickle: Whether to pickle an agent that does not offer its state as plain data.

        Raises:
            CheckpointError: The state cannot be kept.
        """
        self.phase = Phase.STORE
        with self.as_handed_over():
            state = self._state(allow_pickle=allow_pickle)
            return encode_part(
                state, self._framework, allow_pickle=allow_pickle, what=self._what, pickler=self._pickler
            )

    def stage(self, part: Part) -> None:
        """Check that a snapshot fits, and keep it for `restore`; nothing changes.

        Raises:
            CheckpointError: It does not fit.
        """
        self.phase = Phase.STORE
        state = decode_part(part, self._framework, what=self._what)
        before = self._state(allow_pickle=True)
        try:
            self._load(state, is_trial=True)
        except Exception as error:
            raise CheckpointError(
                f"the checkpoint does not fit {self._what.removesuffix(',')}: {message_of(error)}"
            ) from error
        finally:
            self._load(before, is_trial=True)
        self._staged = state

    def restore(self) -> None:
        """Go on from the snapshot of `stage`."""
        self.phase = Phase.STORE
        state, self._staged = self._staged, None
        self._load(state)

    @property
    def _what(self) -> str:
        return f"the agent of scope {self.scope.index}, {type(self.agent).__qualname__},"

    def _state(self, *, allow_pickle: bool) -> dict[str, Any]:
        tick = self._last_tick
        return {
            "agent": agent_tree(self.agent, self._framework, what=self._what, allow_pickle=allow_pickle),
            "tick": [tick.mode.value, tick.timestep, tick.timesteps],
            "is_reset": self._last_tick is self._reset_tick,
            "infos": plain_infos(self._infos, self._framework) if self._takes_infos or self.agents else {},
            "unflushed": self._unflushed,
            "log": self._log.state(),
            "tracked": self._tracking.writer.scalars.state(),
            "stream": self._stream.state(self.agent),
        }

    def _load(self, state: dict[str, Any], *, is_trial: bool = False) -> None:
        with self.as_handed_over() as agent:
            load_agent_tree(agent, state["agent"], self._framework, is_trial=is_trial)
        mode, timestep, timesteps = state["tick"]
        tick = Tick(Mode(mode), int(timestep), int(timesteps))
        self._last_tick, self._reset_tick = tick, tick if state["is_reset"] else tick._replace()
        self._infos, self._unflushed = dict(state["infos"]), int(state["unflushed"])
        self._log.load(state["log"])
        self._tracking.writer.scalars.load(state["tracked"])
        self._stream.load(state["stream"], self.agent)  # last: what is above may draw random numbers
