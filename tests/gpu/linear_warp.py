"""The kernels of the Warp environment in `linear.py`; a thread steps one copy."""

# Warp compiles kernels by its own types and rules.
# mypy: ignore-errors
# ruff: noqa: UP018

import warp as wp

OBSERVATIONS, ACTIONS = wp.constant(48), wp.constant(12)
Matrix, Flags, Indices = wp.array2d[float], wp.array2d[wp.bool], wp.array1d[int]


@wp.kernel(enable_backward=False)
def start(noise: Indices, steps: Indices, state: Matrix) -> None:
    """Start all copies."""
    row = wp.tid()
    random = wp.rand_init(noise[0], row)
    steps[row] = wp.randi(random, 0, 200)
    for column in range(OBSERVATIONS):
        state[row, column] = wp.randn(random)


@wp.kernel(enable_backward=False)
def advance(
    before: Matrix,
    actions: Matrix,
    along: Matrix,
    across: Matrix,
    noise: Indices,
    steps: Indices,
    state: Matrix,
    final: Matrix,
    rewards: Matrix,
    terminated: Flags,
    truncated: Flags,
    ended: Flags,
) -> None:
    """Step all copies."""
    row = wp.tid()
    random = wp.rand_init(noise[0] + 1, noise[1] * before.shape[0] + row)
    largest = float(0.0)
    total = float(0.0)
    for column in range(OBSERVATIONS):
        value = 0.05 * wp.randn(random)
        for index in range(OBSERVATIONS):
            value += before[row, index] * along[index, column]
        for index in range(ACTIONS):
            value += wp.clamp(actions[row, index], -1.0, 1.0) * across[index, column]
        final[row, column] = value
        largest = wp.max(largest, wp.abs(value))
        total += value * value
    rewards[row, 0] = -total / float(OBSERVATIONS)
    steps[row] = steps[row] + 1
    terminated[row, 0] = largest > 6.0
    truncated[row, 0] = steps[row] >= 200
    ended[row, 0] = terminated[row, 0] or truncated[row, 0]
    if ended[row, 0]:
        steps[row] = 0
    for column in range(OBSERVATIONS):
        state[row, column] = wp.where(ended[row, 0], wp.randn(random), final[row, column])


@wp.kernel(enable_backward=False)
def count(noise: Indices) -> None:
    """Count the steps."""
    noise[1] = noise[1] + 1
