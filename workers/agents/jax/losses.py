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
    """Generalized Advantage Estimation, a scan from the last timestep to the first.

    Source: https://arxiv.org/abs/1506.02438.

    Args:
        rewards: ``(timesteps, num_envs, 1)``, float32.
        values: What the critic says of the observations, of the shape of `rewards`.
        last_values: The same of what follows the last timestep, ``(num_envs, 1)``.
        continues: Bools of the shape of `rewards`: whether the episode goes on after the timestep.
        acted: Bools of the shape of `rewards`: whether there was an action in the timestep. What the others bring
            belongs to the last one with an action before them.
        discount_factor: Weight of future rewards.
        gae_lambda: Lambda.

    Returns:
        Advantages of the shape of `rewards`, not normalised; 0 where there was no action.
    """
    nothing = jnp.zeros_like(last_values)

    def accumulate(following: tuple[Array, ...], step: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        reward, own_value, goes_on, acts = step
        value, advantage, later = (jnp.where(goes_on, each, 0.0) for each in following)
        later = later + reward
        own = later + discount_factor * (value + gae_lambda * advantage) - own_value
        # not by products: what the critic says where there was no action may be NaN
        waiting = jnp.where(acts, own_value, value), jnp.where(acts, own, advantage), jnp.where(acts, 0.0, later)
        return waiting, jnp.where(acts, own, 0.0)

    # of what follows: the value, the advantage, and rewards that no action has been found for yet
    following = (last_values, nothing, nothing)
    _, advantages = lax.scan(accumulate, following, (rewards, values, continues, acted), reverse=True)
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
