"""Advantages and losses of PPO."""

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
    acted: Tensor | None,
    discount_factor: float,
    gae_lambda: float,
) -> Tensor:
    """Compute Generalized Advantage Estimation (https://arxiv.org/abs/1506.02438).

    Args:
        rewards: ``(timesteps, num_envs, 1)``, float32.
        values: Values of the observations, ``(timesteps, num_envs, 1)``.
        last_values: Values of the observations after the last timestep, ``(num_envs, 1)``.
        continues: Whether the episode continues after the timestep, ``(timesteps, num_envs, 1)`` bool.
        acted: Whether the row acted in the timestep, ``(timesteps, num_envs, 1)`` bool; None if all did. Rewards and
            ends of timesteps without an action are credited to the row's last action before them.
        discount_factor: Discount factor of future rewards.
        gae_lambda: Lambda.

    Returns:
        Advantages, ``(timesteps, num_envs, 1)``, not normalised; 0 where the row did not act.
    """
    if acted is not None:
        return _gae_of_acted(rewards, values, last_values, continues, acted, discount_factor, gae_lambda)
    discounts = continues * discount_factor
    advantages = rewards + discounts * torch.cat([values[1:], last_values.unsqueeze(0)]) - values  # TD errors so far
    decays = discounts * gae_lambda
    following, *earlier = reversed(advantages.unbind())
    for advantage, decay in zip(earlier, reversed(decays[:-1].unbind()), strict=True):
        following = advantage.addcmul_(decay, following)
    return advantages


def _gae_of_acted(
    rewards: Tensor,
    values: Tensor,
    last_values: Tensor,
    continues: Tensor,
    acted: Tensor,
    discount_factor: float,
    gae_lambda: float,
) -> Tensor:
    advantages, nothing = torch.zeros_like(rewards), torch.zeros_like(last_values)
    # of the following timesteps: value, advantage, and rewards not yet credited to an action
    following = torch.stack([last_values, nothing, nothing])
    for step in reversed(range(len(rewards))):
        # not multiplied by the masks: the critic's output may be NaN where the row did not act
        value, advantage, later = following.where(continues[step], 0.0)
        later = later + rewards[step]
        own = later + discount_factor * (value + gae_lambda * advantage) - values[step]
        advantages[step] = own.where(acted[step], 0.0)
        waiting = torch.stack([value, advantage, later])
        following = torch.where(acted[step], torch.stack([values[step], own, nothing]), waiting)
    return advantages


def clipped_policy_loss(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Compute PPO's clipped surrogate objective as a loss (https://arxiv.org/abs/1707.06347, equation 7).

    Args:
        ratio: Probability ratios, ``(rows, 1)``.
        advantages: ``(rows, 1)``.
        clip: Clipping range of the ratio around 1.

    Returns:
        The mean of the losses.
    """
    surrogate = ratio * advantages
    clipped = ratio.detach().clamp(1.0 - clip, 1.0 + clip) * advantages  # constant where it is the smaller term
    return -torch.where(clipped < surrogate, clipped, surrogate).mean()


def clipped_value_loss(values: Tensor, targets: Tensor, old_values: Tensor, clip: float) -> Tensor:
    """Compute the critic's squared error, the larger of that with and that without clipping.

    Args:
        values: Outputs of the critic, ``(rows, 1)``.
        targets: Target outputs, ``(rows, 1)``.
        old_values: Outputs at the rollout, ``(rows, 1)``.
        clip: Clipping range of the outputs around `old_values`; 0 disables clipping.

    Returns:
        The mean of the losses.
    """
    losses = (values - targets).square()
    if clip > 0:
        clipped = (values.detach().clamp(old_values - clip, old_values + clip) - targets).square()
        losses = torch.where(clipped > losses, clipped, losses)  # constant where it is the larger term
    return losses.mean()
