"""Adaptation of the learning rate between the epochs of an update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workers.agents.ppo_cfg import PPOCfg

__all__ = ["MAX_LEARNING_RATE", "MIN_LEARNING_RATE", "adapt_learning_rate", "run_epochs"]

MIN_LEARNING_RATE = 1e-6
MAX_LEARNING_RATE = 1e-2


def adapt_learning_rate(learning_rate: float, kl: float, target: float) -> float:
    """Adapt the learning rate to the KL divergence.

    Source: Heess et al., https://arxiv.org/abs/1707.02286, in the form used by rl_games and skrl.

    Args:
        learning_rate: Current learning rate.
        kl: Mean KL divergence of the last epoch.
        target: Target KL divergence.

    Returns:
        The learning rate, divided by 1.5 (but at least 1e-6) if `kl` > 2 `target`, multiplied by 1.5 (but at most 1e-2)
        if `kl` < `target` / 2, otherwise unchanged.
    """
    if kl > 2.0 * target:
        return max(learning_rate / 1.5, MIN_LEARNING_RATE)
    if kl < 0.5 * target:
        return min(learning_rate * 1.5, MAX_LEARNING_RATE)
    return learning_rate


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
            learning_rate = adapt_learning_rate(learning_rate, float(kl), cfg.kl_threshold)
    return learning_rate
