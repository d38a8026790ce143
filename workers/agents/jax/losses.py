"""Advantages and losses of PPO, as pure functions."""

from __future__ import annotations

from jax import Array, lax
from jax import numpy as jnp

__all__ = ["clipped_policy_loss", "clipped_value_loss", "compute_gae"]


def compute_gae(
    *,
    rewards: Array,
    values: Array,
    last_values: Array,
    continues: Array,
    acted: Array,
    discount_factor: float,
    gae_lambda: float,
) -> Array:
    """Compute Generalized Advantage Estimation (https://arxiv.org/abs/1506.02438) in a scan over the timesteps.

    Args:
        rewards: ``(timesteps, num_envs, 1)``, float32.
        values: Values of the observations, ``(timesteps, num_envs, 1)``.
        last_values: Values of the observations after the last timestep, ``(num_envs, 1)``.
        continues: Whether the episode continues after the timestep, ``(timesteps, num_envs, 1)`` bool.
        acted: Whether the row acted in the timestep, ``(timesteps, num_envs, 1)`` bool. Rewards and ends of timesteps
            without an action are credited to the row's last action before them.
        discount_factor: Discount factor of future rewards.
        gae_lambda: Lambda.

    Returns:
        Advantages, ``(timesteps, num_envs, 1)``, not normalised; 0 where the row did not act.
    """
    nothing = jnp.zeros_like(last_values)

    def accumulate(following: tuple[Array, ...], step: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        reward, own_value, goes_on, acts = step
        value, advantage, later = (jnp.where(goes_on, each, 0.0) for each in following)
        later = later + reward
        own = later + discount_factor * (value + gae_lambda * advantage) - own_value
        # not multiplied by the masks: the critic's output may be NaN where the row did not act
        waiting = jnp.where(acts, own_value, value), jnp.where(acts, own, advantage), jnp.where(acts, 0.0, later)
        return waiting, jnp.where(acts, own, 0.0)

    # of the following timesteps: value, advantage, and rewards not yet credited to an action
    following = (last_values, nothing, nothing)
    _, advantages = lax.scan(accumulate, following, (rewards, values, continues, acted), reverse=True)
    return advantages


def clipped_policy_loss(ratio: Array, advantages: Array, clip: float) -> Array:
    """Compute PPO's clipped surrogate objective as a loss (https://arxiv.org/abs/1707.06347, equation 7).

    Args:
        ratio: Probability ratios, ``(rows, 1)``.
        advantages: ``(rows, 1)``.
        clip: Clipping range of the ratio around 1.

    Returns:
        The mean of the losses.
    """
    free = ratio * advantages
    limited = lax.stop_gradient(jnp.clip(ratio, 1.0 - clip, 1.0 + clip)) * advantages
    return -jnp.where(limited < free, limited, free).mean()


def clipped_value_loss(values: Array, targets: Array, old_values: Array, clip: float) -> Array:
    """Compute the critic's squared error, the larger of that with and that without clipping.

    Args:
        values: Outputs of the critic, ``(rows, 1)``.
        targets: Target outputs, ``(rows, 1)``: returns, normalised if values are.
        old_values: Outputs at the rollout, ``(rows, 1)``.
        clip: Clipping range of the outputs around `old_values`; 0 disables clipping.

    Returns:
        The mean of the losses.
    """
    free = jnp.square(values - targets)
    if not clip:
        return free.mean()
    nearby = lax.stop_gradient(jnp.clip(values, old_values - clip, old_values + clip))
    limited = jnp.square(nearby - targets)
    return jnp.where(limited > free, limited, free).mean()
