"""Callbacks: what is done beside the training, between groups of iterations, on the driver."""

from trainer.callbacks.console import Console
from trainer.callbacks.early_stopping import EarlyStopping
from trainer.callbacks.evaluator import Evaluator
from trainer.callbacks.loggers import MlflowLogger, TrackioLogger, WandbLogger
from trainer.callbacks.loop import Callback, Loop
from trainer.callbacks.metrics import Metrics
from trainer.callbacks.population import Population
from trainer.evaluation import Evaluated, Evaluation

__all__ = [
    "Callback",
    "Console",
    "EarlyStopping",
    "Evaluated",
    "Evaluation",
    "Evaluator",
    "Loop",
    "Metrics",
    "MlflowLogger",
    "Population",
    "TrackioLogger",
    "WandbLogger",
]
