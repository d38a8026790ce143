"""One copy of a multi-agent environment: the agents in its episode, and the outputs to show for each agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pettingzoo import AECEnv
from pettingzoo.utils.conversions import (
    aec_to_parallel,
    turn_based_aec_to_parallel,
    turn_based_aec_to_parallel_wrapper,
)

from workers.envs.samples import checked_reset, checked_step
from workers.errors import EnvError
from workers.info_rows import check_infos

__all__ = ["ByAgent", "Given", "TeamCopy", "as_parallel", "check_alike"]

ByAgent = Mapping[str, Any]


def as_parallel(env: Any) -> Any:
    """Return a Parallel environment; an AEC environment is converted by PettingZoo."""
    if not isinstance(env, AECEnv):
        return env
    return aec_to_parallel(env) if env.metadata.get("is_parallelizable") else turn_based_aec_to_parallel(env)


def check_alike(env: Any, row: int, owner: str, spaces: ByAgent, action_spaces: ByAgent) -> None:
    """Check that a copy has the same agents and spaces as the first copy.

    Raises:
        EnvError: It does not.
    """
    if set(env.possible_agents) != set(spaces):
        raise EnvError(
            f"{owner}: copy {row} has possible_agents {list(env.possible_agents)}; expected those of the first copy, "
            f"{list(spaces)}"
        )
    for name in spaces:
        given, expected = (
            (env.observation_space(name), env.action_space(name)),
            (spaces[name], action_spaces[name]),
        )
        if given != expected:
            raise EnvError(f"{owner}: {name!r} of copy {row} has the spaces {given}; expected {expected}")


class Given(NamedTuple):
    """The outputs of one copy in a step, for the agents whose rows are shown."""

    observations: ByAgent
    rewards: ByAgent
    terminated: ByAgent
    truncated: ByAgent
    infos: dict[str, Any]


class TeamCopy:
    """One environment and the agents in its episode.

    Attributes:
        env: The Parallel environment.
        members: Agents whose episode continues, whether or not they act next.
        ended: Agents whose episode is over.
        is_over: Whether the last step left no agent alive.
        was_reset: Whether the environment has been reset since the last step.
    """

    def __init__(self, env: Any, names: frozenset[str]) -> None:
        self.env = env
        self._names = names
        self.members: set[str] = set()
        self.ended: set[str] = set()
        self.is_over = self.was_reset = False
        self._is_turn_based = isinstance(env, turn_based_aec_to_parallel_wrapper)

    def acting(self) -> list[str]:
        """Return the names of the agents that act in the next step."""
        names = [self.env.aec_env.agent_selection] if self._is_turn_based else self.env.agents
        return [name for name in names if name in self.members]

    def reset(self, seed: int | None = None) -> tuple[ByAgent, dict[str, Any]]:
        """Start an episode; return observations and infos.

        Raises:
            EnvError: There is no agent, an unknown agent, or no observation of an agent that acts next.
        """
        observations, infos = checked_reset(self.env.reset() if seed is None else self.env.reset(seed=seed))
        self.members, self.ended, self.was_reset = set(self.env.agents), set(), True
        if not self.members:
            raise EnvError(f"{self.env} has no agent after reset(); expected at least one")
        self._check(observations)
        return _of(observations, self.members), self._told(infos)

    def step(self, actions: ByAgent) -> Given:
        """Step the environment with the actions of the acting agents.

        Raises:
            EnvError: There is an unknown agent, or no observation of an agent that acts next or is truncated.
        """
        observations, rewards, terminated, truncated, infos = checked_step(self.env.step(actions))
        flagged = {name for name, flag in terminated.items() if flag}
        flagged.update(name for name, flag in truncated.items() if flag)
        living = set(self.env.agents) - flagged
        # an environment may keep listing ended agents with their flags, and an agent may appear and end in one step
        ended = flagged - (self.ended - self.members)
        shown = self.members | living | ended
        self.members, self.ended = (self.members - ended) | living, (self.ended | ended) - living
        self.is_over, self.was_reset = not living, False
        terminated, truncated = _of(terminated, ended), _of(truncated, ended)
        self._check(observations, truncated)
        if self.is_over:  # agents that left without a flag: without an observation there is no value to bootstrap from
            for name in self.members:
                (terminated if observations.get(name) is None else truncated)[name] = True
        return Given(_of(observations, shown), _of(rewards, shown), terminated, truncated, self._told(infos))

    def _check(self, observations: ByAgent, truncated: ByAgent = {}) -> None:  # noqa: B006 - read, never written
        """Check that the agents are known and that each agent that needs an observation has one."""
        if not self._names.issuperset(self.env.agents):
            unknown = sorted(set(self.env.agents) - self._names)
            raise EnvError(f"{self.env} has the agents {unknown}; expected only agents in its possible_agents")
        for name in (*self.acting(), *(name for name, flag in truncated.items() if flag)):
            if observations.get(name) is None:
                raise EnvError(f"{self.env} returns no observation of {name!r}, which acts next or is truncated")

    def _told(self, infos: ByAgent) -> dict[str, Any]:
        """Return the infos that are not empty."""
        told = {}
        for name, info in check_infos(infos, self.env).items():
            if name in self._names and not isinstance(info, dict):
                info = check_infos(info, f"{self.env}, {name!r}")
            if self._is_turn_based:  # PettingZoo's conversion adds `active_agent`, which `alive` replaces
                info = {key: info[key] for key in info if key != "active_agent"}
            if not isinstance(info, dict) or info:
                told[name] = info
        return told


def _of(by_agent: ByAgent, names: set[str]) -> dict[str, Any]:
    """Return the entries of the agents in `names`."""
    return (
        dict(by_agent)
        if by_agent.keys() <= names
        else {name: value for name, value in by_agent.items() if name in names}
    )
