"""Callbacks: what is done beside the training, between groups of iterations, on the driver."""

from trainer.callbacks.loop import Callback, Loop

__all__ = ["Callback", "Loop"]
