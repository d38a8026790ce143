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
    acted: Tensor,
    discount_factor: float,
    gae_lambda: float,
) -> Tensor:
    """Generalized Advantage Estimation (https://arxiv.org/abs/1506.02438).

    Args:
        rewards: ``(timesteps, num_envs, 1)``, float32.
        values: Values of the observations, ``(timesteps, num_envs, 1)``.
        last_values: Values of what follows the last timestep, ``(num_envs, 1)``.
        continues: Whether the episode goes on after the timestep, ``(timesteps, num_envs, 1)``.
        acted: Whether there was an action in the timestep, ``(timesteps, num_envs, 1)``. What the others bring belongs
            to the last one with an action before them.
        discount_factor: Weight of future rewards.
        gae_lambda: Lambda.

    Returns:
        Advantages, ``(timesteps, num_envs, 1)``, not normalised; 0 where there was no action.
    """
    if not acted.all():
        return _gae_of_acted(rewards, values, last_values, continues, acted, discount_factor, gae_lambda)
    discounts = continues * discount_factor
    advantages = rewards + discounts * torch.cat([values[1:], last_values.unsqueeze(0)]) - values  # differences so far
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
    # of what follows: the value, the advantage, and rewards that no action has been found for yet
    following = torch.stack([last_values, nothing, nothing])
    for step in reversed(range(len(rewards))):
        # not by products: what the critic says where there was no action may be NaN
        value, advantage, later = following.where(continues[step], 0.0)
        later = later + rewards[step]
        own = later + discount_factor * (value + gae_lambda * advantage) - values[step]
        advantages[step] = own.where(acted[step], 0.0)
        waiting = torch.stack([value, advantage, later])
        following = torch.where(acted[step], torch.stack([values[step], own, nothing]), waiting)
    return advantages


def clipped_policy_loss(ratio: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """PPO's clipped surrogate objective (https://arxiv.org/abs/1707.06347, equation 7), to be minimised.

    Args:
        ratio: Probability ratios, ``(rows, 1)``.
        advantages: ``(rows, 1)``.
        clip: How far the ratio may move from 1.

    Returns:
        The mean of the losses.
    """
    surrogate = ratio * advantages
    clipped = ratio.detach().clamp(1.0 - clip, 1.0 + clip) * advantages  # constant where it is the smaller one
    return -torch.where(clipped < surrogate, clipped, surrogate).mean()


def clipped_value_loss(values: Tensor, targets: Tensor, old_values: Tensor, clip: float) -> Tensor:
    """Squared error of the critic, the larger of those without and with the move from `old_values` clipped.

    Args:
        values: Outputs of the critic, ``(rows, 1)``.
        targets: What they should be, ``(rows, 1)``.
        old_values: What they were at the rollout, ``(rows, 1)``.
        clip: How far the outputs may move; 0 for no limit.

    Returns:
        The mean of the losses.
    """
    losses = (values - targets).square()
    if clip > 0:
        clipped = (values.detach().clamp(old_values - clip, old_values + clip) - targets).square()
        losses = torch.where(clipped > losses, clipped, losses)  # the clipped one is constant where it is the larger
    return losses.mean()
