"""The step trainer for Warp."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typing_extensions import TypeVar

from orchestrator.scopes import generate_equally_spaced_scopes
from trainer import step
from trainer.config import StepTrainerCfg, StepTrainerCfgDict

if TYPE_CHECKING:
    import warp as wp

__all__ = ["StepTrainer", "StepTrainerCfg", "StepTrainerCfgDict", "generate_equally_spaced_scopes"]

A = TypeVar("A", default="wp.array[Any]")


class StepTrainer(step.StepTrainer[A]):
    """Step trainer of simultaneous Warp agents; see `trainer.step.StepTrainer`.

    Outputs are ``wp.array[Any]``. For a multi-agent environment, use the type
    ``StepTrainer[dict[str, wp.array[Any]]]``.
    """

    framework = "warp"
