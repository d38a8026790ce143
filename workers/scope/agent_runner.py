"""AgentRunner: one simultaneous agent on its scope."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from time import perf_counter
from typing import Any

from workers.agents.base import Learner
from workers.by_agent import map_arrays
from workers.errors import AgentError
from workers.frameworks import Framework
from workers.members import is_factory, is_of_skrl, takes_infos
from workers.node import node_name
from workers.scope.agent_keeper import AgentKeeper
from workers.scope.agent_log import AgentLog
from workers.scope.agent_state import reason_not_kept
from workers.scope.checks import asked_shapes, build_agent, check_fit, checked_pair
from workers.scope.tracking import AgentTracking
from workers.seeding import GlobalStream, RandomStream, skrl_key
from workers.types import Arrays, Description, Mode, Phase, Scope, Tick

__all__ = ["AgentRunner"]

_FLUSH_INTERVAL = 1000
"""Iterations between flushes of what an agent tracks, even if not requested, so that its lists stay bounded."""


class AgentRunner(AgentKeeper):
    """One simultaneous agent on its scope.

    Attributes:
        agent: The agent, or multi-agent.
        scope: Its rows of the full batch.
        phase: Current phase, or the phase that failed.
        notes: Notes that Lockstep logs once per run.
        agents: Names of the agents of a multi-agent; empty for a single agent.
    """

    def __init__(
        self,
        agent: Any,
        scope: Scope,
        framework: Framework,
        *,
        cfg: Any,
        observation_space: Any,
        action_space: Any = None,
        keeps_files: bool = False,
        pickler: type[pickle.Pickler] = pickle.Pickler,
    ) -> None:
        """Take an agent, or build it, and initialise it.

        Args:
            agent: The agent, or its factory.
            scope: Its rows of the full batch, and its seed.
            framework: The trainer's framework.
            cfg: The trainer's configuration, passed to ``agent.init``.
            observation_space: Observation space of one environment, to compare with the agent's; by agent name in a
                multi-agent environment.
            action_space: Action space of one environment, or the spaces by agent name; None if the environments are in
                another process. The agent samples it with a generator of its own.
            keeps_files: Whether the agent may write its own files; see `AgentTracking`.
            pickler: Pickles an agent whose state only pickle can hold.

        Raises:
            AgentError: The agent lacks a member, or is made for other environments or another framework.
        """
        self.phase = Phase.BUILD
        self.scope = scope
        self._num_envs = scope.num_envs
        self._framework = framework
        self._pickler = pickler
        self._staged: Any = None
        self._no_grad = framework.no_grad()
        stream = None if scope.seed is None else RandomStream(scope.seed, framework, agent, action_space)
        self._stream = stream or GlobalStream(framework)
        self._stochastic_evaluation = cfg.stochastic_evaluation
        self._acted: tuple[Arrays, Arrays | None, Arrays] | None = None
        self._infos: dict[str, Any] = {}  # infos of the observations to act on
        with self._stream, skrl_key(framework.name, scope.seed):
            self.agent = build_agent(agent, scope)
            check_fit(self.agent, scope, framework, observation_space)
            self._shapes = asked_shapes(self.agent, scope, observation_space)
            self._tracking = AgentTracking(self.agent, keeps_files=keeps_files)
            self.agent.init(trainer_cfg=cfg)
            if is_factory(agent) and hasattr(agent, "after_init"):  # it loads something into what it has built
                agent.after_init(self.agent)
            self._tracking.start()
            if stream is not None:
                stream.hold_spaces(self.agent)
        self.agents = tuple(observation_space) if isinstance(observation_space, dict) else ()
        self._takes_infos = takes_infos(self.agent)
        self.notes = tuple(self._notes(handed_over=not is_factory(agent), keeps_files=keeps_files))
        self._is_skrls = is_of_skrl(self.agent)
        self._device = getattr(self.agent, "device", None) if self._is_skrls else None
        self._log = AgentLog(
            self.agent,
            framework,
            num_envs=scope.num_envs,
            agents=self.agents,
            environment_info=cfg.environment_info,
        )
        self._unflushed = 0
        self._last_tick = self._reset_tick = Tick(Mode.TRAIN, 0, cfg.timesteps)

    def _notes(self, *, handed_over: bool, keeps_files: bool) -> Iterator[str]:
        kind, unused = type(self.agent).__qualname__, self._tracking.unused
        if self.agents and not self._takes_infos:
            yield (
                f"{kind}.act() takes no infos, so it cannot tell which agents are alive: it gets rows of zeros for a "
                "dead agent, and learns from them as from any other row"
            )
        if unused:
            yield (
                f"{' and '.join(unused)} of {kind} {'are' if len(unused) > 1 else 'is'} ignored: an agent that a "
                "factory builds, or that runs in Ray, writes no files; use collect_metrics() for its scalars and "
                "agent_files() for its state"
            )
        if reason := reason_not_kept(self.agent, self._framework, self._pickler):
            yield (
                f"the state of {kind} cannot be saved: it has no snapshot() and restore(state), and it cannot be "
                f"pickled ({reason}); trainer.save() will refuse it"
            )
        if handed_over and not keeps_files:
            yield (
                f"the {kind} instance that you passed is trained as a copy in its worker; trainer.agents and close() "
                "copy the trained state back into it"
            )

    def act(
        self, tick: Tick, observations: Arrays, states: Arrays | None, infos: dict[str, Any] | None = None
    ) -> Arrays:
        """Run pre-interaction, and return the actions for the environments, ``(scope.num_envs, size)``.

        Args:
            tick: The iteration.
            observations: ``(scope.num_envs, size)``.
            states: ``(scope.num_envs, size)``, or None.
            infos: Infos of the observations; None for those of the last `learn`.
        """
        agent, training = self.agent, tick.mode is Mode.TRAIN
        timestep, timesteps = tick.timestep, tick.timesteps
        last, self._last_tick = self._last_tick, tick
        if infos is not None:
            self._infos = infos
        if self._device is not None:
            observations, states = self._moved(observations), self._moved(states)
        if self._shapes is not None:
            observations = map_arrays(_reshape, observations, self._shapes)
        self.phase = Phase.PRE_INTERACTION
        with self._stream:
            if tick.mode is not last.mode:
                self._change_mode(last, tick.mode)
            agent.enable_training_mode(training)
            agent.pre_interaction(timestep=timestep, timesteps=timesteps)
            self.phase = Phase.ACT
            with self._no_grad:
                start = perf_counter()
                if self._takes_infos:
                    acted = agent.act(observations, states, infos=self._infos, timestep=timestep, timesteps=timesteps)
                else:
                    acted = agent.act(observations, states, timestep=timestep, timesteps=timesteps)
                elapsed = (perf_counter() - start) * 1e3
                actions, outputs = checked_pair(acted)
                agent.track_data("Stats / Inference time (ms)", elapsed)
        if self._log.collecting:  # also here: what some agents track cannot be read
            self._log.note_time("Inference", elapsed)
        if not training and not self._stochastic_evaluation:
            actions = _mean_actions(actions, outputs)
        if self.agents:
            self._check_names(actions)
        else:
            self._check_rows(actions)
        self._acted = observations, states, actions
        return actions

    def _moved(self, arrays: Any) -> Any:
        """Return arrays on the device of an agent that takes no others."""
        device, to_device = self._device, self._framework.to_device
        return map_arrays(lambda array: None if array is None else to_device(array, device), arrays)

    def _change_mode(self, last: Tick, mode: Mode) -> None:
        """Keep what was tracked up to the last iteration apart from what the next ones track."""
        with self._no_grad:
            self._tracking.change_mode(last, mode)
        self._log.change_mode(mode)

    def _check_names(self, actions: Any) -> None:
        """Check the actions of a team."""
        if not isinstance(actions, dict) or actions.keys() != set(self.agents):
            given = list(actions) if isinstance(actions, dict) else f"type {type(actions).__qualname__}"
            raise AgentError(f"act() returned actions of {given}; expected a dictionary with keys {list(self.agents)}")
        for name, action in actions.items():
            self._check_rows(action, f" for {name!r}")

    def _check_rows(self, actions: Any, whose: str = "") -> None:
        """Check that `actions` is an array with a row for every environment."""
        is_array = self._framework.is_array(actions)
        shape = actions.shape if is_array else ()
        if shape and shape[0] == self._num_envs:
            return
        given = f"shape {tuple(shape)}" if is_array else f"type {type(actions).__qualname__}"
        raise AgentError(
            f"act() returned actions of {given}{whose}; expected a {self._framework.name} array with "
            f"{self._num_envs} rows"
        )

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
        """Record the result of the last actions (an unpacked `Transition`), then run post-interaction."""
        assert self._acted is not None, "learn() must follow act()"
        (observations, states, actions), self._acted = self._acted, None
        agent, timestep, timesteps = self.agent, tick.timestep, tick.timesteps
        self.phase = Phase.RECORD
        if self._shapes is not None:
            next_observations = map_arrays(_reshape, next_observations, self._shapes)
        if self._is_skrls:
            for_skrl = self._framework.flags_for_skrl
            terminated, truncated = map_arrays(for_skrl, terminated), map_arrays(for_skrl, truncated)
        if self._device is not None:
            given = (rewards, next_observations, next_states, terminated, truncated)
            rewards, next_observations, next_states, terminated, truncated = map(self._moved, given)
        log, collecting = self._log, self._log.collecting
        if collecting:
            log.note_step(rewards, terminated, truncated, before=self._infos, infos=infos)
            log.note_time("Env stepping", step_time)
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
                    log.track_infos(infos)
            self.phase = Phase.POST_INTERACTION
            if collecting:
                recorded = perf_counter()
            agent.post_interaction(timestep=timestep, timesteps=timesteps)
        if collecting:
            log.note_time("Recording", (recorded - start) * 1e3)
            log.note_time("Post-interaction", (perf_counter() - recorded) * 1e3)
        self._infos = infos
        self._unflushed += 1
        if self._unflushed == _FLUSH_INTERVAL:
            self._flush()

    def collect(self) -> dict[str, float]:
        """Return the scalars since the last call, by tag; the first call starts measuring episodes and phases."""
        self.phase = Phase.COLLECT
        if not self._log.collecting:
            self._log.start(midway=self._last_tick is not self._reset_tick)
        self._flush()
        return self._log.drain() | self._tracking.writer.scalars.drain()

    def restart(self) -> None:
        """Prepare for reset environments: discard the episodes in progress and end the rollout."""
        self._log.restart()
        self._reset_tick = self._last_tick
        with self._stream:
            self.agent.enable_training_mode(False)  # until the next iteration that trains

    def describe(self, env_notes: tuple[str, ...]) -> Description:
        """Describe the agent and its process; `env_notes` are the notes of its environments."""
        kind, threads = type(self.agent).__qualname__, self._framework.num_threads()
        device = getattr(self.agent, "device", None)
        name = "" if device is None else self._framework.device_name(device)
        architecture = self.agent.architecture if isinstance(self.agent, Learner) else ""
        return Description(kind, node_name(), threads, self.agents, env_notes + self.notes, name, architecture)

    @property
    def timestep(self) -> int:
        """Timestep of the last iteration."""
        return self._last_tick.timestep

    def release(self) -> None:
        """Undo the trainer's changes to the agent."""
        self._tracking.stop()

    def _flush(self) -> None:
        self._unflushed = 0
        with self._stream, self._no_grad:
            self._log.flush()
            self._tracking.flush(self._last_tick)


def _reshape(array: Any, shape: tuple[int, ...]) -> Any:
    return array.reshape(shape)


def _mean_actions(actions: Arrays, outputs: dict[str, Any]) -> Arrays:
    """Return the actions for evaluation: mean actions if the agent returns them, else the actions themselves."""
    if not isinstance(actions, dict):
        return outputs.get("mean_actions", actions)
    return {name: (outputs.get(name) or {}).get("mean_actions", action) for name, action in actions.items()}
