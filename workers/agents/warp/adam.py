"""Adam on all parameters at once."""

# Warp compiles kernels by its own types and rules: `float(0.0)` is a variable, `0.0` a constant.
# mypy: ignore-errors

from __future__ import annotations

import math
from collections.abc import Mapping

import warp as wp

from workers.agents.warp.kernels import BLOCK, Indices, Matrix, PreciseVector, Vector, kernel

__all__ = ["Adam"]

TILE = 1024
ALIGNMENT = 16
"""Parameters start at multiples of so many elements."""

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


@kernel
def add_parts(parts: Matrix, count: int, gradients: Vector, squares: Vector) -> None:
    """Add the first `count` parts of a tile of gradients, in a fixed order, and sum their squares."""
    i = wp.tid()
    total = wp.tile_load(parts[0], shape=TILE, offset=i * TILE)
    for part in range(1, count):
        total += wp.tile_load(parts[part], shape=TILE, offset=i * TILE)
    wp.tile_store(gradients, total, offset=i * TILE)
    wp.tile_store(squares, wp.tile_sum(total * total), offset=i)


@kernel
def begin_step(squares: Vector, max_norm: float, rate: PreciseVector, steps: Indices, factors: Vector) -> None:
    """Count a step and compute its factors, in one block: of the gradients, the step size, and of the variances."""
    _, lane = wp.tid()
    total = wp.tile_zeros(shape=1, dtype=float)
    for k in range((squares.shape[0] + TILE - 1) / TILE):
        total += wp.tile_sum(wp.tile_load(squares, shape=TILE, offset=k * TILE))
    norm = wp.sqrt(total[0])
    if lane == 0:
        steps[0] = steps[0] + 1
        taken = wp.float64(steps[0])
        factors[0] = wp.where(max_norm > 0.0 and norm > max_norm, max_norm / norm, 1.0)
        factors[1] = wp.float32(rate[0] / (wp.float64(1.0) - wp.pow(wp.static(wp.float64(BETA_1)), taken)))
        factors[2] = wp.float32(wp.float64(1.0) / (wp.float64(1.0) - wp.pow(wp.static(wp.float64(BETA_2)), taken)))


@wp.func
def ratio(mean: float, variance: float) -> float:
    """Return the direction of a step."""
    return mean / (wp.sqrt(variance) + EPSILON)


@kernel
def take_step(gradients: Vector, factors: Vector, means: Vector, variances: Vector, values: Vector) -> None:
    """Update a tile of the moments and of the parameters."""
    i = wp.tid()
    gradient = factors[0] * wp.tile_load(gradients, shape=TILE, offset=i * TILE)
    mean = wp.tile_load(means, shape=TILE, offset=i * TILE)
    variance = wp.tile_load(variances, shape=TILE, offset=i * TILE)
    value = wp.tile_load(values, shape=TILE, offset=i * TILE)
    mean = BETA_1 * mean + (1.0 - BETA_1) * gradient
    variance = BETA_2 * variance + (1.0 - BETA_2) * (gradient * gradient)
    wp.tile_store(means, mean, offset=i * TILE)
    wp.tile_store(variances, variance, offset=i * TILE)
    value = value - factors[1] * wp.tile_map(ratio, mean, factors[2] * variance)
    wp.tile_store(values, value, offset=i * TILE)


class Adam:
    """Adam (https://arxiv.org/abs/1412.6980) on parameters that it allocates, all zero, on the default device.

    Everything that a step needs is on the device, so that a step can be captured as a graph.

    Args:
        shapes: Shape of each parameter.
        parts: Parts of each gradient; a step adds them.
        rate: Learning rate, ``(1,)`` float64; each step reads it.

    Attributes:
        values: The parameters by name, float32.
        gradients: Their gradients, ``(parts, *shape)`` float32.
        exp_avg: Their first moments.
        exp_avg_sq: Their second moments.
        steps: Number of steps, ``(1,)`` int32.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], *, parts: int, rate: wp.array) -> None:
        places: dict[str, slice] = {}
        size = 0
        for name, shape in shapes.items():
            places[name] = slice(size, size + math.prod(shape))
            size = math.ceil(places[name].stop / ALIGNMENT) * ALIGNMENT
        self._values, self._means, self._variances, self._gradients = (wp.zeros(size, dtype=float) for _ in range(4))
        self._parts = wp.zeros((parts, size), dtype=float)
        self._squares, self._factors = wp.zeros(math.ceil(size / TILE), dtype=float), wp.zeros(3, dtype=float)
        self._rate = rate
        self.steps = wp.zeros(1, dtype=int)
        self.values, self.exp_avg, self.exp_avg_sq = (
            {name: flat[place].reshape(shapes[name]) for name, place in places.items()}
            for flat in (self._values, self._means, self._variances)
        )
        # with the strides of their parameters, between parts the whole size
        width = wp.types.type_size_in_bytes(float)
        self.gradients = {
            name: wp.array(
                ptr=self._parts.ptr + place.start * width,
                dtype=float,
                shape=(parts, *shapes[name]),
                strides=(size * width, *self.values[name].strides),
                device=self._parts.device,
            )
            for name, place in places.items()
        }

    def step(self, parts: int, max_norm: float) -> None:
        """Take a step.

        Args:
            parts: The step takes the sum of so many parts of each gradient, the first ones.
            max_norm: The gradients of all parameters together are scaled down to this norm; 0 for no limit.
        """
        device, blocks = self._values.device, self._squares.size
        options = {"device": device, "block_dim": BLOCK}
        wp.launch_tiled(add_parts, dim=blocks, inputs=[self._parts, parts, self._gradients, self._squares], **options)
        inputs = [self._squares, max_norm, self._rate, self.steps, self._factors]
        wp.launch_tiled(begin_step, dim=1, inputs=inputs, **options)
        inputs = [self._gradients, self._factors, self._means, self._variances, self._values]
        wp.launch_tiled(take_step, dim=blocks, inputs=inputs, **options)
