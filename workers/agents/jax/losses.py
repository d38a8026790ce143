"""Advantages and losses of PPO, as pure functions."""

from __future__ import annotations

from jax import Array, lax
from jax import numpy as jnp

__all__ = ["clipped_policy_loss", "clipped_value_loss", "compute_gae"]


def compute_gae(
    *, rewards: Array, values: Array, last_values: Array, continues: Array, discount_factor: float, gae_lambda: float
) -> Array:
    """Generalized Advantage Estimation, a scan from the last timestep to the first.

    Source: https://arxiv.org/abs/1506.02438.

    Args:
        rewards: ``(timesteps, num_envs, 1)``, float32.
        values: What the critic says of the observations, of the shape of `rewards`.
        last_values: The same of what follows the last timestep, ``(num_envs, 1)``.
        continues: Bools of the shape of `rewards`: whether the episode goes on after the timestep.
        discount_factor: Weight of future rewards.
        gae_lambda: Lambda.

    Returns:
        Advantages of the shape of `rewards`, not normalised.
    """
    discounts = continues * jnp.float32(discount_factor)
    differences = rewards + discounts * jnp.concatenate([values[1:], last_values[None]]) - values

    def accumulate(following: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        difference, decay = step
        advantage = difference + decay * following
        return advantage, advantage

    _, advantages = lax.scan(
        accumulate, jnp.zeros_like(last_values), (differences, discounts * gae_lambda), reverse=True
    )
    return advantages


def clipped_policy_loss(ratio: Array, advantages: Array, clip: float) -> Array:
    """Mean of PPO's clipped surrogate objective (https://arxiv.org/abs/1707.06347, equation 7), to be minimised.

    Args:
        ratio: Probability ratios, ``(rows, 1)``.
        advantages: ``(rows, 1)``.
        clip: Largest distance of a ratio from 1 that is rewarded.
    """
    free = ratio * advantages
    limited = lax.stop_gradient(jnp.clip(ratio, 1.0 - clip, 1.0 + clip)) * advantages
    return -jnp.where(limited < free, limited, free).mean()


def clipped_value_loss(values: Array, targets: Array, old_values: Array, clip: float) -> Array:
    """Mean squared error of the critic; of those with a limited and an unlimited move, the larger one counts.

    Args:
        values: What the critic says, ``(rows, 1)``; it is moved towards `targets`.
        targets: Normalised returns, where values are normalised; of the shape of `values`.
        old_values: What the critic said at the rollout, of the shape of `values`.
        clip: Largest move from `old_values`; 0 for no limit.
    """
    free = jnp.square(values - targets)
    if not clip:
        return free.mean()
    nearby = lax.stop_gradient(jnp.clip(values, old_values - clip, old_values + clip))
    limited = jnp.square(nearby - targets)
    return jnp.where(limited > free, limited, free).mean()
