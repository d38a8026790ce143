"""EarlyStopping: the end of a training whose evaluations get no better, or are good enough."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trainer.callbacks.evaluator import Evaluator
from trainer.callbacks.loop import Callback, Loop
from trainer.checks import checked_count, is_number
from trainer.evaluation import Evaluated
from workers.errors import ConfigError

__all__ = ["EarlyStopping"]


class EarlyStopping(Callback):
    """Callback that stops the loop when the mean return of all simultaneous agents in the evaluations gets no better.

    The loop ends when the next evaluation is due, also where results are known earlier: so it ends at the same timestep
    in every mode. It needs an `Evaluator` in the list.

    Attributes:
        best: The best mean return so far; None before the first evaluation.
    """

    def __init__(
        self, *, patience: int | None = None, min_improvement: float = 0.0, target: float | None = None
    ) -> None:
        """Set when to stop. At least one of `patience` and `target` must be given.

        Args:
            patience: Number of evaluations in a row without an improvement after which the loop stops, at least 1.
            min_improvement: By how much a mean return has to be more than the best one, at least 0.
            target: Mean return that is enough.

        Raises:
            ConfigError: A value is out of range, or neither `patience` nor `target` is given.
        """
        if patience is None and target is None:
            raise ConfigError("EarlyStopping has neither patience nor target; give at least one of them")
        if not is_number(min_improvement) or not min_improvement >= 0:
            raise ConfigError(f"min_improvement is {min_improvement!r}; expected a number of at least 0")
        if target is not None and not is_number(target):
            raise ConfigError(f"target is {target!r}; expected a number, or None")
        self._patience = None if patience is None else checked_count("patience", patience, least=1)
        self._min_improvement, self._target = min_improvement, target
        self.best: float | None = None
        self._waited = 0
        self._decided: tuple[Any, ...] = ()  # why and when the loop stops; empty if it does not

    def on_start(self, loop: Loop) -> None:
        """Check that the agents are evaluated; in a resumed loop, stop it where that was decided.

        Raises:
            ConfigError: There is no `Evaluator`.
        """
        if not any(isinstance(callback, Evaluator) for callback in loop.callbacks):
            raise ConfigError("EarlyStopping needs evaluations; add an Evaluator (evaluation.every in a run)")
        if self._decided:
            reason, at = self._decided
            loop.stop(reason, at=at)

    def on_evaluation(self, loop: Loop, evaluation: Evaluated) -> None:
        """Stop the loop if it is time to."""
        if self._decided:
            return
        mean = evaluation.mean
        if mean > (-math.inf if self.best is None else self.best + self._min_improvement):
            self.best, self._waited = mean, 0
        else:  # also where it is NaN, because episodes did not end
            self._waited += 1
        if self._target is not None and mean >= self._target:
            self._stop(loop, f"the mean return of an evaluation is {mean:.4g}, the target {self._target:g}", evaluation)
        elif self._waited == self._patience:
            best = "had episodes that all ended" if self.best is None else f"were better than {self.best:.4g}"
            self._stop(loop, f"none of the last {self._waited} evaluations {best}", evaluation)

    def _stop(self, loop: Loop, reason: str, evaluation: Evaluated) -> None:
        self._decided = (reason, evaluation.known_by)
        loop.stop(reason, at=evaluation.known_by)

    def state_dict(self) -> Mapping[str, Any]:
        """Return the best mean return, how many evaluations have been no better, and what is decided by which rule."""
        return {"best": self.best, "waited": self._waited, "decided": list(self._decided), "rule": self._rule}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` returned."""
        self.best = state["best"]
        if state["rule"] == self._rule:  # what another rule has decided does not count
            self._waited, self._decided = state["waited"], tuple(state["decided"])

    @property
    def _rule(self) -> list[float | None]:
        return [self._patience, self._min_improvement, self._target]
