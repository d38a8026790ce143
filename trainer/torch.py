"""The step trainer for PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import TypeVar

from orchestrator.scopes import generate_equally_spaced_scopes
from trainer import step
from trainer.config import StepTrainerCfg, StepTrainerCfgDict

if TYPE_CHECKING:
    import torch

__all__ = ["StepTrainer", "StepTrainerCfg", "StepTrainerCfgDict", "generate_equally_spaced_scopes"]

A = TypeVar("A", default="torch.Tensor")


class StepTrainer(step.StepTrainer[A]):
    """Step trainer of simultaneous PyTorch agents; see `trainer.step.StepTrainer`.

    Outputs are ``torch.Tensor``. For a multi-agent environment, use the type ``StepTrainer[dict[str, torch.Tensor]]``.
    """

    framework = "torch"
