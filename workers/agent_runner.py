"""AgentRunner: one simultaneous agent on its scope, and AgentGroup: the agents of several scopes in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import repeat
from time import perf_counter
from typing import Any

import gymnasium
from gymnasium.spaces.utils import flatdim

from workers.agent_file import dump_agent
from workers.errors import AgentError, Failure, WorkerError
from workers.frameworks import Framework, available_frameworks
from workers.infos import scalars, take_rows
from workers.node import node_name
from workers.seeding import RandomStream, skrl_key
from workers.tracking import AgentTracking, Episodes, Scalars
from workers.types import Agent, Array, Mode, Phase, Scope, Tick, Transition, required_members

__all__ = ["AgentGroup", "AgentRunner", "check_agent", "is_factory"]

_FLUSH_INTERVAL = 1000
"""Iterations after which what an agent has tracked is taken from it also if nobody asks: its lists do not grow on."""


def is_factory(agent: Any) -> bool:
    """Whether `agent` makes an agent rather than being one: a class, or a callable without ``act``."""
    return isinstance(agent, type) or (callable(agent) and not hasattr(agent, "act"))


def check_agent(agent: Any, scope: Scope) -> None:
    """Check that `agent` has all members that an agent must have.

    Raises:
        AgentError: It lacks some; the message names them.
    """
    if missing := [name for name in required_members(Agent) if not hasattr(agent, name)]:
        raise AgentError(
            f"the agent of scope {scope.index}, {type(agent).__qualname__}, lacks {', '.join(missing)}; "
            "an agent needs these with skrl's signatures"
        )


class AgentRunner:
    """One simultaneous agent on its scope.

    Attributes:
        agent: The agent.
        scope: Its rows of the full batch.
        phase: What it does at the moment, or did when it failed.
    """

    def __init__(
        self,
        agent: Any,
        scope: Scope,
        framework: Framework,
        *,
        cfg: Any,
        observation_space: Any,
        keeps_files: bool = False,
    ) -> None:
        """Take over an agent, or make it, and initialise it.

        Args:
            agent: The agent, or the factory that makes it.
            scope: Its rows of the full batch, and its seed.
            framework: The trainer's framework.
            cfg: The trainer's configuration, given to ``agent.init``.
            observation_space: Observation space of one environment, to be compared with the agent's.
            keeps_files: Whether the agent may write files of its own; see `AgentTracking`.

        Raises:
            AgentError: It lacks a member, or is made for observations of another width.
        """
        self.phase = Phase.BUILD
        self.scope = scope
        self._num_envs = scope.num_envs
        self._framework = framework
        self._no_grad = framework.no_grad()
        self._stream: AbstractContextManager[Any] = nullcontext()
        if scope.seed is not None:
            self._stream = RandomStream(scope.seed, framework)
        self._environment_info = cfg.environment_info
        self._stochastic_evaluation = cfg.stochastic_evaluation
        self._acted: tuple[Array, Array | None, Array] | None = None
        with self._stream, skrl_key(framework.name, scope.seed):
            self.agent = agent(scope) if is_factory(agent) else agent
            check_agent(self.agent, scope)
            _check_framework(self.agent, scope, framework)
            _check_width(self.agent, scope, observation_space)
            self._shape = _asked_shape(self.agent, scope, observation_space)
            self._tracking = AgentTracking(self.agent, keeps_files=keeps_files)
            self.agent.init(trainer_cfg=cfg)
            self._tracking.start()
        self._is_skrls = any(kind.__module__.startswith("skrl.") for kind in type(self.agent).__mro__)
        self._collecting = False
        self._scalars = Scalars()
        self._episodes = Episodes(scope.num_envs)
        self._unflushed = 0
        self._last_tick = Tick(Mode.TRAIN, 0, cfg.timesteps)

    def act(self, tick: Tick, observations: Array, states: Array | None) -> Array:
        """Pre-interaction, then the actions that the environments are to take, ``(scope.num_envs, size)``."""
        agent, training = self.agent, tick.mode is Mode.TRAIN
        timestep, timesteps = tick.timestep, tick.timesteps
        self._last_tick = tick
        if self._shape is not None:
            observations = observations.reshape(self._shape)
        self.phase = Phase.PRE_INTERACTION
        with self._stream:
            agent.enable_training_mode(training)
            agent.pre_interaction(timestep=timestep, timesteps=timesteps)
            self.phase = Phase.ACT
            with self._no_grad:
                start = perf_counter()
                actions, outputs = agent.act(observations, states, timestep=timestep, timesteps=timesteps)
                elapsed = (perf_counter() - start) * 1e3
                agent.track_data("Stats / Inference time (ms)", elapsed)
        if self._collecting:  # also here: not every agent can be read
            self._scalars.add("Stats / Inference time (ms)", elapsed)
        if not training and not self._stochastic_evaluation:
            actions = outputs.get("mean_actions", actions)
        if actions.shape[0] != self._num_envs:
            raise AgentError(f"act() returned actions of shape {tuple(actions.shape)}; expected {self._num_envs} rows")
        self._acted = observations, states, actions
        return actions

    def learn(
        self,
        tick: Tick,
        rewards: Array,
        next_observations: Array,
        next_states: Array | None,
        terminated: Array,
        truncated: Array,
        infos: dict[str, Any],
        step_time: float,
    ) -> None:
        """Let the agent record what its last actions led to (a `Transition`, spread out), then post-interaction."""
        assert self._acted is not None, "learn() follows act()"
        (observations, states, actions), self._acted = self._acted, None
        agent, timestep, timesteps = self.agent, tick.timestep, tick.timesteps
        self.phase = Phase.RECORD
        if self._shape is not None:
            next_observations = next_observations.reshape(self._shape)
        if self._is_skrls:
            terminated, truncated = map(self._framework.flags_for_skrl, (terminated, truncated))
        collecting = self._collecting
        if collecting:
            self._note_episodes(rewards, terminated, truncated)
            self._scalars.add("Stats / Env stepping time (ms)", step_time)
            start = perf_counter()
        with self._stream:
            with self._no_grad:
                agent.track_data("Stats / Env stepping time (ms)", step_time)
                agent.record_transition(
                    observations=observations,
                    states=states,
                    actions=actions,
                    rewards=rewards,
                    next_observations=next_observations,
                    next_states=next_states,
                    terminated=terminated,
                    truncated=truncated,
                    infos=infos,
                    timestep=timestep,
                    timesteps=timesteps,
                )
                if infos:
                    self._log(infos)
            self.phase = Phase.POST_INTERACTION
            if collecting:
                recorded = perf_counter()
            agent.post_interaction(timestep=timestep, timesteps=timesteps)
        if collecting:
            self._scalars.add("Stats / Recording time (ms)", (recorded - start) * 1e3)
            self._scalars.add("Stats / Post-interaction time (ms)", (perf_counter() - recorded) * 1e3)
        self._unflushed += 1
        if self._unflushed == _FLUSH_INTERVAL:
            self._flush()

    def collect(self) -> dict[str, float]:
        """Scalars by tag since the last call; the first one starts the measuring of episodes and phases."""
        self.phase = Phase.COLLECT
        self._collecting = True
        self._flush()
        return self._scalars.drain() | self._tracking.writer.scalars.drain()

    def restart(self) -> None:
        """The environments start anew: the episodes in progress do not count."""
        self._episodes.restart()

    @property
    def timestep(self) -> int:
        """Timestep of the last iteration."""
        return self._last_tick.timestep

    @contextmanager
    def as_handed_over(self) -> Iterator[Any]:
        """The agent as its owner knows it, without what the trainer has put into it."""
        self._tracking.stop()
        try:
            yield self.agent
        finally:
            self._tracking.start()

    def agent_file(self) -> tuple[str, bytes]:
        """Name and content of the agent's file; see `workers.agent_file.dump_agent`."""
        self.phase = Phase.STORE
        with self.as_handed_over() as agent:
            return dump_agent(agent, self._framework)

    def release(self) -> None:
        """Give the agent back as its owner knows it."""
        self._tracking.stop()

    def _flush(self) -> None:
        self._unflushed = 0
        with self._stream, self._no_grad:
            self._tracking.flush(self._last_tick)

    def _note_episodes(self, rewards: Array, terminated: Array, truncated: Array) -> None:
        _, returns, lengths = self._episodes.add(rewards, terminated, truncated, self._framework)
        for episode_return, length in zip(returns, lengths, strict=True):
            for kind in ("mean", "min", "max"):
                self._scalars.add(f"Episode / Return ({kind})", episode_return)
            self._scalars.add("Episode / Length (mean)", length)

    def _log(self, infos: dict[str, Any]) -> None:
        """Track the scalars under the configured key, also those that ended environments left in ``final_info``."""
        key = self._environment_info
        for place in (infos, infos.get("final_info")):
            logged = place.get(key) if isinstance(place, dict) else None
            if place is not None and isinstance(logged, dict):
                for name, value in scalars(logged, self._num_envs, self._framework, place.get(f"_{key}")):
                    tag = name if "/" in name else f"Info / {name}"
                    self.agent.track_data(tag, value)
                    if self._collecting:
                        self._scalars.add(tag, value)


class AgentGroup:
    """The agents of all rows of one `EnvSlice`, in this process."""

    def __init__(self, runners: Sequence[AgentRunner], framework: Framework) -> None:
        self.runners = runners
        self._framework = framework
        self._sizes = [runner.scope.num_envs for runner in runners]
        self._num_envs = sum(self._sizes)
        self._first_env = runners[0].scope.start
        self._nothing = (None,) * len(runners)
        self._split = _splitter(framework, self._sizes)
        self._last_split: tuple[Array | None, Sequence[Any]] = (None, ())

    def act(self, tick: Tick, observations: Array, states: Array | None) -> Sequence[Array]:
        """Actions of every agent, in scope order."""
        split, rows = self._last_split
        if split is not observations:
            rows = self._split(observations)
        return self._each(AgentRunner.act, repeat(tick), rows, self._nothing if states is None else self._split(states))

    def learn(self, tick: Tick, transition: Transition) -> None:
        """Hand every agent its rows of the transition."""
        split = self._split
        rewards, next_observations, next_states, terminated, truncated, infos, step_time = transition
        rows = split(next_observations)
        # mostly the next iteration acts on just these observations
        self._last_split = (next_observations, rows)
        self._each(
            AgentRunner.learn,
            repeat(tick),
            split(rewards),
            rows,
            self._nothing if next_states is None else split(next_states),
            split(terminated),
            split(truncated),
            self._split_infos(infos),
            repeat(step_time),
        )

    def collect(self) -> list[dict[str, float]]:
        """Scalars of every agent since the last call, by tag."""
        return self._each(AgentRunner.collect)

    def agent_files(self) -> list[tuple[str, bytes]]:
        """Name and content of every agent's file."""
        return self._each(AgentRunner.agent_file)

    def restart(self) -> None:
        """The next iteration acts on other observations than those that the last one led to."""
        self._last_split = (None, ())
        for runner in self.runners:
            runner.restart()

    def _split_infos(self, infos: dict[str, Any]) -> list[dict[str, Any]]:
        if not infos:
            return [{} for _ in self.runners]
        first, scopes = self._first_env, (runner.scope for runner in self.runners)
        return [
            take_rows(infos, scope.start - first, scope.stop - first, self._num_envs, self._framework)
            for scope in scopes
        ]

    def _each(self, method: Callable[..., Any], *columns: Iterable[Any]) -> list[Any]:
        """Call `method` of every runner, also when one fails, so that every failed scope is reported."""
        results, failures, cause = [], [], None
        calls = map(method, self.runners, *columns)
        for runner in self.runners:
            try:
                results.append(next(calls))  # which goes on with the next runner after an error
            except Exception as error:
                cause = error
                failures.append(
                    Failure.of(
                        error,
                        scope=runner.scope.index,
                        rows=runner.scope.rows,
                        phase=runner.phase.value,
                        timestep=runner.timestep,
                        node=node_name(),
                    )
                )
        if failures:
            raise WorkerError(failures) from cause
        return results


def _splitter(framework: Framework, sizes: Sequence[int]) -> Callable[[Array], Sequence[Array]]:
    """Gives rows by scope, as fresh copies: a view may give other bits than a remote agent sees."""
    split, copy = framework.split, framework.copy
    if len(sizes) == 1:
        return lambda array: (copy(array),)
    return lambda array: split(array, sizes)


def _check_framework(agent: Any, scope: Scope, framework: Framework) -> None:
    given = getattr(agent, "framework", framework.name)
    if given != framework.name and given in available_frameworks():
        raise AgentError(
            f"the agent of scope {scope.index}, {type(agent).__module__}.{type(agent).__qualname__}, is for {given!r}, "
            f"but the trainer is for {framework.name!r}"
        )


def _check_width(agent: Any, scope: Scope, observation_space: Any) -> None:
    expected, given = (_width(space) for space in (getattr(agent, "observation_space", None), observation_space))
    if expected is not None and given is not None and expected != given:
        raise AgentError(
            f"the agent of scope {scope.index} is made for observations of width {expected} "
            f"({agent.observation_space}), but the environments give {given} ({observation_space})"
        )


def _asked_shape(agent: Any, scope: Scope, observation_space: Any) -> tuple[int, ...] | None:
    """Shape of the observations for an agent that asks for them unflattened, None for any other."""
    if not getattr(agent, "unflatten_observations", False):
        return None
    if not isinstance(observation_space, gymnasium.spaces.Box):
        raise AgentError(
            f"the agent of scope {scope.index} asks for unflattened observations, but the observation space is "
            f"{observation_space}; expected a Box"
        )
    return (scope.num_envs, *observation_space.shape)


def _width(space: Any) -> int | None:
    return flatdim(space) if isinstance(space, gymnasium.Space) and space.is_np_flattenable else None
