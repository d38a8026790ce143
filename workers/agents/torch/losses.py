"""Advantages and losses of PPO, with the losses' gradients written out (the tests hold them against autograd)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["clipped_policy_loss", "clipped_value_loss", "compute_gae"]


def compute_gae(
    *,
    rewards: Tensor,
    values: Tensor,
    last_values: Tensor,
    continues: Tensor,
    discount_factor: float,
    gae_lambda: float,
) -> Tensor:
    """Generalized Advantage Estimation (https://arxiv.org/abs/1506.02438).

    Args:
        rewards: ``(timesteps, num_envs)``, float32.
        values: Values of the observations, ``(timesteps, num_envs)``.
        last_values: Values of what follows the last timestep, ``(num_envs,)``.
        continues: 1 where the episode goes on after the timestep, 0 where it ended, ``(timesteps, num_envs)``.
        discount_factor: Weight of future rewards.
        gae_lambda: Lambda.

    Returns:
        Advantages, ``(timesteps, num_envs)``, not normalised.
    """
    discounts = continues * discount_factor
    next_values = torch.cat([values[1:], last_values.unsqueeze(0)])
    advantages = torch.addcmul(rewards, discounts, next_values).sub_(values)  # so far the temporal differences
    decays = discounts.mul_(gae_lambda)
    for t in range(rewards.shape[0] - 2, -1, -1):
        advantages[t].addcmul_(decays[t], advantages[t + 1])
    return advantages


def clipped_policy_loss(ratio: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate objective (https://arxiv.org/abs/1707.06347, equation 7), to be minimised.

    Args:
        ratio: Probability ratios, ``(rows, 1)``.
        advantages: ``(rows, 1)``.
        clip: How far the ratio may move from 1.

    Returns:
        The sum of the losses, and the gradient of their mean with respect to the log-probabilities, ``(rows, 1)``.
    """
    surrogate = ratio * advantages
    clipped = ratio.clamp(1.0 - clip, 1.0 + clip).mul_(advantages)
    # Where the clipped one is smaller it is constant. d ratio / d log-probability = ratio.
    grad = surrogate.masked_fill(surrogate > clipped, 0.0).mul_(-1.0 / ratio.shape[0])
    return -torch.minimum(surrogate, clipped).sum(), grad


def clipped_value_loss(values: Tensor, targets: Tensor, old_values: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Squared error of the critic, the larger of those without and with the move from `old_values` clipped.

    Args:
        values: Outputs of the critic, ``(rows, 1)``.
        targets: What they should be, ``(rows, 1)``.
        old_values: What they were at the rollout, ``(rows, 1)``.
        clip: How far the outputs may move; 0 for no limit.

    Returns:
        The sum of the losses, and the gradient of their mean with respect to `values`, ``(rows, 1)``.
    """
    errors = values - targets
    losses = errors.square()
    if clip > 0:
        clipped = torch.clamp(values, old_values - clip, old_values + clip).sub_(targets).square_()
        errors.masked_fill_(losses < clipped, 0.0)  # the clipped one is larger: it is constant
        losses = torch.maximum(losses, clipped)
    return losses.sum(), errors.mul_(2.0 / values.shape[0])
