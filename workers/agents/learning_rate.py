"""Adaptation of the learning rate between the epochs of an update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from workers.agents.ppo_cfg import PPOCfg

__all__ = ["MAX_LEARNING_RATE", "MIN_LEARNING_RATE", "adapt_learning_rate", "run_epochs"]

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


def run_epochs(cfg: PPOCfg, learning_rate: float, run_epoch: Callable[[int, float], Any]) -> float:
    """Run all epochs of an update; each one's KL divergence adapts the learning rate of the next.

    Args:
        cfg: The agent's configuration.
        learning_rate: Learning rate of the first epoch.
        run_epoch: Called with the index and the learning rate of an epoch; returns its mean KL divergence.

    Returns:
        The learning rate of the next update.
    """
    for epoch in range(cfg.learning_epochs):
        kl = run_epoch(epoch, learning_rate)
        if cfg.kl_threshold:
            learning_rate = float(adapt_learning_rate(learning_rate, float(kl), cfg.kl_threshold, np.where))
    return learning_rate
