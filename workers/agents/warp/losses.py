"""Advantages and losses of PPO: per-sample functions for kernels, and kernels that sum and report them."""

# Warp compiles kernels by its own types and rules: `float(0.0)` is a variable, `0.0` a constant.
# mypy: ignore-errors
# ruff: noqa: UP018

from __future__ import annotations

import warp as wp

from workers.agents.learning_rate import MAX_LEARNING_RATE, MIN_LEARNING_RATE
from workers.agents.warp.kernels import Indices, Matrix, PreciseMatrix, PreciseVector, Vector, kernel, launch

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


@kernel
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


@kernel
def standardize(advantages: Matrix, mean: PreciseVector, variance: PreciseVector, standardized: Matrix) -> None:
    """Scale advantages to mean 0 and standard deviation 1."""
    row = wp.tid()
    scale = wp.float32(wp.sqrt(variance[0])) + 1.0e-8
    standardized[row, 0] = (advantages[row, 0] - wp.float32(mean[0])) / scale


@kernel
def add(first: Matrix, second: Matrix, sums: Matrix) -> None:
    """Add two arrays of shape ``(rows, 1)``."""
    row = wp.tid()
    sums[row, 0] = first[row, 0] + second[row, 0]


@wp.func
def clipped_policy_loss(ratio: float, advantage: float, clip: float) -> wp.vec2:
    """Compute PPO's clipped surrogate objective of one sample as a loss (https://arxiv.org/abs/1707.06347, equation 7).

    Args:
        ratio: Probability ratio.
        advantage: Advantage.
        clip: Clipping range of the ratio around 1.

    Returns:
        The loss, and its derivative by the ratio.
    """
    surrogate = ratio * advantage
    clipped = wp.clamp(ratio, 1.0 - clip, 1.0 + clip) * advantage
    if clipped < surrogate:  # not `wp.min`, which ignores NaN
        return wp.vec2(-clipped, 0.0)
    return wp.vec2(-surrogate, -advantage)


@wp.func
def clipped_value_loss(value: float, target: float, old_value: float, clip: float) -> wp.vec2:
    """Compute the critic's squared error, the larger of that with and that without clipping.

    Args:
        value: Output of the critic.
        target: Target output.
        old_value: Output at the rollout.
        clip: Clipping range of the output around `old_value`; 0 disables clipping.

    Returns:
        The loss, and its derivative by the output.
    """
    error = value - target
    limited = wp.clamp(value, old_value - clip, old_value + clip) - target
    if clip > 0.0 and limited * limited > error * error:
        return wp.vec2(limited * limited, 0.0)
    return wp.vec2(error * error, 2.0 * error)


@kernel
def compute_losses(
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
    terms: PreciseMatrix,
    by_log_prob: Vector,
    by_value: Matrix,
) -> None:
    """Compute one sample's share of the mini-batch's losses, with derivatives, and its KL divergence.

    A row of `terms`: KL divergence, and shares of the policy's, the critic's and the entropy loss.
    """
    index = wp.tid()
    row = rows[index]
    share = 1.0 / float(rows.shape[0])
    log_ratio = log_prob[index] - old_log_prob[row]
    ratio = wp.exp(log_ratio)
    policy_loss = clipped_policy_loss(ratio, advantages[row, 0], ratio_clip)
    value_loss = clipped_value_loss(values[index, 0], targets[row, 0], old_values[row, 0], value_clip)
    precise = wp.float64(log_ratio)  # exp(r) - 1 - r cancels to 0 in float32 for small r
    terms[index, 0] = wp.exp(precise) - wp.float64(1.0) - precise
    terms[index, 1] = wp.float64(share * policy_loss[0])
    terms[index, 2] = wp.float64(share * value_loss_scale * value_loss[0])
    terms[index, 3] = wp.float64(-share * entropy_loss_scale * entropy[index])
    by_log_prob[index] = share * policy_loss[1] * ratio
    by_value[index, 0] = share * value_loss_scale * value_loss[1]


@kernel
def add_terms(terms: PreciseMatrix, part: int, sums: PreciseMatrix) -> None:
    """Add up the terms of a part of the samples."""
    index, column = wp.tid()
    total = wp.float64(0.0)
    for row in range(index * part, wp.min((index + 1) * part, terms.shape[0])):
        total += terms[row, column]
    sums[index, column] = total


@wp.func
def adapt(rate: wp.float64, kl: wp.float64, target: wp.float64) -> wp.float64:
    """Return the next learning rate; see `workers.agents.learning_rate.adapt_learning_rate`."""
    if kl > wp.float64(2.0) * target:
        return wp.max(rate / wp.float64(1.5), wp.static(wp.float64(MIN_LEARNING_RATE)))
    if kl < wp.float64(0.5) * target:
        return wp.min(rate * wp.float64(1.5), wp.static(wp.float64(MAX_LEARNING_RATE)))
    return rate


@kernel
def end_epoch(
    epoch: int,
    samples: int,
    target: wp.float64,
    log_std: Vector,
    totals: PreciseVector,
    rate: PreciseVector,
    report: PreciseMatrix,
) -> None:
    """Adapt the learning rate to the epoch's mean KL divergence, unless `target` is 0, and clear the epoch's totals.

    A row of the report: the totals of the terms of all samples, with the mean KL divergence; the next learning rate;
    and `log_std` if there is one.
    """
    totals[0] /= wp.float64(samples)
    if target > wp.float64(0.0):
        rate[0] = adapt(rate[0], totals[0], target)
    for index in range(4):
        report[epoch, index] = totals[index]
        totals[index] = wp.float64(0.0)
    report[epoch, 4] = rate[0]
    for column in range(report.shape[1] - 5):
        report[epoch, 5 + column] = wp.float64(log_std[column])
