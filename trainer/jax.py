"""The step trainer for JAX."""

from orchestrator.scopes import generate_equally_spaced_scopes
from trainer import step
from trainer.config import StepTrainerCfg

__all__ = ["StepTrainer", "StepTrainerCfg", "generate_equally_spaced_scopes"]


class StepTrainer(step.StepTrainer):
    """Trains simultaneous agents of JAX one step at a time; see `trainer.step.StepTrainer`."""

    framework = "jax"
