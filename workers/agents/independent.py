"""IndependentAgents: a multi-agent composed of single agents, one for each agent name or group of names."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workers.agents.base import Learner, Space
from workers.agents.plain_data import check_names, fitting, from_plain, to_plain
from workers.by_agent import concatenate_rows
from workers.errors import AgentError
from workers.infos import merge_infos
from workers.members import missing_members, takes_infos
from workers.types import Agent

__all__ = ["IndependentAgents", "resolve_groups"]


class IndependentAgents(Learner):
    """A multi-agent with one single agent for each agent of the environment; each learns independently.

    With PPO agents this is IPPO (https://arxiv.org/abs/2011.09533). With `state_spaces` as well, the critics see the
    global state, which is MAPPO (https://arxiv.org/abs/2103.01955)::

        IndependentAgents(
            functools.partial(PPO, cfg={"rollouts": 128}),
            possible_agents=env.possible_agents,
            observation_spaces=env.observation_spaces,
            action_spaces=env.action_spaces,
            state_spaces=env.state_spaces,  # omit for IPPO
            num_envs=scope.num_envs,
        )

    The agents of a group share their parameters: one single agent plays the rows of all of them, concatenated agent by
    agent. The tags of its scalars contain the name of the group, as in ``"Loss / agent_0 / Policy loss"``.

    Attributes:
        possible_agents: Names of the agents.
        groups: Names of the agents of each group; an agent without a group forms one under its own name.
        members: The single agent of each group.
        observation_spaces: Observation space of each agent in one environment.
        action_spaces: Action space of each agent in one environment.
        state_spaces: State space of each agent in one environment, or None.
    """

    def __init__(
        self,
        make: Callable[..., Any],
        *,
        possible_agents: Sequence[str],
        observation_spaces: Mapping[str, Space],
        action_spaces: Mapping[str, Space],
        state_spaces: Mapping[str, Space | None] | None = None,
        num_envs: int,
        groups: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Make all single agents.

        Args:
            make: Class or function that makes a single agent, such as the PPO class. It is called once for each group,
                with `observation_space`, `action_space`, `state_space` and `num_envs`. The agent must also have
                `framework` (the name of its framework), `state_dict` and `load_state_dict`; for a snapshot, `snapshot`
                and `restore`, which leaves the agent unchanged if it raises.
            possible_agents: Names of all agents that can ever appear.
            observation_spaces: Observation space of each agent in one environment.
            action_spaces: Action space of each agent in one environment.
            state_spaces: State space of each agent in one environment; None if the agents see no states.
            num_envs: Number of environments.
            groups: Names of the agents that share their parameters, by group name.

        Raises:
            AgentError: The groups do not fit the agents, an agent has no space, the agents of a group have different
                spaces, or a single agent lacks a member.
        """
        self.possible_agents = list(possible_agents)
        self.observation_spaces = _of_each(observation_spaces, "observation_spaces", self.possible_agents)
        self.action_spaces = _of_each(action_spaces, "action_spaces", self.possible_agents)
        self.state_spaces: dict[str, Space | None] = dict.fromkeys(self.possible_agents)
        if state_spaces is not None:
            self.state_spaces |= _of_each(state_spaces, "state_spaces", self.possible_agents)
        self.groups = resolve_groups(groups or {}, self.possible_agents)
        self.members = {group: self._make(make, group, names, num_envs) for group, names in self.groups.items()}
        self.framework = next(iter(self.members.values())).framework
        super().__init__(num_envs=num_envs)
        kinds = [(type(one).__qualname__, getattr(one, "architecture", "")) for one in self.members.values()]
        told = [f"{kind} with {architecture}" if architecture else kind for kind, architecture in kinds]
        self.architecture = ", ".join(f"{group!r} of {one}" for group, one in zip(self.members, told, strict=True))
        self._take_infos = {group: takes_infos(member) for group, member in self.members.items()}

    @property
    def device(self) -> Any:
        """The device of all single agents; None if they have different ones, or do not say."""
        devices = {str(device): device for device in (getattr(each, "device", None) for each in self.members.values())}
        return next(iter(devices.values())) if len(devices) == 1 else None

    def _make(self, make: Callable[..., Any], group: str, names: Sequence[str], num_envs: int) -> Any:
        given: dict[str, Any] = {"num_envs": num_envs * len(names)}
        for kind in ("observation", "action", "state"):
            spaces = getattr(self, f"{kind}_spaces")
            if different := [name for name in names if spaces[name] != spaces[names[0]]]:
                raise AgentError(
                    f"{names[0]!r} and {different[0]!r} of the group {group!r} have different {kind} spaces, "
                    f"{spaces[names[0]]} and {spaces[different[0]]}; expected equal spaces, as they share parameters"
                )
            given[f"{kind}_space"] = spaces[names[0]]
        member = make(**given)
        if missing := missing_members(member, Agent, "framework", "state_dict", "load_state_dict"):
            raise AgentError(
                f"{type(member).__qualname__} of the group {group!r} lacks {', '.join(missing)}; "
                "IndependentAgents requires them of every single agent"
            )
        return member

    def init(self, *, trainer_cfg: Any = None) -> None:
        """Prepare for a trainer; see `Learner`."""
        for member in self.members.values():
            member.init(trainer_cfg=trainer_cfg)

    def enable_training_mode(self, enabled: bool = True, *, apply_to_models: bool = False) -> None:
        """Switch between training and evaluation; see `Learner`."""
        super().enable_training_mode(enabled, apply_to_models=apply_to_models)
        for member in self.members.values():
            member.enable_training_mode(enabled)

    def pre_interaction(self, *, timestep: int, timesteps: int) -> None:
        """Hook called before the interaction with the environments; see `Learner`."""
        for member in self.members.values():
            member.pre_interaction(timestep=timestep, timesteps=timesteps)

    def act(
        self,
        observations: Mapping[str, Any],
        states: Mapping[str, Any] | None,
        *,
        infos: Mapping[str, Any] | None = None,
        timestep: int,
        timesteps: int,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the actions of every agent.

        Args:
            observations: ``(num_envs, size)`` by agent name.
            states: ``(num_envs, size)`` by agent name, or None.
            infos: Infos returned with the observations; ``infos["alive"][name]`` and ``infos[name]`` go to agent
                `name`.
            timestep: Current timestep.
            timesteps: Total number of timesteps.

        Returns:
            Actions ``(num_envs, size)`` by agent name, and outputs by agent name, with ``mean_actions`` if the single
            agents return them.
        """
        actions: dict[str, Any] = {}
        outputs: dict[str, Any] = {}
        for group, names in self.groups.items():
            given: dict[str, Any] = {"timestep": timestep, "timesteps": timesteps}
            if self._take_infos[group]:
                given["infos"] = self._infos_of(names, infos)
            arrays = self._joined(names, observations), self._joined(names, states)
            taken, told = self.members[group].act(*arrays, **given)
            actions |= self._parted(names, taken)
            means = self._parted(names, told["mean_actions"]) if "mean_actions" in told else {}
            outputs |= {name: {"mean_actions": means[name]} if means else {} for name in names}
        return actions, outputs

    def predict(
        self, observations: Mapping[str, Any], *, action_mask: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the most likely actions of agents, by name; nothing of them changes.

        Args:
            observations: Observations by agent name, such as what the `reset` of a PettingZoo environment returns, each
                in any form that the `predict` of its single agent takes. Agents may be missing, such as dead ones.
            action_mask: Legal actions by agent name; agents may be missing here, too.

        Raises:
            AgentError: An agent is unknown, its observations do not fit, or its single agent has no `predict`.
        """
        masks = action_mask or {}
        if unknown := [name for name in (*observations, *masks) if name not in self.possible_agents]:
            raise AgentError(f"predict got {unknown[0]!r}; expected only agents from {self.possible_agents}")
        members = {name: self.members[group] for group, names in self.groups.items() for name in names}
        actions = {}
        for name, given in observations.items():
            if not hasattr(members[name], "predict"):
                raise AgentError(f"{type(members[name]).__qualname__} of {name!r} has no predict(); implement it")
            try:
                actions[name] = members[name].predict(given, action_mask=masks.get(name))
            except AgentError as error:
                raise AgentError(f"{name!r}: {error}") from error
        return actions

    def record_transition(self, *, infos: Mapping[str, Any], timestep: int, timesteps: int, **arrays: Any) -> None:
        """Pass each single agent its part of a transition; see `workers.types.Agent`.

        Args:
            infos: Infos of the step.
            timestep: Current timestep.
            timesteps: Total number of timesteps.
            arrays: By agent name, ``(num_envs, size)``: observations, states, actions, rewards, next_observations,
                next_states, terminated and truncated.
        """
        for group, names in self.groups.items():
            self.members[group].record_transition(
                **{kind: self._joined(names, by_agent) for kind, by_agent in arrays.items()},
                infos=self._infos_of(names, infos),
                timestep=timestep,
                timesteps=timesteps,
            )

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        """Let every single agent learn, after the interaction with the environments; see `Learner`."""
        for member in self.members.values():
            member.post_interaction(timestep=timestep, timesteps=timesteps)

    def write_tracking_data(self, *, timestep: int, timesteps: int) -> None:
        """Write all tracked scalars to `writer`, including those of the single agents; see `Learner`."""
        super().write_tracking_data(timestep=timestep, timesteps=timesteps)
        for group, member in self.members.items():
            if not hasattr(member, "write_tracking_data"):
                continue
            member.writer = _Renamed(self.writer, group)
            try:
                member.write_tracking_data(timestep=timestep, timesteps=timesteps)
            finally:
                member.writer = None

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything learned, by group name."""
        return {group: member.state_dict() for group, member in self.members.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state returned by `state_dict`.

        Raises:
            AgentError: `state` has other groups or does not fit an agent. All agents remain unchanged.
        """
        given = list(state) if isinstance(state, Mapping) else type(state).__qualname__
        if not isinstance(state, Mapping) or state.keys() != self.members.keys():
            raise AgentError(f"the state is for {given}; expected {list(self.members)}")
        self._load_members(state, "state_dict", "load_state_dict")

    def snapshot(self) -> dict[str, Any]:
        """Return copies of the whole state between two iterations; see `Learner`.

        Returns:
            ``"members"``: the snapshots of the single agents, by group name. ``"tracked"``: the scalars not yet
            written. ``"training"``: the mode.

        Raises:
            AgentError: A single agent lacks `snapshot` or `restore`.
        """
        self._check_members("snapshot", "restore")
        members = {group: member.snapshot() for group, member in self.members.items()}
        return to_plain(self._own_parts(), self._framework) | {"members": members}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a snapshot of a multi-agent that was built alike; see `Learner`.

        Raises:
            AgentError: `state` has other groups or does not fit an agent. All agents remain unchanged. Or a single
                agent lacks `snapshot` or `restore`.
        """
        self._check_members("snapshot", "restore")
        with fitting("snapshot"):
            given = {**state}
            members = given.pop("members", None)
            given = from_plain(given, self._own_parts(), self._framework)
            check_names(members, self.members, "snapshot['members']")
        self._load_members(members, "snapshot", "restore")
        self.training, self.tracked = given["training"], given["tracked"]

    def hyperparameters(self) -> dict[str, float]:
        """Return those of every group, with names such as ``"agent_0/learning_rate"``.

        Raises:
            AgentError: A single agent lacks `hyperparameters` or `set_hyperparameters`.
        """
        self._check_members("hyperparameters", "set_hyperparameters")
        return {
            f"{group}/{name}": value
            for group, member in self.members.items()
            for name, value in member.hyperparameters().items()
        }

    def set_hyperparameters(self, values: Mapping[str, float]) -> None:
        """Change some of those that `hyperparameters` returns between two iterations.

        Args:
            values: New values by name.

        Raises:
            AgentError: A name is unknown, or a single agent refuses a value or lacks a method. Nothing has changed.
        """
        known = self.hyperparameters()
        if unknown := [name for name in values if name not in known]:
            raise AgentError(f"{unknown[0]!r} cannot be changed during a run; expected one of {list(known)}")
        by_group: dict[str, dict[str, float]] = {group: {} for group in self.members}
        for path, value in values.items():
            group, _, name = path.rpartition("/")
            by_group[group][name] = value
        self._load_members(by_group, "hyperparameters", "set_hyperparameters")

    def _own_parts(self) -> dict[str, Any]:
        return {"training": self.training, "tracked": self.tracked}

    def _check_members(self, *methods: str) -> None:
        for group, member in self.members.items():
            if missing := [name for name in methods if not hasattr(member, name)]:
                raise AgentError(
                    f"{type(member).__qualname__} of the group {group!r} lacks {', '.join(missing)}; IndependentAgents "
                    "can do this only if every single agent can: implement both methods"
                )

    def _load_members(self, states: Mapping[str, Any], save: str, load: str) -> None:
        """Load the state of each single agent, or of none.

        Args:
            states: The states by group name, for every group.
            save: Name of the single agents' method that returns such a state.
            load: Name of their method that loads it, or leaves the agent unchanged.
        """
        before = {group: getattr(member, save)() for group, member in self.members.items()}
        for group, member in self.members.items():
            try:
                getattr(member, load)(states[group])
            except Exception as error:  # a single agent may be anybody's
                for name in itertools.takewhile(lambda name, failed=group: name != failed, before):  # type: ignore[misc]
                    getattr(self.members[name], load)(before[name])
                raise AgentError(f"{group!r}: {error}") from error

    def _joined(self, names: Sequence[str], by_agent: Mapping[str, Any] | None) -> Any:
        """Concatenate the rows of all agents of a group; None if there are none."""
        parts = [None if by_agent is None else by_agent[name] for name in names]
        return parts[0] if len(names) == 1 or parts[0] is None else concatenate_rows(parts, self._framework)

    def _parted(self, names: Sequence[str], rows: Any) -> dict[str, Any]:
        """Split the rows of a group by agent: the inverse of `_joined`."""
        parts = [rows] if len(names) == 1 else self._framework.split(rows, [rows.shape[0] // len(names)] * len(names))
        return dict(zip(names, parts, strict=True))

    def _infos_of(self, names: Sequence[str], infos: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the infos of the agents of a group, merged for its single agent."""
        infos = infos or {}
        parts, alive, expected = [], infos.get("alive", {}), (self.num_envs, 1)
        for name in names:
            own = infos.get(name)
            own = dict(own) if isinstance(own, dict) else {}
            if name in alive:
                own["alive"] = alive[name]
                if (shape := tuple(own["alive"].shape)) != expected:
                    raise AgentError(f"infos['alive'][{name!r}] has shape {shape}; expected {expected}")
            parts.append(own)
        return merge_infos(parts, [self.num_envs] * len(names), self._framework)


def _of_each(spaces: Mapping[str, Any], kind: str, names: Sequence[str]) -> dict[str, Any]:
    if missing := [name for name in names if spaces.get(name) is None]:
        hint = "; omit state_spaces if the agents see no states" if kind == "state_spaces" else ""
        raise AgentError(f"{kind} has no space for {missing[0]!r}; expected one for each of {list(names)}{hint}")
    return {name: spaces[name] for name in names}


class _Renamed:
    """A writer that adds the group's name to the tags of its single agent."""

    def __init__(self, writer: Any, group: str) -> None:
        self._writer = writer
        self._group = group

    def add_scalar(self, *, tag: str, value: float, timestep: int) -> None:
        """Write a scalar with the group's name in its tag."""
        kind, slash, rest = tag.partition(" / ")
        tag = f"{kind} / {self._group} / {rest}" if slash else f"{self._group} / {tag}"
        self._writer.add_scalar(tag=tag, value=value, timestep=timestep)


def resolve_groups(groups: Mapping[str, Sequence[str]], possible_agents: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return all groups, including those of a single agent, in the order of the agents.

    Raises:
        AgentError: The groups do not fit the agents.
    """
    if not isinstance(groups, Mapping):
        raise AgentError(f"groups is {groups!r}; expected a mapping of group names to agent names")
    grouped = [name for names in groups.values() for name in names]
    if unknown := [name for name in grouped if name not in possible_agents]:
        raise AgentError(f"groups contain {unknown[0]!r}; expected only agents from {list(possible_agents)}")
    if double := [name for name, count in Counter(grouped).items() if count > 1]:
        raise AgentError(f"{double[0]!r} is in the groups {dict(groups)} more than once; expected at most once")
    if empty := [group for group, names in groups.items() if not names]:
        raise AgentError(f"the group {empty[0]!r} has no agents; expected at least one")
    own = {name: (name,) for name in possible_agents if name not in grouped}
    if taken := [group for group in groups if group in own]:
        raise AgentError(f"a group is named after the agent {taken[0]!r}, which is in no group; rename the group")
    chosen = own | {group: tuple(names) for group, names in groups.items()}
    return dict(sorted(chosen.items(), key=lambda item: min(map(possible_agents.index, item[1]))))
