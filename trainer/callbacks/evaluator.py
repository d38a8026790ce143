"""Evaluator: evaluation during training, in environments of its own."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from orchestrator import LocalOrchestrator
from orchestrator.base import Result
from trainer.callbacks.loop import Callback, Loop
from trainer.checks import checked_count
from trainer.config import StepTrainerCfg
from trainer.evaluation import Evaluated, Evaluation, Evaluations, statistics_of
from trainer.step import StepTrainer
from workers.envs.base import EnvFactory, recipe_of
from workers.errors import ClusterError, ConfigError, EvaluationError
from workers.members import is_factory

__all__ = ["Evaluator"]

_logger = logging.getLogger("lockstep")


class Evaluator(Callback):
    """Callback that evaluates the agents as they are after every `every` timesteps.

    Each evaluation has fresh environments and agents, with seeds of its own, and acts on mean actions (unless
    ``cfg.stochastic_evaluation`` is set). It changes no number of the training, and gives the same results in every
    mode. In local mode, it is done at once. In Ray, it is done beside the training, and its results are told when they
    are known: when the next evaluation is due at the latest, for which the training then waits.

    Put it after callbacks that change agents, such as `Population`: it evaluates the agents as they are when it is
    called. A checkpoint waits for an evaluation that began before it.

    Attributes:
        every: Number of timesteps between two evaluations.
        last: The last results that were told; None before the first.
        told: Timestep of the last evaluation whose results were told, also before a checkpoint was loaded; else 0.
        repeats: Whether the evaluation of the timestep of a loaded checkpoint is done again, because it was under way.
    """

    every: int

    def __init__(
        self,
        every: int,
        *,
        episodes: int = 10,
        seed: int = 1_000_000,
        max_timesteps: int = 10_000,
        env: EnvFactory | None = None,
        agents: Sequence[Any] | None = None,
    ) -> None:
        """Set what each evaluation does.

        Args:
            every: Number of timesteps between two evaluations, at least 1.
            episodes: Number of episodes of each simultaneous agent, at least 1.
            seed: Environment i is seeded with ``seed + i``, which must not be a seed of training.
            max_timesteps: Number of timesteps after which an evaluation ends, even if some episodes have not ended.
            env: Factory of the environments. None: those of the trainer, if they can be rebuilt.
            agents: A factory of each scope's agent. None: those of the trainer.

        Raises:
            ConfigError: A number is out of range.
        """
        self.every = checked_count("every", every, least=1)
        self.last: Evaluated | None = None
        self._episodes = checked_count("episodes", episodes, least=1)
        self._seed = checked_count("seed", seed, least=0)
        self._max_timesteps = checked_count("max_timesteps", max_timesteps, least=1)
        self._env, self._agents = env, agents
        self._pending: tuple[int, Evaluations, Result[list[Evaluation]]] | None = None
        self.told = 0
        self.repeats = False

    def on_start(self, loop: Loop) -> None:
        """Check that environments and agents can be built; repeat an evaluation that a checkpoint could not keep.

        Raises:
            ConfigError: They cannot be built, they share seeds with the training, or there is another `Evaluator`.
        """
        if sum(isinstance(callback, Evaluator) for callback in loop.callbacks) > 1:
            raise ConfigError("the loop has several Evaluators, whose results would have the same names; leave one")
        self._builder(loop.trainer)
        if self.every > loop.timesteps:
            _logger.warning("evaluations are every %d timesteps, but the loop ends at %d", self.every, loop.timesteps)
        if self.repeats:
            self._begin(loop)

    def on_step(self, loop: Loop) -> None:
        """Begin an evaluation if it is time, and tell the results of the last one if they are known."""
        if not loop.timestep % self.every:
            self._finish(loop)
            self._begin(loop)
        if self._pending is not None and self._pending[2].is_known():
            self._finish(loop)

    def settle(self, loop: Loop) -> None:
        """Wait for the evaluation under way; before a checkpoint of the very agents, it can be repeated instead."""
        if self._pending is not None and (self._pending[0] < loop.timestep or loop.is_over):
            self._finish(loop)

    def on_end(self, loop: Loop) -> None:
        """End an evaluation whose results nobody waits for."""
        if self._pending is not None:
            self._pending[2].cancel()
            self._pending = None

    def state_dict(self) -> Mapping[str, Any]:
        """Return what has been told, and whether an evaluation of the agents as they are is under way."""
        return {"told": self.told, "repeats": self._pending is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` returned."""
        self.told, self.repeats, self._pending = state["told"], state["repeats"], None

    def _begin(self, loop: Loop) -> None:
        trainer = loop.trainer
        evaluations = Evaluations(
            build=self._builder(trainer),
            files=trainer.agent_files(),
            statistics=statistics_of(trainer),
            episodes=self._episodes,
            max_timesteps=self._max_timesteps,
        )
        try:
            self._pending = loop.timestep, evaluations, trainer.beside(evaluations)
        except Exception as error:
            raise self._failed(error, loop.timestep) from error

    def _finish(self, loop: Loop) -> None:
        """Wait for the results of the evaluation under way, if there is one, and tell them."""
        if self._pending is None:
            return
        timestep, evaluations, result = self._pending
        try:
            results = result.wait()
        except Exception as error:
            self._pending = None
            if isinstance(error, ClusterError):
                raise
            raise self._failed(error, timestep) from error
        self._pending, self.repeats = None, False
        self.last = Evaluated(timestep, results, timestep + self.every, evaluations.files, evaluations.statistics)
        loop.tell_evaluation(self.last)
        self.told = timestep

    def _builder(self, trainer: StepTrainer[Any]) -> Any:
        """Return what builds the trainer of an evaluation.

        Raises:
            ConfigError: The environments or agents cannot be built again, or share seeds with the training.
        """
        plan, num_envs = trainer._plan, trainer.scopes[-1][1]
        env = recipe_of(plan.env) if self._env is None else self._env
        agents = plan.agents if self._agents is None else self._agents
        if env is None:
            raise ConfigError(
                "an evaluation needs environments of its own, and the trainer's cannot be built again; pass "
                "Evaluator(env=EnvFactory(...)), or make the trainer's with make_env or an EnvFactory"
            )
        if len(agents) != len(plan.agents) or not all(map(is_factory, agents)):
            raise ConfigError(
                "an evaluation needs agents of its own, and some of the trainer's are instances; pass "
                "Evaluator(agents=[...]) with a factory for each scope, or hand factories to the trainer"
            )
        if plan.seed is not None and abs(plan.seed - self._seed) < num_envs:
            raise ConfigError(
                f"the seed of the evaluation is {self._seed} and that of the training {plan.seed}; expected them to be "
                f"at least {num_envs} (num_envs) apart"
            )
        cfg = dataclasses.replace(
            trainer.cfg,
            timesteps=self._max_timesteps,
            headless=True,
            disable_progressbar=True,
            close_environment_at_exit=True,
        )
        scopes = [stop - start for start, stop in trainer.scopes]
        return partial(_build, type(trainer), env, list(agents), scopes, cfg, trainer._num_threads, self._seed)

    def _failed(self, error: Exception, timestep: int) -> EvaluationError:
        return EvaluationError(f"the evaluation after {timestep} timesteps failed: {type(error).__name__}: {error}")


def _build(
    kind: type[StepTrainer[Any]],
    env: EnvFactory,
    agents: list[Any],
    scopes: list[int],
    cfg: StepTrainerCfg,
    num_threads: int,
    seed: int,
) -> StepTrainer[Any]:
    orchestrator = LocalOrchestrator(num_threads=num_threads)
    return kind(env=env, agents=agents, scopes=scopes, cfg=cfg, orchestrator=orchestrator, seed=seed)
