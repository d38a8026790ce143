"""Adaptation of the learning rate between the epochs of an update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["MAX_LEARNING_RATE", "MIN_LEARNING_RATE", "adapt_learning_rate"]

MIN_LEARNING_RATE = 1e-6
MAX_LEARNING_RATE = 1e-2


def adapt_learning_rate(learning_rate: Any, kl: Any, target: float, where: Callable[..., Any]) -> Any:
    """Adapt the learning rate to the KL divergence, on the device of both.

    Source: Heess et al., https://arxiv.org/abs/1707.02286, in the form used by rl_games and skrl.

    Args:
        learning_rate: Current learning rate, an array without dimensions.
        kl: Mean KL divergence of the last epoch, an array without dimensions.
        target: Target KL divergence.
        where: The framework's `where`.

    Returns:
        The learning rate, divided by 1.5 (but at least 1e-6) if `kl` > 2 `target`, multiplied by 1.5 (but at most 1e-2)
        if `kl` < `target` / 2, otherwise unchanged.
    """
    slower, faster = learning_rate / 1.5, learning_rate * 1.5
    slower = where(slower < MIN_LEARNING_RATE, MIN_LEARNING_RATE, slower)
    faster = where(faster > MAX_LEARNING_RATE, MAX_LEARNING_RATE, faster)
    return where(kl > 2.0 * target, slower, where(kl < 0.5 * target, faster, learning_rate))
