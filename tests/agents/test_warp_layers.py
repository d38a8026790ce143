"""Warp's perceptrons and Adam against NumPy's float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import warp as wp

from tests.support.ppo import U
from tests.support.ppo_reference import backward, forward
from workers.agents.warp import kernels
from workers.agents.warp.adam import TILE, Adam
from workers.agents.warp.perceptron import Perceptron, layer_shapes

SIZES = (7, 66, 3)  # narrower and wider than a tile


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu"])
@pytest.mark.parametrize("on_host", [True, False], ids=["host", "device"])
@pytest.mark.parametrize("rows", [1, 150])
def test_perceptron(activation, on_host, rows, monkeypatch):
    monkeypatch.setattr(kernels, "on_host", lambda device: on_host)
    monkeypatch.setattr(kernels, "PART", 64)
    rng, shapes = np.random.default_rng(0), layer_shapes(SIZES)
    parts = kernels.count_parts("cpu", rows)
    assert parts == (1 if on_host or rows == 1 else 3)
    values = {name: rng.normal(0.0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    parameters = {name: wp.array(value) for name, value in values.items()}
    gradients = {name: wp.full((parts, *shape), np.nan, dtype=float) for name, shape in shapes.items()}
    network = Perceptron(parameters, gradients, activation)
    inputs, by_output = (rng.normal(size=(rows, width)).astype(np.float32) for width in (SIZES[0], SIZES[-1]))
    batch = wp.array(inputs)
    outputs = network(batch)
    network.backward(batch, wp.array(by_output))
    weights: Any = {f"net.{name}": value.astype(np.float64) for name, value in values.items()}
    layers = forward(weights, "net", activation, inputs.astype(np.float64))
    limit = 4 * sum(SIZES) * U
    np.testing.assert_allclose(outputs.numpy(), layers[-1], rtol=0, atol=limit * np.abs(layers[-1]).max())
    expected = backward(weights, "net", activation, layers, by_output.astype(np.float64))
    for name, array in gradients.items():
        right = expected[f"net.{name}"]
        np.testing.assert_allclose(array.numpy().sum(0), right, atol=(limit + rows * U) * 3 * np.abs(right).max())


def test_tanh_does_not_overflow():
    values = np.concatenate([np.linspace(-12.0, 12.0, 999), [-np.inf, -1e30, 0.0, 1e30, np.inf]]).astype(np.float32)
    ones, zeros = (wp.array([[value]], dtype=float) for value in (1.0, 0.0))
    parameters = {f"{2 * index}.{name}": ones if name == "weight" else zeros for index in range(2) for name in PARTS}
    parameters |= {"0.bias": wp.zeros(1, dtype=float), "2.bias": wp.zeros(1, dtype=float)}
    gradients = {name: wp.zeros((1, *array.shape), dtype=float) for name, array in parameters.items()}
    outputs = Perceptron(parameters, gradients, "tanh")(wp.array(values[:, None])).numpy()[:, 0]
    np.testing.assert_allclose(outputs, np.tanh(values.astype(np.float64)), atol=2e-7)


PARTS = ("weight", "bias")


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e6])
def test_adam(max_norm):
    shapes: dict[str, tuple[int, ...]] = {"first": (3, 5), "second": (7,), "large": (TILE + 9, 2)}
    rng, rate, parts = np.random.default_rng(0), wp.array([0.01], dtype=wp.float64), 3
    adam = Adam(shapes, parts=parts, rate=rate)
    values = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    means, variances = ({name: np.zeros(shape) for name, shape in shapes.items()} for _ in range(2))
    for name, value in values.items():
        adam.values[name].assign(value.astype(np.float32))
    for step in range(1, 6):
        rate.fill_(0.01 / step)
        given = {name: rng.normal(size=(parts, *shape)).astype(np.float32) for name, shape in shapes.items()}
        for name, gradient in given.items():
            adam.gradients[name].assign(gradient)
        count = parts - step % 2  # the last part is not always there
        adam.step(count, max_norm)
        gradients = {name: gradient[:count].astype(np.float64).sum(0) for name, gradient in given.items()}
        norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
        for name, gradient in gradients.items():
            scaled = gradient * (min(1.0, max_norm / norm) if max_norm else 1.0)
            means[name] = 0.9 * means[name] + 0.1 * scaled
            variances[name] = 0.999 * variances[name] + 0.001 * scaled**2
            direction = (means[name] / (1 - 0.9**step)) / (np.sqrt(variances[name] / (1 - 0.999**step)) + 1e-8)
            values[name] = values[name] - 0.01 / step * direction
    assert adam.steps.numpy().tolist() == [5]
    for name in shapes:
        np.testing.assert_allclose(adam.values[name].numpy(), values[name], atol=1e-5)
        np.testing.assert_allclose(adam.exp_avg[name].numpy(), means[name], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(adam.exp_avg_sq[name].numpy(), variances[name], rtol=1e-4, atol=1e-9)
