"""The step trainer for JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import TypeVar

from orchestrator.scopes import generate_equally_spaced_scopes
from trainer import step
from trainer.config import StepTrainerCfg, StepTrainerCfgDict

if TYPE_CHECKING:
    import jax

__all__ = ["StepTrainer", "StepTrainerCfg", "StepTrainerCfgDict", "generate_equally_spaced_scopes"]

A = TypeVar("A", default="jax.Array")


class StepTrainer(step.StepTrainer[A]):
    """Step trainer of simultaneous JAX agents; see `trainer.step.StepTrainer`.

    Outputs are ``jax.Array``. For a multi-agent environment, use the type ``StepTrainer[dict[str, jax.Array]]``.
    """

    framework = "jax"
