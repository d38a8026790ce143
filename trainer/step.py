"""StepTrainer, whatever the framework."""

from __future__ import annotations

import atexit
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, TypeVar

import tqdm

from orchestrator.base import Orchestrator, Plan
from orchestrator.scopes import resolve_scopes
from trainer.checks import check_agents, checked_count, checked_num_envs, checked_seed, resolve_orchestrator
from trainer.config import StepTrainerCfg, StepTrainerCfgDict, resolve_cfg
from trainer.lifecycle import Lifecycle, State
from workers.errors import AgentError, ConfigError, WorkerError, build_error
from workers.frameworks import load_framework
from workers.threads import HeldThreads
from workers.types import Mode, Tick

if TYPE_CHECKING:
    from orchestrator.base import Session

__all__ = ["StepTrainer"]

_logger = logging.getLogger("lockstep")


A = TypeVar("A")
"""An array of the framework, or for a multi-agent environment a dictionary of them by agent name."""

Outputs = tuple[A, A, A, A, dict[str, Any]]


class StepTrainer(Generic[A]):
    """Trains simultaneous agents one step at a time, in one process or in Ray actors, with the same numbers.

    The loop is the caller's::

        trainer = StepTrainer(env=env, agents=agents, scopes=[32, 32], cfg={"timesteps": 50_000, "headless": True})
        for timestep in range(50_000):
            observations, rewards, terminated, truncated, infos = trainer.train(timestep=timestep)

    Attributes:
        env: The environments; with Ray and environments that the workers own, what was handed over.
        scopes: Rows ``(start, stop)`` of each simultaneous agent.
        cfg: The configuration.
        num_simultaneous_agents: Number of simultaneous agents.
    """

    framework: ClassVar[str]

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
        """Check everything, and build the workers.

        Args:
            env: An environment with the members of `workers.types.Env` or `workers.types.MultiAgentEnv`, or an
                `EnvFactory`.
            agents: An agent (a multi-agent for a multi-agent environment) or a factory, or a list with one for each
                simultaneous agent. A factory is a class, or a callable without ``act``; it is called once with its
                `Scope`, where the agent is going to live.
            scopes: Number of environments of each simultaneous agent; None shares them out as equally as possible.
            cfg: The configuration, or a dictionary with its fields.
            orchestrator: ``"local"`` (this process), ``"ray"`` (an actor for each agent), or a `RayOrchestrator`.
            seed: Seed of environments and agents, 0 or more; with None no random generator of anyone is touched.

        Raises:
            ConfigError: `cfg`, `orchestrator` or `seed` is wrong.
            ScopeError: The scopes do not fit.
            EnvError: The environment lacks a member, or the factory builds something else than was asked.
            AgentError: An agent lacks a member, is in two scopes, or cannot be sent to its worker.
            ClusterError: Ray cannot be reached, or has not what was asked of it.
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
        self._timestep = 0
        self._progress: tqdm.tqdm[Any] | None = None
        self._lifecycle = Lifecycle()
        plan = Plan(env=env, agents=given, scopes=_scopes, cfg=self.cfg, framework=framework, seed=seed)
        orchestrator = resolve_orchestrator(orchestrator)
        self._threads = HeldThreads(framework, orchestrator.num_threads)
        with self._threads:
            self._session: Session = orchestrator.start(plan)
        self._threads.find()  # what factories have loaded
        self.env = self._session.env
        for note in dict.fromkeys(note for worker in self._session.workers for note in worker.notes):
            _logger.warning(note)
        atexit.register(self.close)

    def train(self, timestep: int | None = None, timesteps: int | None = None) -> Outputs[A]:
        """Do one training iteration.

        Phases, in order: pre-interaction, compute actions, interact with the environments, render, record transitions,
        post-interaction (where agents learn), reset environments.

        Args:
            timestep: Current timestep. None: an internal counter is carried, incremented first, so that the first call
                sees 1. An explicit timestep leaves the counter alone.
            timesteps: Total number of timesteps, given to every phase; the configuration's if None.

        Returns:
            Observations ``(num_envs, size)`` as ``env.step`` returned them, rewards ``(num_envs, 1)``, terminated and
            truncated ``(num_envs, 1)``, and infos. Row i belongs to environment i. In a multi-agent environment each
            array is a dictionary of arrays by agent name.

        Raises:
            WorkerError: The environments or agents of some scopes failed; the trainer can only be closed then.
            LifecycleError: The trainer is closed, or has failed before.
        """
        self._lifecycle.require_ready("train()")
        self._submit(Mode.TRAIN, timestep, timesteps)
        return self._result()

    def eval(self, timestep: int | None = None, timesteps: int | None = None) -> Outputs[A]:
        """Do one evaluation iteration.

        As `train`, but with the agents' training mode off, so that nothing is learnt, and on mean actions (unless
        ``stochastic_evaluation``).

        Args:
            timestep: As for `train`.
            timesteps: As for `train`.

        Returns:
            As `train`.

        Raises:
            WorkerError: As for `train`.
            LifecycleError: As for `train`.
        """
        self._lifecycle.require_ready("eval()")
        self._submit(Mode.EVAL, timestep, timesteps)
        return self._result()

    def run(self, n: int, timestep: int | None = None, timesteps: int | None = None) -> Outputs[A]:
        """Do `n` training iterations, with the same numbers as `n` calls of `train`.

        In Ray each worker gets one message for all of them and goes on by itself, without waiting for the others, if
        it owns its environments. Metrics and episodes of all iterations are kept for `collect_metrics`.

        Args:
            n: Number of iterations, 1 or more.
            timestep: Timestep of the first one, and the following ones count on from there. None: as for `train`.
            timesteps: As for `train`.

        Returns:
            As `train`: the outputs of the last iteration.

        Raises:
            ConfigError: `n` is less than 1.
            WorkerError: As for `train`.
            LifecycleError: As for `train`.
            KeyboardInterrupt: Every worker stops after the iteration that is under way, and the trainer can only be
                closed then.
        """
        self._lifecycle.require_ready("run()")
        self._submit(Mode.TRAIN, timestep, timesteps, checked_count("n", n, least=1))
        return self._result(n)

    def iterate(
        self, n: int, timestep: int | None = None, timesteps: int | None = None, *, prefetch: int = 1
    ) -> Iterator[Outputs[A]]:
        """Yield the outputs of `n` training iterations, while the workers do the next ones.

        The numbers are those of `n` calls of `train`. Where the workers own their environments (in Ray), up to
        `prefetch` iterations more than those that were yielded have been begun: what the loop asks of the trainer
        (`collect_metrics`, `agents`) is answered after these, and a loop that is left early leaves the trainer after
        them.

        Args:
            n: Number of iterations.
            timestep: As for `run`.
            timesteps: As for `train`.
            prefetch: Number of iterations, a few, that may be under way while the loop does its part; 0 for none.

        Raises:
            ConfigError: `n` or `prefetch` is less than 0.
            WorkerError: As for `train`.
            LifecycleError: As for `train`. `train`, `eval`, `run` and `reset` raise it while iterations are under way.
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

    def collect_metrics(self) -> list[dict[str, float]]:
        """Scalars of each simultaneous agent since the last call, by tag, for a log of your own or a `MetricsWriter`.

        They are what agents track (losses, rates; skrl's agents too), returns and lengths of the episodes that ended,
        times of the phases in milliseconds, and the scalars of ``infos[cfg.environment_info]``: means since the last
        call, or extremes where the tag ends in (min) or (max). The first call starts the measuring of episodes and
        phases: call it once before the loop.

        Raises:
            WorkerError: As for `train`.
            LifecycleError: The trainer is closed.
        """
        self._lifecycle.require_open("collect_metrics()")
        with self._asking():
            return self._session.collect()

    def agent_files(self) -> list[tuple[str, bytes]]:
        """What each simultaneous agent has learnt so far, as the name and the content of a file.

        ``state.safetensors`` can be read without pickle and holds ``state_dict()`` of the agent, else the states of its
        ``checkpoint_modules``; an agent that has neither gets ``agent.bin``, written by its own ``save(path)``.

        Raises:
            AgentError: An agent cannot be stored in any of these ways.
            WorkerError: A worker failed, or is gone, and its agent with it.
            LifecycleError: The trainer is closed.
        """
        self._lifecycle.require_open("agent_files()")
        try:
            with self._asking():
                return self._session.agent_files()
        except WorkerError as error:
            raise build_error(error.failures) from error

    def reset(self) -> None:
        """Set the counter to 0, drop the progress bar, and make the next iteration reset the environments.

        Agents, random generators and seeds stay as they are.
        """
        self._lifecycle.require_ready("reset()")
        self._timestep = 0
        self._drop_progress()
        with self._threads:
            self._session.restart()

    @property
    def agents(self) -> list[Any]:
        """The trained agent of each scope.

        In Ray they are brought back from the workers at every access; instances that were handed over get the trained
        state.

        Raises:
            AgentError: An agent cannot be brought back.
            WorkerError: A worker is gone, and its agent with it.
            LifecycleError: The trainer is closed, and agents that factories made in Ray are gone with its workers.
        """
        with self._asking():
            return self._session.agents()

    def close(self) -> None:
        """Release everything that was built; a user's environment only if ``close_environment_at_exit``.

        The state of remote agents is copied into the instances that were handed over. A second call does nothing.
        Without a call it happens on normal program termination.
        """
        if self._lifecycle.state is State.CLOSED:
            return
        self._lifecycle.state = State.CLOSED
        atexit.unregister(self.close)
        self._drop_progress()
        with self._threads:
            self._session.close(close_environment=self.cfg.close_environment_at_exit)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception:
            if error is None:
                raise
            _logger.exception("closing failed after the error that is under way")

    def __str__(self) -> str:
        kind, state = type(self), self._lifecycle.state.value
        lines = [
            f"{kind.__module__}.{kind.__qualname__} ({state}): {self._num_envs} environments, "
            f"{self.num_simultaneous_agents} simultaneous agents"
        ]
        for index, ((start, stop), worker) in enumerate(zip(self.scopes, self._session.workers, strict=True)):
            agent = f"{worker.agent} for {', '.join(worker.team)}" if worker.team else worker.agent
            threads = f"{worker.num_threads} compute thread{'s' if worker.num_threads > 1 else ''}"
            lines.append(f"  scope {index}: environments {start}:{stop}, {agent}, on {worker.node}, {threads}")
        return "\n".join(lines)

    def _submit(self, mode: Mode, timestep: int | None, timesteps: int | None, count: int = 1) -> None:
        """Let the workers begin `count` iterations."""
        if timesteps is None:
            timesteps = self.cfg.timesteps
        if timesteps < 0 or (timestep is not None and timestep < 0):
            raise ConfigError(f"timestep is {timestep} and timesteps {timesteps}; expected 0 or more")
        if timestep is None:
            timestep = self._timestep + 1
            self._timestep += count
        if self._progress is None:
            self._progress = tqdm.tqdm(total=timesteps, disable=self.cfg.disable_progressbar, file=sys.stdout)
        try:
            self._lifecycle.under_way += 1
            with self._threads:
                self._session.submit(Tick(mode, timestep, timesteps), count)
        except BaseException:
            self._lifecycle.fail()
            raise

    def _result(self, count: int = 1) -> Outputs[A]:
        """Wait for the iterations that were submitted first."""
        try:
            with self._threads:
                outcome = self._session.result()
            self._lifecycle.under_way -= 1
        except BaseException:
            self._lifecycle.fail()
            raise
        assert self._progress is not None
        self._progress.update(count)
        return outcome

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Around a question to the workers: an interrupt while iterations are under way is one of these, too."""
        try:
            with self._threads:
                yield
        except Exception:
            raise
        except BaseException:
            self._lifecycle.interrupt()
            raise

    def _drop_progress(self) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None
