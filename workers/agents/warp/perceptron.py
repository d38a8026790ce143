"""Multi-layer perceptrons: tiled kernels of a layer and of its gradients.

A block of threads computes a tile of a product from tiles of its factors. It runs Warp's own code for that, in float32:
the alternative on a GPU, cuBLASDx, takes ten seconds to compile each of the three products.
"""

# Warp compiles kernels by its own types and rules.
# mypy: ignore-errors

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import warp as wp

from workers.agents.warp import kernels
from workers.agents.warp.kernels import BLOCK, Matrix, Scratch, Vector, count_parts, part_of

__all__ = ["Perceptron", "layer_shapes"]


class Tile(NamedTuple):
    """Sizes of tiles: ``(rows, columns)`` of a product, whose factors have `depth` columns and rows."""

    rows: int
    columns: int
    depth: int


def tile_of(on_host: bool, rows: int, columns: int) -> Tile:
    """Return the tile for a product of at most ``rows`` by ``columns`` elements.

    On a GPU, all products have the same tile, so that few kernels are compiled: each of the 256 threads has 4 x 4
    elements in registers. On a CPU, tiles that are no larger than the product were measured to be fastest.
    """
    return Tile(min(rows, 64), min(columns, 64), 16) if on_host else Tile(64, 64, 32)


# Activations, and the products of a gradient with their derivatives, which are functions of the activation `y`.


@wp.func
def tanh(x: float) -> float:
    """Return the tanh by an exponential that cannot overflow, within 2e-7 of `wp.tanh` and several times as fast."""
    decay = wp.exp(-2.0 * wp.abs(x))
    return wp.sign(x) * (1.0 - decay) / (1.0 + decay)


@wp.func
def tanh_backward(gradient: float, y: float) -> float:
    """Multiply a gradient by the derivative of tanh."""
    return gradient * (1.0 - y * y)


@wp.func
def relu(x: float) -> float:
    """Return `x` if it is positive, or not a number, else 0."""
    return wp.where(x < 0.0, 0.0, x)


@wp.func
def relu_backward(gradient: float, y: float) -> float:
    """Multiply a gradient by the derivative of `relu`."""
    return wp.where(y > 0.0, gradient, 0.0)


@wp.func
def elu(x: float) -> float:
    """Return `x` if it is positive, else its exponential minus 1."""
    return wp.where(x > 0.0, x, wp.exp(x) - 1.0)


@wp.func
def elu_backward(gradient: float, y: float) -> float:
    """Multiply a gradient by the derivative of `elu`."""
    return wp.where(y > 0.0, gradient, gradient * (y + 1.0))


ACTIVATIONS: dict[str, tuple[wp.Function, wp.Function]] = {
    "tanh": (tanh, tanh_backward),
    "relu": (relu, relu_backward),
    "elu": (elu, elu_backward),
}


# Kernels. Each is a module of its own, compiled when it is first needed, whose name depends on the tile: graphs of Warp
# 1.19 on a CPU confuse kernels of one name in one module.

OPTIONS: dict[str, Any] = {
    "enable_backward": False,
    "grid_stride": False,
    "module": "unique",
    "module_options": {"enable_mathdx_gemm": False},
}


@functools.cache
def forward_kernel(tile: Tile, activation: wp.Function) -> wp.Kernel:
    """Return the kernel of a layer's outputs, which are activated unless the layer is the head."""
    rows, columns, depth = tile

    @wp.kernel(**OPTIONS)
    def forward(inputs: Matrix, weight_t: Matrix, bias: Vector, is_head: bool, outputs: Matrix) -> None:
        i, j = wp.tid()
        product = wp.tile_zeros(shape=(rows, columns), dtype=float, storage="shared")
        for k in range((inputs.shape[1] + depth - 1) / depth):
            left = wp.tile_load(inputs, shape=(rows, depth), offset=(i * rows, k * depth), storage="shared")
            right = wp.tile_load(weight_t, shape=(depth, columns), offset=(k * depth, j * columns), storage="shared")
            wp.tile_matmul(left, right, product)
        shift = wp.tile_broadcast(wp.tile_load(bias, shape=columns, offset=j * columns), shape=(rows, columns))
        result = product + shift
        if is_head:
            wp.tile_store(outputs, result, offset=(i * rows, j * columns))
        else:
            wp.tile_store(outputs, wp.tile_map(wp.static(activation), result), offset=(i * rows, j * columns))

    return forward


@functools.cache
def input_gradient_kernel(tile: Tile, backward: wp.Function) -> wp.Kernel:
    """Return the kernel of the gradient of the layer below, before its activation; `inputs` are after it."""
    rows, columns, depth = tile

    @wp.kernel(**OPTIONS)
    def input_gradient(gradient: Matrix, weight: Matrix, inputs: Matrix, result: Matrix) -> None:
        i, j = wp.tid()
        product = wp.tile_zeros(shape=(rows, columns), dtype=float, storage="shared")
        for k in range((weight.shape[0] + depth - 1) / depth):
            left = wp.tile_load(gradient, shape=(rows, depth), offset=(i * rows, k * depth), storage="shared")
            right = wp.tile_load(weight, shape=(depth, columns), offset=(k * depth, j * columns), storage="shared")
            wp.tile_matmul(left, right, product)
        activated = wp.tile_load(inputs, shape=(rows, columns), offset=(i * rows, j * columns))
        wp.tile_store(result, wp.tile_map(wp.static(backward), product, activated), offset=(i * rows, j * columns))

    return input_gradient


@functools.cache
def weight_gradient_kernel(tile: Tile) -> wp.Kernel:
    """Return the kernel of the gradients of weight and bias, for each part of `part` rows; all parts are to be added.

    It needs no atomic additions, whose order would differ from run to run on a GPU.
    """
    rows, columns, depth = tile

    @wp.kernel(**OPTIONS)
    def weight_gradient(
        gradient: Matrix, inputs: Matrix, part: int, weights: wp.array3d[float], biases: Matrix
    ) -> None:
        p, i, j = wp.tid()
        first = p * part
        product = wp.tile_zeros(shape=(rows, columns), dtype=float, storage="shared")
        sums = wp.tile_zeros(shape=rows, dtype=float)
        for k in range((wp.min(part, inputs.shape[0] - first) + depth - 1) / depth):
            row = first + k * depth
            left = wp.tile_load(gradient, shape=(depth, rows), offset=(row, i * rows), storage="shared")
            right = wp.tile_load(inputs, shape=(depth, columns), offset=(row, j * columns), storage="shared")
            wp.tile_matmul(wp.tile_transpose(left), right, product)
            if j == 0:
                sums += wp.tile_reduce(wp.add, left, axis=0)
        wp.tile_store(weights[p], product, offset=(i * rows, j * columns))
        if j == 0:
            wp.tile_store(biases[p], sums, offset=i * rows)

    return weight_gradient


def layer_shapes(sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a perceptron's parameters, with the names of `Perceptron`.

    Args:
        sizes: Width of the inputs, of each hidden layer and of the outputs.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        shapes |= {f"{2 * index}.weight": (outputs, inputs), f"{2 * index}.bias": (outputs,)}
    return shapes


class Perceptron:
    """A multi-layer perceptron with a linear head.

    The next call on as many rows overwrites the array that a call returned, because a captured graph needs the same
    memory each time.

    Args:
        parameters: ``0.weight``, ``(outputs, inputs)`` float32, ``0.bias``, ``(outputs,)`` float32, ``2.weight`` and so
            on: odd numbers are the activations.
        gradients: Arrays for their gradients, ``(parts, *shape)`` float32, with `count_parts` of the largest batch.
        activation: Name of the hidden layers' activation.
    """

    def __init__(self, parameters: Mapping[str, wp.array], gradients: Mapping[str, wp.array], activation: str) -> None:
        indices = range(0, len(parameters), 2)
        self._layers = [(parameters[f"{index}.weight"], parameters[f"{index}.bias"]) for index in indices]
        self._gradients = [(gradients[f"{index}.weight"], gradients[f"{index}.bias"]) for index in indices]
        self._activation, self._derivative = ACTIVATIONS[activation]
        self._on_host = kernels.on_host(parameters["0.weight"].device)
        self._scratch = Scratch()

    def initialize(self, layers: Sequence[tuple[Any, Any]]) -> None:
        """Set the weight and the bias of each layer."""
        for own, given in zip(self._layers, layers, strict=True):
            for array, values in zip(own, given, strict=True):
                array.assign(values)

    def _outputs(self, index: int, rows: int) -> wp.array:
        """Return the array for a layer's outputs."""
        return self._scratch(f"outputs {index}", rows, self._layers[index][0].shape[0])

    def __call__(self, inputs: wp.array) -> wp.array:
        """Return the outputs, ``(rows, outputs)`` float32, for inputs ``(rows, inputs)``."""
        for index, (weight, bias) in enumerate(self._layers):
            outputs = self._outputs(index, inputs.shape[0])
            is_head = index == len(self._layers) - 1
            tile = tile_of(self._on_host, 64, outputs.shape[1])
            arguments = [inputs, weight.transpose(), bias, is_head, outputs]
            self._launch(forward_kernel(tile, self._activation), tile, outputs.shape, arguments)
            inputs = outputs
        return inputs

    def backward(self, inputs: wp.array, gradient: wp.array) -> None:
        """Write the gradients of all parameters; the last call on as many rows must have been with these inputs.

        Args:
            inputs: ``(rows, inputs)`` float32.
            gradient: Gradient of the outputs, ``(rows, outputs)`` float32.
        """
        rows = inputs.shape[0]
        device = inputs.device
        part, parts = part_of(device, rows), count_parts(device, rows)
        for index in reversed(range(len(self._layers))):
            weight, _ = self._layers[index]
            below = self._outputs(index - 1, rows) if index else inputs
            tile = tile_of(self._on_host, *weight.shape)
            shape = (parts, *weight.shape)
            arguments = [gradient, below, part, *self._gradients[index]]
            self._launch(weight_gradient_kernel(tile), tile, shape, arguments)
            if index:
                result = self._scratch(f"gradient {index}", *below.shape)
                tile = tile_of(self._on_host, 64, below.shape[1])
                arguments = [gradient, weight, below, result]
                self._launch(input_gradient_kernel(tile, self._derivative), tile, below.shape, arguments)
                gradient = result

    def _launch(self, kernel: wp.Kernel, tile: Tile, shape: tuple[int, ...], arguments: list[Any]) -> None:
        """Launch a block for each tile of the last two dimensions of a result."""
        *parts, rows, columns = shape
        dim = [*parts, math.ceil(rows / tile.rows), math.ceil(columns / tile.columns)]
        wp.launch_tiled(kernel, dim=dim, inputs=arguments, device=arguments[0].device, block_dim=BLOCK)
