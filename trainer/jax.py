"""The step trainer for JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import TypeVar

from orchestrator.scopes import generate_equally_spaced_scopes
from trainer import step
from trainer.config import StepTrainerCfg

if TYPE_CHECKING:
    import jax

__all__ = ["StepTrainer", "StepTrainerCfg", "generate_equally_spaced_scopes"]

A = TypeVar("A", default="jax.Array")


class StepTrainer(step.StepTrainer[A]):
    """Trains simultaneous agents of JAX one step at a time; see `trainer.step.StepTrainer`.

    Its outputs are of the type ``jax.Array``; ``StepTrainer[dict[str, jax.Array]]`` is that of a team.
    """

    framework = "jax"
