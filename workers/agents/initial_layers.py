"""Initial weights of a perceptron, independent of the framework."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["initial_layers"]

NumpyArray = npt.NDArray[Any]


def initial_layers(
    sizes: tuple[int, ...], head_gain: float, generator: np.random.Generator
) -> list[tuple[NumpyArray, NumpyArray]]:
    """Return the initial weights ``(outputs, inputs)`` and biases ``(outputs,)`` of each layer, float32.

    Weights are orthogonal (https://arxiv.org/abs/1312.6120) with gain sqrt(2) in hidden layers. Biases are zero.

    Args:
        sizes: Width of the inputs, of each hidden layer and of the outputs.
        head_gain: Gain of the last layer.
        generator: Generator of the random numbers.
    """
    layers = []
    for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        gain = head_gain if index == len(sizes) - 2 else math.sqrt(2.0)
        q, r = np.linalg.qr(generator.standard_normal((max(inputs, outputs), min(inputs, outputs))))
        q *= gain * np.sign(np.diag(r))  # the signs make the distribution uniform
        weight = q if outputs >= inputs else q.T
        layers.append((weight.astype(np.float32, order="C"), np.zeros(outputs, np.float32)))
    return layers
