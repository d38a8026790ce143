"""Callback and Loop: the protocol of what is done between iterations, and the loop that calls it."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from difflib import get_close_matches
from time import perf_counter
from types import TracebackType
from typing import Any, Self

from orchestrator.base import Recovered
from trainer.checks import checked_count
from trainer.evaluation import Evaluated
from trainer.step import StepTrainer
from workers.errors import ConfigError, LifecycleError, LockstepError, WorkerError

__all__ = ["RATE", "Callback", "Loop", "default_metrics_every"]

_logger = logging.getLogger("lockstep")

RATE = "Rate / Environment steps per second"

_MOMENT = 0.3
"""Seconds that workers may run on their own: a callback, or a signal, waits about this long, or for one iteration."""


class Callback:
    """Base of callbacks, all of whose methods do nothing.

    A callback runs on the driver, between two iterations, while the workers wait. It may read and change whatever the
    loop and its trainer offer. An error that it raises ends the training.

    Attributes:
        every: A group of iterations ends at each multiple of this number of timesteps. None: wherever the other
            callbacks and the loop end it, after about 0.3 seconds at most. With 1, each iteration is a group of its
            own, which costs some 10 microseconds in local mode. In Ray, workers then wait for each other and for the
            driver in every iteration, as with `train`: for cheap environments that costs more than the iteration.
    """

    every: int | None = None

    def on_start(self, loop: Loop) -> None:
        """Called before the first iteration, also when a run is resumed."""

    def on_step(self, loop: Loop) -> None:
        """Called after each group of iterations. If metrics were collected then, they are in ``loop.scalars``."""

    def on_evaluation(self, loop: Loop, evaluation: Evaluated) -> None:
        """Called with the results of an evaluation. In Ray they may be of an earlier timestep; see `Evaluator`."""

    def settle(self, loop: Loop) -> None:
        """Called before a checkpoint, and before the end, to finish what `state_dict` could not keep."""

    def on_checkpoint(self, loop: Loop, path: str) -> None:
        """Called when a checkpoint has been written."""

    def on_fault(self, loop: Loop, fault: Recovered | BaseException) -> None:
        """Called after workers were lost and recovered, and once with the error that ends the training."""

    def on_end(self, loop: Loop) -> None:
        """Called at the end, in reverse order, also after an error (``loop.error``) if `on_start` was called."""

    def __init_subclass__(cls) -> None:
        """Warn of a method that looks like one of these and would never be called."""
        super().__init_subclass__()
        known = [name for name in vars(Callback) if name.startswith("on_")]
        for name in vars(cls):
            if name.startswith("on_") and name not in known and (close := get_close_matches(name, known, n=1)):
                _logger.warning("%s.%s is never called; did you mean %s?", cls.__qualname__, name, close[0])

    def state_dict(self) -> Mapping[str, Any]:
        """Return what the callback has to know after a checkpoint is loaded, as plain data that JSON can hold."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` returned."""


class Loop:
    """A training loop that calls callbacks.

    You may keep the loop in your hands, and train as you like in its body::

        with Loop(trainer, [EarlyStopping(patience=5), Evaluator(every=1000)]) as loop:
            for timestep in loop:
                trainer.train(timestep=timestep)

    or leave the iterations to it. They then run in groups, in which workers need not wait for each other; the results
    are the same::

        Loop(trainer, callbacks).run()

    It begins at the timestep that follows the trainer's last one: at 0 with a new trainer.

    Attributes:
        trainer: The trainer.
        callbacks: The callbacks, in the order in which they are called.
        timestep: Number of timesteps that are done.
        timesteps: Number of timesteps at which the loop ends.
        metrics_every: Number of timesteps between two collections of metrics.
        scalars: The scalars of each scope by tag, if metrics were collected in this step; else empty. They are those of
            `StepTrainer.collect_metrics` and ``"Rate / Environment steps per second"``.
        is_resumed: Whether it goes on from a checkpoint.
        error: The error that ended the training, if one did.
    """

    def __init__(
        self,
        trainer: StepTrainer[Any],
        callbacks: Sequence[Callback] = (),
        *,
        timesteps: int | None = None,
        metrics_every: int | None = None,
    ) -> None:
        """Take what is needed; nothing is called.

        Args:
            trainer: The trainer. The loop collects its metrics, so nothing else may.
            callbacks: The callbacks. `on_end` is called in reverse order.
            timesteps: Total number of timesteps. None: that of the trainer's configuration.
            metrics_every: Number of timesteps between two collections of metrics. None: a hundredth of `timesteps`.

        Raises:
            ConfigError: A number is out of range, or a callback is none.
        """
        if wrong := [callback for callback in callbacks if not isinstance(callback, Callback)]:
            raise ConfigError(f"{wrong[0]!r} is not a callback; expected an instance of a subclass of Callback")
        self.trainer, self.callbacks = trainer, list(callbacks)
        self.timesteps = trainer.cfg.timesteps if timesteps is None else checked_count("timesteps", timesteps, least=0)
        if metrics_every is None:
            metrics_every = default_metrics_every(self.timesteps)
        self.metrics_every = checked_count("metrics_every", metrics_every, least=1)
        for callback in self.callbacks:
            if callback.every is not None:
                checked_count(f"{type(callback).__name__}.every", callback.every, least=1)
        self.timestep = self._collected = self._since_timestep = trainer.next_timestep
        self.scalars: Sequence[dict[str, float]] = []
        self.is_resumed = self._is_measuring = self._has_begun = False
        self.error: BaseException | None = None
        self._last, self._reason = self.timesteps, ""
        self._told = len(trainer.recoveries)
        self._since = perf_counter()
        self._started: list[Callback] = []
        self._is_behind = False  # whether callbacks before the last one have not been called in this timestep

    def __enter__(self) -> Self:
        """Call `Callback.on_start` of all callbacks."""
        self._has_begun, self.error, self._started = True, None, []
        try:
            for callback in self.callbacks:
                self._started.append(callback)
                self._call(callback.on_start)
            self._measure()
        except BaseException as error:
            self._end(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Call `Callback.on_fault` after an error, and `Callback.on_end`."""
        if error is None:
            try:
                self.settle()
            except BaseException as other:
                self._end(other)
                raise
        self._end(error)

    def __iter__(self) -> Iterator[int]:
        """Yield each timestep; your loop body trains. After it, the callbacks are called.

        Raises:
            LifecycleError: The loop is not entered.
        """
        self._require_begun("a loop over it")
        while not self.is_over:
            yield self.timestep
            self._after(1)

    def run(self) -> None:
        """Train to the end, or until a callback stops the loop.

        Raises:
            WorkerError: As for `StepTrainer.train`.
            ClusterError: As for `StepTrainer.train`.
        """
        with self:
            for _ in self.groups():
                pass

    def groups(self) -> Generator[int]:
        """Train, and yield the number of timesteps that are done after each group of iterations and its callbacks.

        Raises:
            LifecycleError: The loop is not entered.
        """
        self._require_begun("groups()")
        count = 1
        while not self.is_over:
            count = min(count, self._until_due())
            began = perf_counter()
            try:
                self.trainer.run(count, timestep=self.timestep, timesteps=self.timesteps)
            except WorkerError as error:
                known = [one.timestep for one in error.failures if one.timestep is not None]
                self.timestep = min(known, default=self.timestep)  # the other scopes stopped near it
                raise
            seconds = perf_counter() - began
            self._after(count)
            yield self.timestep
            count = max(1, int(count * _MOMENT / seconds))

    @property
    def is_over(self) -> bool:
        """Whether all timesteps are done, or a callback has stopped the loop."""
        return self.timestep >= self._last

    @property
    def stop_reason(self) -> str:
        """Why a callback has stopped the loop; empty if none has, or not yet."""
        return self._reason if self.is_over else ""

    def stop(self, reason: str, *, at: int = 0) -> None:
        """End the loop after this step, or after the timestep `at`, if it is later.

        Args:
            reason: Why, for people.
            at: A number of timesteps.
        """
        if (last := max(at, self.timestep)) < self._last:
            self._last, self._reason = last, reason

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to do in this timestep, so that a checkpoint can go on after it."""
        return not self._is_behind and self.trainer.next_timestep == self.timestep

    def save(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Write a checkpoint of the trainer, with the state of the callbacks; then tell the callbacks.

        Call it in the `on_step` of the last callback: a run that goes on from it goes on with the next timestep.

        Args:
            path: See `StepTrainer.save`.
            options: Other arguments of `StepTrainer.save`.

        Raises:
            CheckpointError, WorkerError: As for `StepTrainer.save`.
            LifecycleError: As for `StepTrainer.save`, or callbacks have not been called in this timestep.
        """
        self.settle()
        self.write(path, **options)
        self.tell_checkpoint(str(path))

    def write(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Do the writing of `save`, between `settle` and `tell_checkpoint`, which may raise what callbacks raise."""
        if not self.is_settled:
            raise LifecycleError(
                f"save() before all callbacks were called at timestep {self.timestep}; call it in on_step of the last"
            )
        self.trainer.loop_state["callbacks"] = {
            name: dict(state) for name, callback in self._named() if (state := callback.state_dict())
        }
        self.trainer.save(path, **options)

    def tell_checkpoint(self, path: str) -> None:
        """Call `Callback.on_checkpoint` of all callbacks."""
        for callback in self.callbacks:
            self._call(callback.on_checkpoint, path)

    def load(self, path: str | os.PathLike[str], **options: Any) -> int:
        """Go on from a checkpoint of `save`: set the trainer, the callbacks and `timestep`.

        Args:
            path: See `StepTrainer.load`.
            options: Other arguments of `StepTrainer.load`.

        Returns:
            The number of timesteps that are done.

        Raises:
            CheckpointError, WorkerError, LifecycleError: As for `StepTrainer.load`.
        """
        self.timestep = self.trainer.load(path, **options)
        states = self.trainer.loop_state.get("callbacks", {})
        for name, callback in self._named():
            if name in states:
                callback.load_state_dict(states[name])
        self._collected, self._since_timestep = self.trainer.metrics_timestep, self.timestep
        self._since = perf_counter()
        self.is_resumed = self._is_measuring = True
        return self.timestep

    def settle(self) -> None:
        """Let the callbacks finish what a checkpoint could not keep, such as an evaluation. `save` calls it."""
        self._measure()
        for callback in self.callbacks:
            self._call(callback.settle)

    def tell_evaluation(self, evaluation: Evaluated) -> None:
        """Call `Callback.on_evaluation` of all callbacks."""
        before, self._is_behind = self._is_behind, True
        for callback in self.callbacks:
            self._call(callback.on_evaluation, evaluation)
        self._is_behind = before  # not after an error: no checkpoint has what only some know

    def rest(self) -> Sequence[dict[str, float]]:
        """Collect metrics if some are left, and return those of this timestep, for `Callback.on_end`."""
        if self.timestep != self._collected:
            self._collect()
        return self.scalars

    def _require_begun(self, call: str) -> None:
        if not self._has_begun:
            raise LifecycleError(f"{call} needs a loop that is entered; write: with Loop(...) as loop: ...")

    def _named(self) -> Iterator[tuple[str, Callback]]:
        """Yield each callback with a name for its state: that of its class, numbered from the second on."""
        seen: Counter[str] = Counter()
        for callback in self.callbacks:
            name = type(callback).__qualname__
            seen[name] += 1
            yield (name if seen[name] == 1 else f"{name}-{seen[name]}"), callback

    def _end(self, error: BaseException | None) -> None:
        """Tell all callbacks of the end; an error of theirs is raised if it is the first one, or an interrupt."""
        self.error, started, broken = error, self._started, None
        self._started = []
        calls: list[tuple[Callable[..., None], list[Any]]] = []
        if error is not None:
            calls += [(callback.on_fault, [error]) for callback in started]
        calls += [(callback.on_end, []) for callback in reversed(started)]
        for method, arguments in calls:
            try:
                self._call(method, *arguments)
            except BaseException as other:
                if self.error is None or not isinstance(other, Exception):
                    broken = other
                else:
                    _logger.error("%s raised at the end: %s: %s", method.__qualname__, type(other).__name__, other)
                self.error = self.error or other
        if broken is not None:
            raise broken

    def _call(self, method: Callable[..., None], *arguments: Any) -> None:
        """Call a method of a callback; an error that is not Lockstep's says where it was raised."""
        try:
            method(self, *arguments)
        except LockstepError:
            raise
        except Exception as error:
            error.add_note(f"in the callback {method.__qualname__}, at timestep {self.timestep}")
            raise

    def _measure(self) -> None:
        """Start the measurement of metrics, if it has not been started."""
        if not self._is_measuring:
            self.trainer.collect_metrics()
            self._since, self._is_measuring = perf_counter(), True

    def _until_due(self) -> int:
        """Return the number of timesteps until the next group has to end."""
        stops = [callback.every for callback in self.callbacks if callback.every is not None]
        return min(self._last - self.timestep, *(n - self.timestep % n for n in [self.metrics_every, *stops]))

    def _after(self, count: int) -> None:
        """Call the callbacks after `count` iterations."""
        self.timestep += count
        self._is_behind = True
        for fault in self.trainer.recoveries[self._told :]:
            self._told += 1
            for callback in self.callbacks:
                self._call(callback.on_fault, fault)
        self.scalars = []
        if not self.timestep % self.metrics_every:
            self._collect()
        for callback in self.callbacks[:-1]:
            self._call(callback.on_step)
        self._is_behind = False
        for callback in self.callbacks[-1:]:
            self._call(callback.on_step)

    def _collect(self) -> None:
        scalars = self.trainer.collect_metrics()
        seconds, self._since = perf_counter() - self._since, perf_counter()
        count, self._since_timestep = self.timestep - self._since_timestep, self.timestep
        for one, (start, stop) in zip(scalars, self.trainer.scopes, strict=True):
            one[RATE] = count * (stop - start) / seconds
        self.scalars, self._collected = scalars, self.timestep


def default_metrics_every(timesteps: int) -> int:
    """Return a hundredth of the timesteps, at least 1."""
    return max(1, timesteps // 100)
