"""Advantages and losses of PPO: per-sample functions for kernels, and kernels that sum and report them."""

# Warp compiles kernels by its own types and rules: `float(0.0)` is a variable, `0.0` a constant.
# mypy: ignore-errors
# ruff: noqa: UP018

from __future__ import annotations

import warp as wp

from workers.agents.learning_rate import MAX_LEARNING_RATE, MIN_LEARNING_RATE
from workers.agents.warp.kernels import Indices, Matrix, PreciseMatrix, PreciseVector, Vector, launch

__all__ = ["clipped_policy_loss", "clipped_value_loss", "compute_gae"]


def compute_gae(
    *,
    rewards: wp.array,
    values: wp.array,
    last_values: wp.array,
    continues: wp.array,
    acted: wp.array,
    discount_factor: float,
    gae_lambda: float,
) -> wp.array:
    """Compute Generalized Advantage Estimation (https://arxiv.org/abs/1506.02438), with one thread per environment.

    Args:
        rewards: ``(timesteps, num_envs, 1)``, float32.
        values: Values of the observations, ``(timesteps, num_envs, 1)``, float32.
        last_values: Values of the observations after the last timestep, ``(num_envs, 1)``, float32.
        continues: Whether the episode continues after the timestep, ``(timesteps, num_envs, 1)`` bool.
        acted: Whether the row acted in the timestep, ``(timesteps, num_envs, 1)`` bool. Rewards and ends of timesteps
            without an action are credited to the row's last action before them.
        discount_factor: Discount factor of future rewards.
        gae_lambda: Lambda.

    Returns:
        Advantages as a new array, ``(timesteps, num_envs, 1)``, not normalised; 0 where the row did not act.
    """
    advantages = wp.empty_like(rewards)
    inputs = [rewards, values, last_values, continues, acted, discount_factor, gae_lambda]
    launch(accumulate_advantages, rewards.shape[1], inputs, [advantages])
    return advantages


@wp.kernel(enable_backward=False)
def accumulate_advantages(
    rewards: wp.array3d[float],
    values: wp.array3d[float],
    last_values: Matrix,
    continues: wp.array3d[wp.bool],
    acted: wp.array3d[wp.bool],
    discount_factor: float,
    gae_lambda: float,
    advantages: wp.array3d[float],
) -> None:
    """Compute the advantages of one environment, from the last timestep to the first."""
    env = wp.tid()
    # of the following timesteps: value, advantage, and rewards not yet credited to an action
    value = float(last_values[env, 0])
    advantage = float(0.0)
    later = float(0.0)
    for back in range(rewards.shape[0]):
        step = rewards.shape[0] - 1 - back
        if not continues[step, env, 0]:
            value = 0.0
            advantage = 0.0
            later = 0.0
        later += rewards[step, env, 0]
        advantages[step, env, 0] = 0.0
        if acted[step, env, 0]:
            advantage = later + discount_factor * (value + gae_lambda * advantage) - values[step, env, 0]
            advantages[step, env, 0] = advantage
            value = values[step, env, 0]
            later = 0.0


@wp.kernel(enable_backward=False)
def standardize(advantages: Matrix, mean: PreciseVector, variance: PreciseVector, standardized: Matrix) -> None:
    """Scale advantages to mean 0 and standard deviation 1."""
    row = wp.tid()
    scale = wp.float32(wp.sqrt(variance[0])) + 1.0e-8
    standardized[row, 0] = (advantages[row, 0] - wp.float32(mean[0])) / scale


@wp.kernel(enable_backward=False)
def add(first: Matrix, second: Matrix, sums: Matrix) -> None:
    """Add two arrays of shape ``(rows, 1)``."""
    row = wp.tid()
    sums[row, 0] = first[row, 0] + second[row, 0]


@wp.func
def clipped_policy_loss(ratio: float, advantage: float, clip: float) -> float:
    """Compute PPO's clipped surrogate objective of one sample as a loss (https://arxiv.org/abs/1707.06347, equation 7).

    Args:
        ratio: Probability ratio.
        advantage: Advantage.
        clip: Clipping range of the ratio around 1.
    """
    surrogate = ratio * advantage
    clipped = wp.clamp(ratio, 1.0 - clip, 1.0 + clip) * advantage
    return -wp.where(clipped < surrogate, clipped, surrogate)  # not `wp.min`, which ignores NaN


@wp.func
def clipped_value_loss(value: float, target: float, old_value: float, clip: float) -> float:
    """Compute the critic's squared error, the larger of that with and that without clipping.

    Args:
        value: Output of the critic.
        target: Target output.
        old_value: Output at the rollout.
        clip: Clipping range of the output around `old_value`; 0 disables clipping.
    """
    free = (value - target) * (value - target)
    limited = wp.clamp(value, old_value - clip, old_value + clip) - target
    return wp.where(clip > 0.0 and limited * limited > free, limited * limited, free)


@wp.kernel
def add_losses(
    log_prob: Vector,
    entropy: Vector,
    values: Matrix,
    rows: Indices,
    old_log_prob: Vector,
    old_values: Matrix,
    advantages: Matrix,
    targets: Matrix,
    ratio_clip: float,
    value_clip: float,
    value_loss_scale: float,
    entropy_loss_scale: float,
    losses: Vector,
    kl: PreciseVector,
) -> None:
    """Add one sample's share to the mini-batch's losses (policy, value, entropy) and its KL divergence to a sum."""
    index = wp.tid()
    row = rows[index]
    share = 1.0 / float(rows.shape[0])
    log_ratio = log_prob[index] - old_log_prob[row]
    policy_loss = clipped_policy_loss(wp.exp(log_ratio), advantages[row, 0], ratio_clip)
    value_loss = clipped_value_loss(values[index, 0], targets[row, 0], old_values[row, 0], value_clip)
    wp.atomic_add(losses, 0, share * policy_loss)
    wp.atomic_add(losses, 1, share * value_loss_scale * value_loss)
    wp.atomic_add(losses, 2, -share * entropy_loss_scale * entropy[index])
    precise = wp.float64(log_ratio)  # exp(r) - 1 - r cancels to 0 in float32 for small r
    wp.atomic_add(kl, 0, wp.exp(precise) - wp.float64(1.0) - precise)


@wp.func
def adapt(rate: wp.float64, kl: wp.float64, target: wp.float64) -> wp.float64:
    """Return the next learning rate; see `workers.agents.learning_rate.adapt_learning_rate`."""
    if kl > wp.float64(2.0) * target:
        return wp.max(rate / wp.float64(1.5), wp.static(wp.float64(MIN_LEARNING_RATE)))
    if kl < wp.float64(0.5) * target:
        return wp.min(rate * wp.float64(1.5), wp.static(wp.float64(MAX_LEARNING_RATE)))
    return rate


@wp.kernel(enable_backward=False)
def end_epoch(
    epoch: int,
    samples: int,
    target: wp.float64,
    log_std: Vector,
    losses: Vector,
    kl: PreciseVector,
    rate: PreciseVector,
    report: PreciseMatrix,
) -> None:
    """Adapt the learning rate to the epoch's mean KL divergence, unless `target` is 0, and clear the epoch's sums.

    A row of the report: KL divergence, next learning rate, the three sums of losses, and `log_std` if there is one.
    """
    mean = kl[0] / wp.float64(samples)
    kl[0] = wp.float64(0.0)
    if target > wp.float64(0.0):
        rate[0] = adapt(rate[0], mean, target)
    report[epoch, 0] = mean
    report[epoch, 1] = rate[0]
    for index in range(3):
        report[epoch, 2 + index] = wp.float64(losses[index])
        losses[index] = 0.0
    for column in range(report.shape[1] - 5):
        report[epoch, 5 + column] = wp.float64(log_std[column])
