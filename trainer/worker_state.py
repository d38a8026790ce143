"""What the workers of a trainer hold between iterations: metrics, agents, statistics, and their whole state."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import tqdm

from orchestrator.checkpoint import read_checkpoint, write_checkpoint
from trainer.checks import check_clone, checked_index
from trainer.lifecycle import Lifecycle
from trainer.versions import versions
from workers.envs.statistics import Statistics
from workers.errors import CheckpointError, ScopeError, WorkerError, build_error
from workers.threads import HeldThreads

if TYPE_CHECKING:
    from orchestrator.base import Recovered, Result, Session

__all__ = ["WorkerState"]

T = TypeVar("T")

_logger = logging.getLogger("lockstep")


class WorkerState:
    """The part of `trainer.step.StepTrainer` that asks its workers for what they hold.

    Attributes:
        loop_state: What your own loop has to remember, such as a best return: plain data for JSON, by any name but
            ``"callbacks"``, which is that of `trainer.callbacks.Loop`. `save` keeps it and `load` sets it.
    """

    framework: ClassVar[str]
    scopes: list[tuple[int, int]]
    loop_state: dict[str, Any]
    _seed: int | None
    _timestep: int  # the internal counter
    _next_timestep: int  # after the last iteration
    _done: int  # iterations that the progress bar shows
    _collected: int  # the next timestep at the last `collect_metrics`
    _progress: tqdm.tqdm[Any] | None
    _lifecycle: Lifecycle
    _threads: HeldThreads
    _session: Session

    def collect_metrics(self) -> list[dict[str, float]]:
        """Return the scalars of each simultaneous agent since the last call, by tag.

        They can go to your own log or to a `MetricsWriter`. They comprise what agents track (losses, rates; also skrl's
        agents), returns and lengths of the episodes that ended, times of the phases in milliseconds, and the scalars of
        ``infos[cfg.environment_info]``. Each value is a mean since the last call, or an extreme if the tag ends in
        (min) or (max). The first call starts the measurement of episodes and phases: call it once before the loop.

        Raises:
            WorkerError: As for `train`.
            LifecycleError: The trainer is closed.
        """
        self._lifecycle.require_open("collect_metrics()")
        with self._asking():
            scalars = self._session.collect()
        self._collected = self._next_timestep
        return scalars

    @property
    def recoveries(self) -> Sequence[Recovered]:
        """The recoveries from workers that were lost, so far: scopes, timestep, cause, seconds, and more.

        `collect_metrics` has them in numbers, for the scopes that they concern: how many, how long, and how many
        iterations were played back.
        """
        return self._session.recoveries

    @property
    def next_timestep(self) -> int:
        """The timestep that follows the last iteration: 0 before the first one, after `load` what that returned."""
        return self._next_timestep

    @property
    def metrics_timestep(self) -> int:
        """The timestep that followed the last iteration when metrics were collected last: the first of the next ones.

        After `load`, it is that of the checkpoint. A loop that goes on cuts its own metrics there; see
        `orchestrator.metrics.MetricsWriter.cut`.
        """
        return self._collected

    def hyperparameters(self) -> list[dict[str, float]]:
        """Return the hyper-parameters of each simultaneous agent that may change during a run, by name.

        Those of `PPO` are in `workers.agents.ppo_hyperparameters.HYPERPARAMETERS`; `IndependentAgents` puts the name of
        the group before each, as in ``"agent_0/learning_rate"``.

        Raises:
            AgentError: An agent lacks ``hyperparameters()`` or ``set_hyperparameters(values)``.
            WorkerError: A worker failed.
            LifecycleError: The trainer is closed or has failed, or iterations of `iterate` are under way.
        """
        self._lifecycle.require_ready("hyperparameters()")
        with self._as_built_error(), self._asking():
            return self._session.hyperparameters()

    def set_hyperparameters(self, scope: int, values: Mapping[str, float]) -> None:
        """Change hyper-parameters of the agent of one scope, between two iterations.

        Checkpoints and rebuilt workers keep them.

        Args:
            scope: Index of the scope.
            values: New values by name, of those that `hyperparameters` returns.

        Raises:
            ScopeError: There is no such scope.
            AgentError: The agent lacks one of both methods, does not know a name or refuses a value.
            ConfigError: The agent's configuration does not allow a value.
            WorkerError: A worker failed.
            LifecycleError: As for `hyperparameters`.
        """
        self._lifecycle.require_ready("set_hyperparameters()")
        scope = checked_index("scope", scope, len(self.scopes))
        with self._as_built_error(), self._asking():
            self._session.set_hyperparameters(scope, dict(values))

    def clone(self, source: int, targets: Sequence[int]) -> None:
        """Copy what one simultaneous agent has learnt into others, between two iterations.

        It is as if each of them loaded the source's file of `agent_files`: weights, optimiser, normalisers and learning
        rate. Environments, random streams and the other hyper-parameters stay those of the target. Our agents drop
        their rollout in progress; skrl's keep their memories. Scopes may differ in size.

        Args:
            source: Index of the scope whose agent is copied.
            targets: Indices of the scopes whose agents take over its state.

        Raises:
            ScopeError: There is no such scope, a target is given twice, or it is the source.
            AgentError: An agent is of another kind or shape than the source, or cannot be stored. Nothing has changed.
            DivergedError: The source holds NaN or infinity, and a target does not. Nothing has changed.
            WorkerError: An agent could not load the state after all, or a worker failed; the trainer can only be
                closed.
            LifecycleError: As for `hyperparameters`.
        """
        self._lifecycle.require_ready("clone()")
        count = len(self.scopes)
        source = checked_index("source", source, count)
        targets = [checked_index("a target", target, count) for target in targets]
        if source in targets or len({*targets}) < len(targets):
            raise ScopeError(f"targets are {targets}; expected each only once, and without the source, {source}")
        with self._as_built_error(), self._asking():
            files = self._session.agent_files([source, *targets])
        check_clone(files, self._session.workers, source)
        try:
            with self._asking():
                self._session.load_agent_files(dict.fromkeys(targets, files[source]))
        except BaseException:
            self._lifecycle.fail()
            raise

    def agent_files(self) -> list[tuple[str, bytes]]:
        """Return what each simultaneous agent has learnt so far, as file name and content.

        ``state.safetensors`` can be read without pickle. It holds the agent's ``state_dict()``, or else the states of
        its ``checkpoint_modules``. An agent with neither gets ``agent.bin``, written by its own ``save(path)``.

        Raises:
            AgentError: An agent cannot be stored in any of these ways.
            WorkerError: A worker failed, or is gone together with its agent.
            LifecycleError: The trainer is closed.
        """
        self._lifecycle.require_open("agent_files()")
        with self._as_built_error(), self._asking():
            return list(self._session.agent_files(range(len(self.scopes))).values())

    def env_statistics(self) -> list[Statistics]:
        """Return what wrappers such as NormalizeObservation hold for each environment: mean, var and count by name.

        Raises:
            WorkerError: A worker failed.
            LifecycleError: The trainer is closed.
        """
        self._lifecycle.require_open("env_statistics()")
        with self._asking():
            return self._session.statistics()

    @property
    def agents(self) -> list[Any]:
        """The trained agent of each scope.

        In Ray, every access fetches them from the workers. Instances that you passed receive the trained state.

        Raises:
            AgentError: An agent cannot be fetched.
            WorkerError: A worker is gone together with its agent.
            LifecycleError: The trainer is closed, and agents that factories built in Ray are gone with its workers.
        """
        with self._asking():
            return self._session.agents()

    def beside(self, function: Callable[[], T]) -> Result[T]:
        """Compute a function beside the training: with Ray, in a task that reserves no CPU; in local mode, at once.

        Args:
            function: The function, which cloudpickle can pickle. It may be called again if its process dies.

        Raises:
            LifecycleError: The trainer is closed.
        """
        self._lifecycle.require_open("beside()")
        return self._session.beside(function)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        allow_pickle: bool = False,
        sign: Callable[[bytes], None] = lambda manifest: None,
    ) -> None:
        """Write a checkpoint: the whole state between two iterations, from which `load` goes on bit for bit.

        It holds the agents with their optimisers, normalisers and rollouts in progress, the environments, and every
        random stream. A checkpoint that was saved in one mode can be loaded in any other. The first call finds out how
        the environments can be kept, and logs what cannot be: call it once before the loop.

        Args:
            path: The checkpoint's folder, or a URL that fsspec supports, such as ``s3://bucket/run``. A checkpoint that
                is there is replaced as a whole.
            allow_pickle: Whether to pickle agents and environments that do not offer their state as plain data.
            sign: Gets the content of ``manifest.json`` before it is written, which has the digest of every other file.

        Raises:
            CheckpointError: An agent or `loop_state` cannot be kept, or the folder cannot be written. What was there
                before still is.
            WorkerError: A worker failed.
            LifecycleError: The trainer is closed or has failed, or iterations of `iterate` are under way.
        """
        self._lifecycle.require_ready("save()")
        loop_state = _checked_loop_state(self.loop_state)
        with self._as_built_error(), self._asking():
            snapshot = self._session.snapshot(allow_pickle=allow_pickle)
        about = self._about() | {"versions": versions(), "loop_state": loop_state}
        write_checkpoint(path, about, snapshot, sign=sign)

    def load(
        self,
        path: str | os.PathLike[str],
        *,
        allow_pickle: bool = False,
        verify: Callable[[bytes], None] = lambda manifest: None,
    ) -> int:
        """Go on from a checkpoint of `save`, in a trainer that was built like the saved one.

        Environments whose episodes cannot be restored are truncated in the next iteration, with their last
        observations; a warning names them. An agent that was pickled gets new models, optimisers and other parts.

        Args:
            path: The checkpoint's folder or URL.
            allow_pickle: Whether to load pickles, which can run any code: only do so if you trust who wrote them.
            verify: Gets the content of ``manifest.json``, as `sign` of `save` did, and raises an error to refuse it.

        Returns:
            The timestep that follows the last one: ``for timestep in range(trainer.load(path), timesteps)``.

        Raises:
            CheckpointError: There is no checkpoint, it is damaged, or it is for another trainer: other scopes, spaces,
                agents or another seed. Nothing has changed.
            WorkerError: A worker failed while it was restored; the trainer can only be closed, as after an interrupt.
            LifecycleError: As for `save`.
        """
        self._lifecycle.require_ready("load()")
        about, snapshot = read_checkpoint(path, allow_pickle=allow_pickle, verify=verify)
        self._check(about, str(path))
        is_staged = False
        try:
            with self._as_built_error(), self._asking():
                self._session.stage(snapshot)
            is_staged = True
            with self._asking():
                self._session.restore()
        except BaseException as error:
            # stage() tries the snapshot on the agents and puts them back: an interrupt or their error may come between
            if is_staged or not isinstance(error, CheckpointError):
                self._lifecycle.fail()
            raise
        self._timestep, self._next_timestep, self._done, self._collected = (about[name] for name in _COUNTERS)
        self.loop_state = about.get("loop_state", {})
        self._drop_progress()
        return self._next_timestep

    def _about(self) -> dict[str, Any]:
        """Return what the manifest of a checkpoint tells of this trainer."""
        counters = dict(zip(_COUNTERS, (self._timestep, self._next_timestep, self._done, self._collected), strict=True))
        return self._identity() | counters

    def _identity(self) -> dict[str, Any]:
        return {
            "framework": self.framework,
            "seed": self._seed,
            "scopes": [list(scope) for scope in self.scopes],
            "agents": [worker.agent for worker in self._session.workers],
        }

    def _check(self, about: dict[str, Any], path: str) -> None:
        """Check that a checkpoint is one of a trainer like this.

        Raises:
            CheckpointError: It is not.
        """
        for name, expected in self._identity().items():
            if about.get(name) != expected:
                raise CheckpointError(
                    f"the checkpoint {path!r} has {name} {about.get(name)!r}; expected {expected!r}: build the trainer "
                    "as it was built for the checkpoint"
                )
        now, then = versions(), about.get("versions")
        then = then if isinstance(then, dict) else {}
        if other := [name for name in now if then.get(name) != now[name]]:
            told = ", ".join(f"{name} {then.get(name)} (now {now[name]})" for name in other)
            _logger.warning("the checkpoint %r was saved with %s: numbers may differ from here on", path, told)
        if not isinstance(about.get("loop_state", {}), dict):
            raise CheckpointError(f"the checkpoint {path!r} has a loop_state that is no mapping")
        if wrong := [name for name in _COUNTERS if type(about.get(name)) is not int or about[name] < 0]:
            raise CheckpointError(f"the checkpoint {path!r} has {wrong[0]} {about.get(wrong[0])!r}; expected a number")

    @contextmanager
    def _as_built_error(self) -> Iterator[None]:
        """Raise an error of ours that workers have raised, such as of a state that does not fit, as such."""
        try:
            yield
        except WorkerError as error:
            raise build_error(error.failures) from error.__cause__

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Wrap a request to the workers. An interrupt in it also interrupts the iterations under way."""
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


def _checked_loop_state(state: Any) -> dict[str, Any]:
    """Return a copy of `WorkerState.loop_state`, as JSON will return it.

    Raises:
        CheckpointError: JSON cannot hold it, or would change it.
    """
    try:
        copy: dict[str, Any] = json.loads(json.dumps(state))
        if not isinstance(state, dict) or (copy != state and repr(copy) != repr(state)):  # NaN is not equal to itself
            raise ValueError("a key or a value would be another one when it is read again")
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"trainer.loop_state cannot be kept: {error}; expected a dictionary of dictionaries, lists, texts, numbers "
            "and booleans, with texts as keys"
        ) from error
    return copy


_COUNTERS = ("counter", "next_timestep", "done", "metrics_timestep")
"""Names of the trainer's counters in a manifest."""
