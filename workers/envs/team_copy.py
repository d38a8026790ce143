"""One copy of a multi-agent environment: the agents in its episode, and the outputs to show for each agent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from pettingzoo import AECEnv
from pettingzoo.utils.conversions import (
    aec_to_parallel,
    turn_based_aec_to_parallel,
    turn_based_aec_to_parallel_wrapper,
)

from workers.copying import copy_containers
from workers.envs.samples import (
    RESERVED,
    checked_flag,
    checked_infos,
    checked_number,
    checked_reset,
    checked_step,
)
from workers.errors import EnvError, type_name
from workers.info_rows import check_infos

__all__ = ["ByAgent", "Given", "TeamCopy", "as_parallel", "check_alike", "reserved_keys"]

ByAgent = Mapping[str, Any]
T = TypeVar("T")

_OUTPUTS = ("observations", "rewards", "terminated", "truncated")


def reserved_keys(names: Iterable[Any]) -> frozenset[str]:
    """Return the keys of a team's infos that the wrapper adds itself.

    Args:
        names: Names of the agents, whose masks are among these keys.
    """
    return RESERVED | {"alive"} | {f"_{name}" for name in (*names, "alive")}


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
    """The outputs of one copy in a step, for the agents whose rows are shown; the flags only of those that end."""

    observations: ByAgent
    rewards: Mapping[str, float]
    terminated: Mapping[str, bool]
    truncated: Mapping[str, bool]
    infos: dict[str, Any]


class TeamCopy:
    """One environment and the agents in its episode.

    Attributes:
        env: The Parallel environment.
        members: Agents whose episode continues, whether or not they act next.
        ended: Agents whose episode is over.
        is_over: Whether the last step left no agent alive.
        was_reset: Whether the environment has been reset since the last step.
        lost: The stored tree if the copy could not be restored: instead of a step, its agents are truncated there.
    """

    def __init__(self, env: Any, names: frozenset[str]) -> None:
        self.env = env
        self._names = names
        self._reserved = reserved_keys(names)
        self.members: set[str] = set()
        self.ended: set[str] = set()
        self.is_over = self.was_reset = False
        self.lost: dict[str, Any] | None = None
        self._is_turn_based = isinstance(env, turn_based_aec_to_parallel_wrapper)

    def acting(self) -> list[str]:
        """Return the names of the agents that act in the next step."""
        if self.lost is not None:
            return list(self.lost["acting"])
        names = [self.env.aec_env.agent_selection] if self._is_turn_based else self.env.agents
        return [name for name in names if name in self.members]

    def reset(self, seed: int | None = None) -> tuple[ByAgent, dict[str, Any]]:
        """Start an episode; return observations and infos.

        Raises:
            EnvError: There is no agent, an unknown agent, or no observation of an agent that acts next, or the
                observations or infos are not of the right form.
        """
        self.lost = None
        observations, infos = checked_reset(self.env.reset() if seed is None else self.env.reset(seed=seed))
        observations = self._by_agent(observations, "observations")
        self.members, self.ended, self.was_reset = set(self.env.agents), set(), True
        if not self.members:
            raise EnvError(f"{self.env} has no agent after reset(); expected at least one")
        self._check(observations)
        return _of(observations, self.members), self._told(infos)

    def step(self, actions: ByAgent) -> Given:
        """Step the environment with the actions of the acting agents.

        Raises:
            EnvError: There is an unknown agent, no observation of an agent that acts next or is truncated, or no reward
                or flag of an agent that acted, or an output is not of the right form.
        """
        if self.lost is not None:
            return self._truncated(self.lost)
        acted = list(actions)  # the environment may change the dictionary
        *outputs, infos = checked_step(self.env.step(actions))
        observations, rewards, terminated, truncated = map(self._by_agent, outputs, _OUTPUTS)
        self._check_complete(acted, observations, rewards, terminated, truncated)
        terminated = _checked(terminated, bool, checked_flag, "terminated")
        truncated = _checked(truncated, bool, checked_flag, "truncated")
        flagged = {name for name, flag in terminated.items() if flag}
        flagged.update(name for name, flag in truncated.items() if flag)
        living = set(self.env.agents) - flagged
        # an environment may keep listing ended agents with their flags, and an agent may appear and end in one step
        ended = flagged - (self.ended - self.members)
        shown = self.members | living | ended
        self.members, self.ended = (self.members - ended) | living, (self.ended | ended) - living
        self.is_over, self.was_reset = not living, False
        terminated, truncated = _of(terminated, ended), _of(truncated, ended)
        self._check(observations, [name for name, flag in truncated.items() if flag])
        if self.is_over:  # agents that left without a flag: without an observation there is no value to bootstrap from
            for name in self.members:
                (terminated if observations.get(name) is None else truncated)[name] = True
        numbers = _checked(_of(rewards, shown), float, checked_number, "the reward")
        return Given(_of(observations, shown), numbers, terminated, truncated, self._told(infos))

    def state(self) -> Any:
        """Return the native state."""
        return self.env.state() if self.lost is None else self.lost["native_state"]

    def lose(self, tree: dict[str, Any]) -> None:
        """Truncate the agents in the next step, as they were stored."""
        self.lost, self.members, self.ended = tree, set(tree["members"]), set(tree["ended"])

    def _truncated(self, tree: dict[str, Any]) -> Given:
        observations = {name: tree["observation"].get(name) for name in self.members}
        # without an observation there is no value to bootstrap from
        truncated = {name: observation is not None for name, observation in observations.items()}
        terminated = {name: not flag for name, flag in truncated.items()}
        self.is_over, self.was_reset = True, False
        return Given(observations, dict.fromkeys(self.members, 0.0), terminated, truncated, {})

    def _by_agent(self, given: Any, what: str) -> ByAgent:
        """Return an output of the environment, if it is a mapping."""
        if isinstance(given, (dict, Mapping)):  # dict first: a check of the abstract class takes five times as long
            if not self._names.issuperset(given):
                unknown = sorted(set(given) - self._names, key=str)
                raise EnvError(f"{self.env} returned {what} for {unknown}; expected only agents in its possible_agents")
            return given
        shown = "None" if given is None else f"a {type_name(type(given))}"
        raise EnvError(f"{self.env} returned {shown} as {what}; expected a dictionary by agent")

    def _check_complete(self, acted: Iterable[str], observations: ByAgent, *outcome: ByAgent) -> None:
        """Check that each agent that acted has a reward and both flags, unless it left and is in no output at all."""
        for what, by_agent in zip(_OUTPUTS[1:], outcome, strict=True):
            for name in acted:
                if name not in by_agent and any(name in names for names in (self.env.agents, observations, *outcome)):
                    raise EnvError(
                        f"{self.env} returned {what} for {list(by_agent)}; expected also that of {name!r}, because "
                        "each agent that acts needs a reward and both flags (terminated and truncated)"
                    )

    def _check(self, observations: ByAgent, truncated: Iterable[str] = ()) -> None:
        """Check that the agents are known and that each agent that needs an observation has one."""
        if unknown := set(self.env.agents) - self._names:
            names = sorted(unknown, key=str)
            raise EnvError(f"{self.env} has the agents {names}; expected only agents in its possible_agents")
        for name in (*self.acting(), *truncated):
            if observations.get(name) is None:
                raise EnvError(
                    f"{self.env} returned no observation for {name!r}; expected one, because it acts next or was "
                    "truncated"
                )

    def _told(self, infos: Any) -> dict[Any, Any]:
        """Return a copy of the infos that are not empty: the environment may change them in place."""
        told = {}
        for name, info in checked_infos(infos, self._reserved, self.env).items():
            if name in self._names and not isinstance(info, dict):
                info = copy_containers(check_infos(info, f"{self.env}, {name!r}"))
            if self._is_turn_based and isinstance(info, dict):
                # PettingZoo's conversion adds `active_agent`, which `alive` replaces
                info = {key: value for key, value in info.items() if key != "active_agent"}
            if not isinstance(info, dict) or info:
                told[name] = info
        return told


def _checked(by_agent: ByAgent, kind: type[T], check: Callable[[Any, str], T], what: str) -> Mapping[str, T]:
    """Return values by agent, each of which is of type `kind` or has passed the check."""
    if {kind}.issuperset(map(type, by_agent.values())):
        return by_agent
    return {name: check(value, f"{what} of {name!r}") for name, value in by_agent.items()}


def _of(by_agent: ByAgent, names: set[str]) -> dict[str, Any]:
    """Return the entries of the agents in `names`."""
    return (
        dict(by_agent)
        if by_agent.keys() <= names
        else {name: value for name, value in by_agent.items() if name in names}
    )
