"""AgentLog: data logged for one simultaneous agent in addition to what it tracks itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from workers.frameworks import Framework
from workers.infos import scalars
from workers.scalars import Scalars, prefix_of
from workers.scope.arrivals import Arrivals
from workers.scope.episodes import Episodes
from workers.types import Arrays, Mode

__all__ = ["AgentLog"]


class AgentLog:
    """Episodes, phase durations and scalars of infos of one simultaneous agent.

    Attributes:
        collecting: Whether the data is collected; set when it is first requested.
    """

    def __init__(
        self, agent: Any, framework: Framework, *, num_envs: int, agents: Sequence[str], environment_info: str
    ) -> None:
        """Start an empty log.

        Args:
            agent: The agent, which also tracks the scalars of infos.
            framework: The trainer's framework.
            num_envs: Number of its environments.
            agents: Names of the agents of a multi-agent; empty for a single agent.
            environment_info: Key of the infos whose scalars are logged.
        """
        self.collecting = False
        self._agent = agent
        self._framework = framework
        self._num_envs = num_envs
        self._agents = agents
        self._environment_info = environment_info
        self._scalars = Scalars()
        self._episodes = Episodes(num_envs)
        self._episodes_group = "Episode / "
        self._arrivals = Arrivals(framework)

    def drain(self) -> dict[str, float]:
        """Return the scalars since the last call, by tag."""
        self.flush()
        return self._scalars.drain()

    def flush(self) -> None:
        """Wait for what is on its way from a device, and record it."""
        self._arrivals.flush()

    def restart(self) -> None:
        """Discard the episodes in progress."""
        self.flush()
        self._episodes.restart()

    def start(self, *, midway: bool) -> None:
        """Start to collect; `midway` says whether episodes are in progress, which do not count."""
        self.collecting = True
        self._episodes = Episodes(self._num_envs, midway=midway)

    def state(self) -> dict[str, Any]:
        """Return the log as plain data."""
        self.flush()
        return {
            "collecting": self.collecting,
            "scalars": self._scalars.state(),
            "episodes": self._episodes.state(),
            "group": self._episodes_group,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Set a result of `state`.

        Raises:
            LookupError, TypeError, ValueError: It is something else.
        """
        self.flush()
        self._episodes.load(state["episodes"])
        self._scalars.load(state["scalars"])
        self.collecting, self._episodes_group = bool(state["collecting"]), str(state["group"])

    def change_mode(self, mode: Mode) -> None:
        """Record the next iterations as those of this mode. Episodes in progress count under neither."""
        self.flush()
        self._scalars.prefix = prefix_of(mode)
        self._episodes_group = "" if mode is Mode.EVAL else "Episode / "
        self._episodes.leave_out()

    def note_time(self, phase: str, milliseconds: float) -> None:
        """Record the duration of a phase."""
        self._scalars.add(f"Stats / {phase} time (ms)", milliseconds)

    def note_step(
        self,
        rewards: Arrays,
        terminated: Arrays,
        truncated: Arrays,
        *,
        before: Mapping[str, Any],
        infos: Mapping[str, Any],
    ) -> None:
        """Record the episodes that a step ended; see `Episodes.add` for the arguments."""
        needed = [{key: place[key] for key in ("alive", "_final_obs") if key in place} for place in (before, infos)]
        self._arrivals.call(self._note_step, rewards, terminated, truncated, *needed)

    def _note_step(
        self, rewards: Arrays, terminated: Arrays, truncated: Arrays, before: dict[str, Any], infos: dict[str, Any]
    ) -> None:
        ended = self._episodes.add(rewards, terminated, truncated, self._framework, before=before, infos=infos)
        for name, (_, returns, lengths) in ended.items():
            group = f"{self._episodes_group}{name} / " if name else self._episodes_group
            for episode_return, length in zip(returns, lengths, strict=True):
                for kind in ("mean", "min", "max"):
                    self._scalars.add(f"{group}Return ({kind})", episode_return)
                self._scalars.add(f"{group}Length (mean)", length)

    def track_infos(self, infos: dict[str, Any]) -> None:
        """Track the scalars under the configured key, or the number there; also those in ``final_info``."""
        key = self._environment_info
        for group, place in self._places(infos):
            if key in place:
                value = place[key]
                logged = value if isinstance(value, dict) else {key: value}
                self._arrivals.call(self._track_infos, group, logged, place.get(f"_{key}"))

    def _track_infos(self, group: str, logged: dict[str, Any], mask: Any) -> None:
        for name, value in scalars(logged, self._num_envs, self._framework, mask):
            tag = name if "/" in name else f"{group} / {name}"
            self._agent.track_data(tag, value)
            if self.collecting:
                self._scalars.add(tag, value)

    def _places(self, infos: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield tag prefixes and infos that may hold scalars: current and final ones, shared and of each agent."""
        for place in (infos, infos.get("final_info")):
            if isinstance(place, dict):
                yield "Info", place
                for name in self._agents:
                    if isinstance(place.get(name), dict):
                        yield f"Info / {name}", place[name]
