"""Callbacks: what is done beside the training, between groups of iterations, on the driver."""

from trainer.callbacks.early_stopping import EarlyStopping
from trainer.callbacks.evaluator import Evaluator
from trainer.callbacks.loop import Callback, Loop
from trainer.callbacks.metrics import Metrics

__all__ = ["Callback", "EarlyStopping", "Evaluator", "Loop", "Metrics"]
