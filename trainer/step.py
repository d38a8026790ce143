"""StepTrainer, independent of the framework."""

from __future__ import annotations

import atexit
import logging
import sys
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar

import tqdm

from orchestrator.base import Orchestrator, Plan
from orchestrator.scopes import resolve_scopes
from trainer.checks import check_agents, checked_count, checked_num_envs, checked_seed, resolve_orchestrator
from trainer.config import StepTrainerCfg, StepTrainerCfgDict, resolve_cfg
from trainer.lifecycle import Lifecycle, State
from trainer.worker_state import WorkerState
from workers.errors import AgentError, ConfigError, close_or_log
from workers.frameworks import load_framework
from workers.threads import HeldThreads
from workers.types import Mode, Tick

__all__ = ["StepTrainer"]

_logger = logging.getLogger("lockstep")


A = TypeVar("A")
"""An array of the framework; with a multi-agent environment, a dictionary of arrays by agent name."""

Outputs = tuple[A, A, A, A, dict[str, Any]]


class StepTrainer(WorkerState, Generic[A]):
    """Trains simultaneous agents one step at a time, with identical results in one process and in Ray actors.

    You write the loop::

        trainer = StepTrainer(env=env, agents=agents, scopes=[32, 32], cfg={"timesteps": 50_000, "headless": True})
        for timestep in range(50_000):
            observations, rewards, terminated, truncated, infos = trainer.train(timestep=timestep)

    Attributes:
        env: The environments. With Ray, if the workers own the environments: the `env` argument.
        scopes: Rows ``(start, stop)`` of each simultaneous agent.
        cfg: The configuration.
        num_simultaneous_agents: Number of simultaneous agents.
    """

    def __init__(
        self,
        *,
        env: Any,
        agents: Any,
        scopes: Sequence[int] | None = None,
        cfg: StepTrainerCfg | StepTrainerCfgDict = {},  # noqa: B006 - read, never written
        orchestrator: Literal["local", "ray"] | Orchestrator = "local",
        seed: int | None = None,
    ) -> None:
        """Check the arguments and build the workers.

        Args:
            env: An environment with the members of `workers.types.Env` or `workers.types.MultiAgentEnv`, or an
                `EnvFactory`.
            agents: An agent or an agent factory, or a list with one for each simultaneous agent. A multi-agent
                environment needs multi-agents. A factory is a class, or a callable without ``act``. It is called once,
                with its `Scope`, in the process where the agent will live.
            scopes: Number of environments of each simultaneous agent. None: divide them as equally as possible.
            cfg: The configuration, or a dictionary with its fields.
            orchestrator: ``"local"`` (this process), ``"ray"`` (an actor for each simultaneous agent), a
                `LocalOrchestrator` or a `RayOrchestrator`.
            seed: Seed of environments and agents, at least 0. None: all random generators are left untouched.

        Raises:
            ConfigError: `cfg`, `orchestrator` or `seed` is invalid.
            ScopeError: The scopes do not fit the environments or the agents.
            EnvError: The environment lacks a member, or its factory does not build what was requested.
            AgentError: An agent lacks a member, is in several scopes, or cannot be sent to its worker.
            ClusterError: Ray cannot be reached, or lacks the requested resources.
            WorkerError: Environments or an agent failed while a worker was built.
        """
        self.cfg = resolve_cfg(cfg)
        framework = load_framework(self.framework)
        seed = checked_seed(seed)
        num_envs = checked_num_envs(env, framework)
        given = list(agents) if isinstance(agents, (list, tuple)) else [agents]
        if not given:
            raise AgentError("agents is an empty list; expected an agent or a factory, or one for each scope")
        _scopes = resolve_scopes(scopes, num_envs=num_envs, num_simultaneous_agents=len(given), seed=seed)
        check_agents(given, _scopes)
        self.scopes = [scope.rows for scope in _scopes]
        self.num_simultaneous_agents = len(given)
        self._num_envs = num_envs
        self._seed = seed
        self._timestep = self._next_timestep = self._done = self._collected = 0
        self._progress = None
        self.loop_state = {}
        self._lifecycle = Lifecycle()
        self._plan = Plan(env=env, agents=given, scopes=_scopes, cfg=self.cfg, framework=framework, seed=seed)
        orchestrator = resolve_orchestrator(orchestrator)
        self._num_threads = orchestrator.num_threads
        self._threads = HeldThreads(framework, self._num_threads)
        with self._threads:
            self._session = orchestrator.start(self._plan)
        self.env = self._session.env
        for note in dict.fromkeys(note for worker in self._session.workers for note in worker.notes):
            _logger.warning(note)
        atexit.register(self._close_at_exit)

    def train(self, timestep: int | None = None, timesteps: int | None = None) -> Outputs[A]:
        """Do one training iteration.

        Phases, in order: pre-interaction, compute actions, interact with the environments, render, record transitions,
        post-interaction (where agents learn), reset environments.

        Args:
            timestep: Current timestep. None: use the internal counter, which is incremented first, so that the first
                call sees 1. An explicit timestep does not change the counter.
            timesteps: Total number of timesteps, passed to every phase. None: ``cfg.timesteps``.

        Returns:
            Observations ``(num_envs, size)`` as returned by ``env.step``, rewards ``(num_envs, 1)``, terminated and
            truncated ``(num_envs, 1)``, and infos. Row i belongs to environment i. In a multi-agent environment each
            array is a dictionary of arrays by agent name.

        Raises:
            ConfigError: `timestep` or `timesteps` is negative.
            WorkerError: Environments or agents of some scopes failed, or workers were lost that cannot be rebuilt; the
                trainer can only be closed afterwards.
            ClusterError: Ray's head node does not answer any more. Between iterations, `save` still works.
            LifecycleError: The trainer is closed or has failed, or iterations of `iterate` are under way.
        """
        self._lifecycle.require_ready("train()")
        self._submit(Mode.TRAIN, timestep, timesteps)
        return self._result()

    def eval(self, timestep: int | None = None, timesteps: int | None = None) -> Outputs[A]:
        """Do one evaluation iteration.

        Like `train`, but the agents' training mode is off, so that nothing is learnt, and the environments get the mean
        actions unless ``cfg.stochastic_evaluation`` is set. It steps the training environments, from where they stand.

        Args:
            timestep: As for `train`.
            timesteps: As for `train`.

        Returns:
            As for `train`.

        Raises:
            ConfigError: As for `train`.
            WorkerError: As for `train`.
            LifecycleError: As for `train`.
        """
        self._lifecycle.require_ready("eval()")
        self._submit(Mode.EVAL, timestep, timesteps)
        return self._result()

    def run(self, n: int, timestep: int | None = None, timesteps: int | None = None) -> Outputs[A]:
        """Do `n` training iterations, with the same results as `n` calls of `train`.

        In Ray, a worker that owns its environments gets one message for all iterations up to the next snapshot. It does
        not wait for the other workers in between. `collect_metrics` has metrics and episodes of all iterations.

        Args:
            n: Number of iterations, at least 1.
            timestep: Timestep of the first iteration; it increases by 1 with each further one. None: as for `train`.
            timesteps: As for `train`.

        Returns:
            The outputs of the last iteration, as for `train`.

        Raises:
            ConfigError: `n` is less than 1, or `timestep` or `timesteps` is negative.
            WorkerError: As for `train`.
            LifecycleError: As for `train`.
            KeyboardInterrupt: Every worker stops after its current iteration; the trainer can only be closed
                afterwards.
        """
        self._lifecycle.require_ready("run()")
        self._submit(Mode.TRAIN, timestep, timesteps, checked_count("n", n, least=1))
        return self._result(n)

    def iterate(
        self, n: int, timestep: int | None = None, timesteps: int | None = None, *, prefetch: int = 1
    ) -> Iterator[Outputs[A]]:
        """Yield the outputs of `n` training iterations while the workers do the next ones.

        The results equal those of `n` calls of `train`. In Ray, if the workers own their environments, up to `prefetch`
        further iterations are under way while the loop body runs. They are completed before `collect_metrics` or
        `agents` is answered in the loop, and before a loop that is left early ends.

        Args:
            n: Number of iterations, at least 0.
            timestep: As for `run`.
            timesteps: As for `train`.
            prefetch: Number of iterations that may be under way while the loop body runs: a small number, 0 for none.

        Raises:
            ConfigError: `n`, `prefetch`, `timestep` or `timesteps` is negative.
            WorkerError: As for `train`.
            LifecycleError: As for `train`. While iterations are under way, `train`, `eval`, `run`, `iterate` and
                `reset` raise it.
        """
        self._lifecycle.require_ready("iterate()")
        return self._steps(
            checked_count("n", n, least=0), timestep, timesteps, checked_count("prefetch", prefetch, least=0)
        )

    def _steps(self, n: int, timestep: int | None, timesteps: int | None, prefetch: int) -> Iterator[Outputs[A]]:
        self._lifecycle.require_ready("iterate()")
        submitted = 0
        try:
            for done in range(n):
                while submitted < min(n, done + 1 + prefetch):
                    self._lifecycle.require_open("iterate()")
                    self._submit(Mode.TRAIN, None if timestep is None else timestep + submitted, timesteps)
                    submitted += 1
                self._lifecycle.require_open("iterate()")
                yield self._result()
        finally:
            while self._lifecycle.under_way and self._lifecycle.state is State.READY:
                self._result()

    def reset(self) -> None:
        """Set the counter to 0, drop the progress bar, and make the next iteration reset the environments.

        Agents and random generators are not reset, so results differ from the first run.

        Raises:
            LifecycleError: As for `train`.
        """
        self._lifecycle.require_ready("reset()")
        self._timestep = self._done = 0
        self._drop_progress()
        with self._threads:
            self._session.restart()

    def close(self) -> None:
        """Release everything that the trainer built, and your environment if ``cfg.close_environment_at_exit`` is set.

        The state of remote agents is copied into the instances that you passed. A second call does nothing. On normal
        program termination an open trainer is closed.

        Raises:
            WorkerError: Environments could not be closed; everything else is released.
        """
        if self._lifecycle.state is State.CLOSED:
            return
        self._lifecycle.state = State.CLOSED
        atexit.unregister(self._close_at_exit)
        self._drop_progress()
        with self._threads:
            self._session.close(close_environment=self.cfg.close_environment_at_exit)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._close_at_exit()

    def _close_at_exit(self) -> None:
        """Close the trainer where nobody handles an error of its environments."""
        close_or_log("the trainer", self.close)

    def __str__(self) -> str:
        kind, state = type(self), self._lifecycle.state.value
        device = getattr(self.env, "device", None)
        place = "" if device is None else f" on {load_framework(self.framework).device_name(device)}"
        lines = [
            f"{kind.__module__}.{kind.__qualname__} ({state}): {_counted(self._num_envs, 'environment')}{place}, "
            f"{_counted(self.num_simultaneous_agents, 'simultaneous agent')}"
        ]
        for index, ((start, stop), worker) in enumerate(zip(self.scopes, self._session.workers, strict=True)):
            agent = f"{worker.agent} for {', '.join(worker.team)}" if worker.team else worker.agent
            threads = _counted(worker.num_threads, "compute thread")
            place = f"{worker.device} of {worker.node}" if worker.device else worker.node
            lines.append(f"  scope {index}: environments {start}:{stop}, {agent}, on {place}, {threads}")
        return "\n".join(lines)

    def _submit(self, mode: Mode, timestep: int | None, timesteps: int | None, count: int = 1) -> None:
        """Make the workers start `count` iterations."""
        if timesteps is None:
            timesteps = self.cfg.timesteps
        if timesteps < 0 or (timestep is not None and timestep < 0):
            raise ConfigError(f"timestep is {timestep} and timesteps is {timesteps}; expected 0 or more")
        self._session.check()
        if timestep is None:
            timestep = self._timestep + 1
            self._timestep += count
        if self._progress is None:
            disable = self.cfg.disable_progressbar
            self._progress = tqdm.tqdm(total=timesteps, initial=self._done, disable=disable, file=sys.stdout)
        try:
            self._lifecycle.under_way += 1
            self._session.submit(Tick(mode, timestep, timesteps), count)
            self._next_timestep = timestep + count
        except BaseException:
            self._lifecycle.fail()
            raise

    def _result(self, count: int = 1) -> Outputs[A]:
        """Wait for the oldest submission of `count` iterations, and return its outputs."""
        try:
            with self._threads:
                outcome = self._session.result()
            self._lifecycle.under_way -= 1
        except BaseException:
            self._lifecycle.fail()
            raise
        assert self._progress is not None
        self._progress.update(count)
        self._done += count
        return outcome


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
