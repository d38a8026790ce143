"""AgentRunner: one simultaneous agent on its scope, and AgentGroup: the agents of several scopes in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import repeat
from time import perf_counter
from typing import Any

from workers.by_agent import map_arrays, row_splitter
from workers.errors import AgentError, Failure, WorkerError
from workers.frameworks import Framework
from workers.infos import scalars, take_rows
from workers.node import node_name
from workers.scope.checks import asked_shapes, check_agent, check_fit, is_factory, takes_infos
from workers.scope.tracking import AgentTracking, Episodes, Scalars
from workers.seeding import RandomStream, skrl_key
from workers.storage.agent_file import dump_agent
from workers.types import Arrays, Mode, Phase, Scope, Tick, Transition

__all__ = ["AgentGroup", "AgentRunner"]

_FLUSH_INTERVAL = 1000
"""Iterations after which what an agent has tracked is taken from it also if nobody asks: its lists do not grow on."""


class AgentRunner:
    """One simultaneous agent on its scope.

    Attributes:
        agent: The agent, or multi-agent.
        scope: Its rows of the full batch.
        phase: What it does at the moment, or did when it failed.
        notes: What the run should say about it, once.
        agents: Names of the agents, if it is a multi-agent.
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
            observation_space: Observation space of one environment, to be compared with the agent's; that of each
                agent by name if it is a multi-agent environment.
            keeps_files: Whether the agent may write files of its own; see `AgentTracking`.

        Raises:
            AgentError: It lacks a member, or is made for other environments or another framework.
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
        self._acted: tuple[Arrays, Arrays | None, Arrays] | None = None
        self._infos: dict[str, Any] = {}  # what came with the observations to act on
        with self._stream, skrl_key(framework.name, scope.seed):
            self.agent = agent(scope) if is_factory(agent) else agent
            check_agent(self.agent, scope)
            check_fit(self.agent, scope, framework, observation_space)
            self._shapes = asked_shapes(self.agent, scope, observation_space)
            self._tracking = AgentTracking(self.agent, keeps_files=keeps_files)
            self.agent.init(trainer_cfg=cfg)
            self._tracking.start()
        self.agents = tuple(observation_space) if isinstance(observation_space, dict) else ()
        self._takes_infos = takes_infos(self.agent)
        self.notes = self._notes()
        self._is_skrls = any(kind.__module__.startswith("skrl.") for kind in type(self.agent).__mro__)
        self._collecting = False
        self._scalars = Scalars()
        self._episodes = Episodes(scope.num_envs)
        self._unflushed = 0
        self._last_tick = Tick(Mode.TRAIN, 0, cfg.timesteps)

    def _notes(self) -> tuple[str, ...]:
        if self._takes_infos or not self.agents:
            return ()
        return (
            f"{type(self.agent).__qualname__}.act() takes no infos, so that it is not told which agents are alive: "
            "where one is dead it is given rows of zeros, and learns from them as from any other",
        )

    def act(
        self, tick: Tick, observations: Arrays, states: Arrays | None, infos: dict[str, Any] | None = None
    ) -> Arrays:
        """Pre-interaction, then the actions that the environments are to take, ``(scope.num_envs, size)``.

        Args:
            tick: The iteration.
            observations: ``(scope.num_envs, size)``.
            states: ``(scope.num_envs, size)``, or None.
            infos: What came with the observations; None if they are those of the last `learn`.
        """
        agent, training = self.agent, tick.mode is Mode.TRAIN
        timestep, timesteps = tick.timestep, tick.timesteps
        self._last_tick = tick
        if infos is not None:
            self._infos = infos
        if self._shapes is not None:
            observations = map_arrays(_reshape, observations, self._shapes)
        self.phase = Phase.PRE_INTERACTION
        with self._stream:
            agent.enable_training_mode(training)
            agent.pre_interaction(timestep=timestep, timesteps=timesteps)
            self.phase = Phase.ACT
            with self._no_grad:
                start = perf_counter()
                if self._takes_infos:
                    actions, outputs = agent.act(
                        observations, states, infos=self._infos, timestep=timestep, timesteps=timesteps
                    )
                else:
                    actions, outputs = agent.act(observations, states, timestep=timestep, timesteps=timesteps)
                elapsed = (perf_counter() - start) * 1e3
                agent.track_data("Stats / Inference time (ms)", elapsed)
        if self._collecting:  # also here: not every agent can be read
            self._scalars.add("Stats / Inference time (ms)", elapsed)
        if not training and not self._stochastic_evaluation:
            actions = _mean_actions(actions, outputs)
        if self.agents:
            self._check_names(actions)
        elif getattr(actions, "shape", (None,))[0] != self._num_envs:
            raise self._wrong_rows(actions)
        self._acted = observations, states, actions
        return actions

    def _check_names(self, actions: Any) -> None:
        """Check the actions of a team."""
        if not isinstance(actions, dict) or actions.keys() != set(self.agents):
            given = list(actions) if isinstance(actions, dict) else type(actions).__qualname__
            raise AgentError(f"act() returned actions of {given}; expected those of {list(self.agents)}")
        for name, action in actions.items():
            if not self._framework.is_array(action) or action.shape[0] != self._num_envs:
                raise self._wrong_rows(action, f" for {name!r}")

    def _wrong_rows(self, actions: Any, whose: str = "") -> AgentError:
        shape = getattr(actions, "shape", None)
        given = type(actions).__qualname__ if shape is None else f"shape {tuple(shape)}"
        return AgentError(f"act() returned actions of {given}{whose}; expected an array with {self._num_envs} rows")

    def learn(
        self,
        tick: Tick,
        rewards: Arrays,
        next_observations: Arrays,
        next_states: Arrays | None,
        terminated: Arrays,
        truncated: Arrays,
        infos: dict[str, Any],
        step_time: float,
    ) -> None:
        """Let the agent record what its last actions led to (a `Transition`, spread out), then post-interaction."""
        assert self._acted is not None, "learn() follows act()"
        (observations, states, actions), self._acted = self._acted, None
        agent, timestep, timesteps = self.agent, tick.timestep, tick.timesteps
        self.phase = Phase.RECORD
        if self._shapes is not None:
            next_observations = map_arrays(_reshape, next_observations, self._shapes)
        if self._is_skrls:
            for_skrl = self._framework.flags_for_skrl
            terminated, truncated = map_arrays(for_skrl, terminated), map_arrays(for_skrl, truncated)
        collecting = self._collecting
        if collecting:
            ended = self._episodes.add(rewards, terminated, truncated, self._framework, before=self._infos, infos=infos)
            self._note_episodes(ended)
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
        self._infos = infos
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
        """The environments start anew: episodes in progress do not count, and rollouts do not go on."""
        self._episodes.restart()
        with self._stream:
            self.agent.enable_training_mode(False)  # until the next iteration that trains

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
        """Name and content of the agent's file; see `workers.storage.agent_file.dump_agent`."""
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

    def _note_episodes(self, ended: Mapping[str, Any]) -> None:
        for name, (_, returns, lengths) in ended.items():
            group = f"Episode / {name}" if name else "Episode"
            for episode_return, length in zip(returns, lengths, strict=True):
                for kind in ("mean", "min", "max"):
                    self._scalars.add(f"{group} / Return ({kind})", episode_return)
                self._scalars.add(f"{group} / Length (mean)", length)

    def _log(self, infos: dict[str, Any]) -> None:
        """Track the scalars under the configured key, also those that ended environments left in ``final_info``."""
        key = self._environment_info
        for group, place in self._places(infos):
            logged = place.get(key)
            if isinstance(logged, dict):
                for name, value in scalars(logged, self._num_envs, self._framework, place.get(f"_{key}")):
                    tag = name if "/" in name else f"{group} / {name}"
                    self.agent.track_data(tag, value)
                    if self._collecting:
                        self._scalars.add(tag, value)

    def _places(self, infos: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Where scalars may be, in infos and final ones and in those of each agent, with how their tags begin."""
        for place in (infos, infos.get("final_info")):
            if isinstance(place, dict):
                yield "Info", place
                for name in self.agents:
                    if isinstance(place.get(name), dict):
                        yield f"Info / {name}", place[name]


def _reshape(array: Any, shape: tuple[int, ...]) -> Any:
    return array.reshape(shape)


def _mean_actions(actions: Arrays, outputs: Mapping[str, Any]) -> Arrays:
    """What evaluation acts on: mean actions where the agent gives them, else the actions themselves."""
    if not isinstance(actions, dict):
        return outputs.get("mean_actions", actions)
    return {name: (outputs.get(name) or {}).get("mean_actions", action) for name, action in actions.items()}


class AgentGroup:
    """The agents of all rows of one `EnvSlice`, in this process."""

    def __init__(self, runners: Sequence[AgentRunner], framework: Framework, *, copies: bool = True) -> None:
        """Put them together.

        Args:
            runners: The agents, in scope order.
            framework: The trainer's framework.
            copies: Whether to give them copies; a single agent can do without where nobody else has its arrays.
        """
        self.runners = runners
        self._framework = framework
        self._sizes = [runner.scope.num_envs for runner in runners]
        self._num_envs = sum(self._sizes)
        self._first_env = runners[0].scope.start
        self._nothing = (None,) * len(runners)
        self._copies = row_splitter(framework, self._sizes, by_agent=bool(runners[0].agents))
        self._split = self._copies if copies or len(runners) > 1 else lambda arrays: (arrays,)
        self._last_split: tuple[Arrays | None, Sequence[Any]] = (None, ())

    def act(
        self, tick: Tick, observations: Arrays, states: Arrays | None, infos: dict[str, Any] | None
    ) -> Sequence[Arrays]:
        """Actions of every agent, in scope order."""
        split, rows = self._last_split
        if split is not observations:
            rows = self._copies(observations)
        # not those that were recorded as the next ones: an agent may have changed them
        state_rows = self._nothing if states is None else self._copies(states)
        parts = self._nothing if infos is None else self._split_infos(infos)
        return self._each(AgentRunner.act, repeat(tick), rows, state_rows, parts)

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
