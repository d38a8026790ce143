"""Components of the Warp PPO agent: perceptrons, policies and normalisers.

As in warp-nn, the next call of a module on as many rows overwrites the arrays it returned, because a captured graph
needs the same memory each time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import warp as wp
from warp_nn import nn
from warp_nn.modules._common import create_unary_kernels
from warp_nn.utils import kernel_config

from workers.agents.warp import kernels
from workers.agents.warp.kernels import launch

__all__ = ["CategoricalPolicy", "GaussianPolicy", "Normalizer", "Scratch", "initialize", "moments", "perceptron"]

TILE_LIMIT = 64


class Scratch:
    """A cache of result arrays on the default device, one for each name and shape."""

    def __init__(self) -> None:
        self._device = wp.get_device().alias
        self._arrays: dict[Any, wp.array] = {}

    def __call__(self, name: str, *shape: int, dtype: Any = wp.float32, requires_grad: bool = False) -> wp.array:
        """Return the array of this name and shape, with the values last written to it."""
        key = (name, shape)
        if key not in self._arrays:
            self._arrays[key] = wp.zeros(shape, dtype=dtype, device=self._device, requires_grad=requires_grad)
        return self._arrays[key]

    def zeros_for_sums(self, *names: str, size: int) -> list[wp.array]:
        """Return differentiable arrays of zeros for kernels that add to them."""
        arrays = [self(name, size, requires_grad=True) for name in names]
        for array in arrays:
            array.zero_()
        return arrays


# Networks.


class Linear(nn.Linear):
    """An uninitialised linear layer, with a kernel that suits its width.

    The kernel is in a separate module. In warp-nn's module, kernels of different widths have the same name: graphs of
    Warp 1.19 on a CPU confuse them, and each new width would recompile all of them.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        # on a CPU, a tile as wide as the layer was measured to be up to four times as fast as warp-nn's default
        tile = (TILE_LIMIT, min(outputs, TILE_LIMIT)) if wp.get_device().is_cpu else None
        with kernel_config(tile_2d=tile):
            super().__init__(inputs, outputs, initialize_parameters=False)
        self._kernel: Any = wp.kernel(self._kernel.func, grid_stride=False, module="unique")


@wp.func
def tanh(x: Any) -> Any:
    """Return the tanh by an exponential that cannot overflow, within 2e-7 of `wp.tanh` and several times as fast."""
    decay = wp.exp(x.dtype(-2.0) * wp.abs(x))
    return wp.sign(x) * (x.dtype(1.0) - decay) / (x.dtype(1.0) + decay)


class Tanh(nn.Tanh):
    """Tanh layer that uses the function `tanh`."""

    def __init__(self) -> None:
        super().__init__()
        self._kernels = create_unary_kernels(config=self._config, function=tanh)


ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": Tanh, "relu": nn.ReLU, "elu": nn.ELU}


def perceptron(sizes: tuple[int, ...], activation: str) -> nn.Sequential:
    """Create an uninitialised multi-layer perceptron with a linear head on the default device.

    Args:
        sizes: Width of the inputs, of each hidden layer and of the outputs.
        activation: Name of the hidden layers' activation.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [Linear(inputs, outputs), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def initialize(network: nn.Sequential, layers: Sequence[tuple[Any, Any]]) -> None:
    """Set the weights and biases of each layer of a perceptron."""
    linear = (layer for layer in network.modules() if isinstance(layer, Linear))
    for layer, (weight, bias) in zip(linear, layers, strict=True):
        layer.weight.data.assign(weight)
        layer.bias.data.assign(bias[:, None])


# Policies.


class CategoricalPolicy:
    """Independent categorical components; actions are ``(rows, components)`` int64.

    Args:
        network: Maps observations ``(rows, size)`` to the logits of all components, one component after the other.
        components: Actions of each component, in the order of the logits.
    """

    def __init__(self, network: nn.Sequential, components: Sequence[range]) -> None:
        self.network = network
        firsts = itertools.accumulate(map(len, components), initial=0)
        self._firsts = wp.array(list(firsts), dtype=wp.int32)
        self._starts = wp.array([actions.start for actions in components], dtype=wp.int64)
        self._scratch = Scratch()

    def sample(self, head: wp.array, noise: wp.array, legal: wp.array = None) -> tuple[wp.array, wp.array]:
        """Return sampled and most likely actions; `noise` holds a seed and the number of draws so far.

        `legal` are bools of the shape of `head`, at least one True in each component; None if all are legal.
        """
        shape = (head.shape[0], self._starts.size)
        actions, most_likely = (self._scratch(name, *shape, dtype=wp.int64) for name in ("actions", "most likely"))
        inputs = [head, legal, self._firsts, self._starts, noise]
        launch(kernels.sample_categorical, shape, inputs, [actions, most_likely])
        launch(kernels.advance, 1, [head.size], [noise])
        return actions, most_likely

    def log_prob(self, head: wp.array, rows: wp.array, actions: wp.array, legal: wp.array) -> list[wp.array]:
        """Return log-probability and entropy, both ``(rows,)``, of some rows of `actions` and their masks `legal`."""
        outputs = self._scratch.zeros_for_sums("log_prob", "entropy", size=head.shape[0])
        inputs = [head, self._firsts, self._starts, actions, legal, rows]
        launch(kernels.log_prob_categorical, (head.shape[0], self._starts.size), inputs, outputs)
        return outputs


class GaussianPolicy:
    """Independent normal distributions with standard deviations that do not depend on the observation.

    Args:
        network: Maps observations ``(rows, size)`` to means ``(rows, width)``.
        log_std: Logarithm of the standard deviation, ``(width,)``, a parameter.
    """

    def __init__(self, network: nn.Sequential, log_std: wp.array) -> None:
        self.network = network
        self.log_std = log_std
        self._scratch = Scratch()

    def sample(self, head: wp.array, noise: wp.array) -> tuple[wp.array, wp.array]:
        """Return sampled and most likely actions; `noise` holds a seed and the number of draws so far."""
        actions = self._scratch("actions", *head.shape)
        launch(kernels.sample_gaussian, head.shape, [head, self.log_std, noise], [actions])
        launch(kernels.advance, 1, [head.size], [noise])
        return actions, head

    def log_prob(self, head: wp.array, rows: wp.array, actions: wp.array) -> list[wp.array]:
        """Return log-probability density and entropy, both ``(rows,)``, of some rows of `actions`."""
        outputs = self._scratch.zeros_for_sums("log_prob", "entropy", size=head.shape[0])
        launch(kernels.log_prob_gaussian, head.shape, [head, self.log_std, actions, rows], outputs)
        return outputs


# Normalisers.


def moments(batch: wp.array, rows: wp.array) -> tuple[wp.array, wp.array]:
    """Return mean and population variance of each column over some rows of a batch, ``(width,)`` float64."""
    mean = wp.zeros(batch.shape[1], dtype=wp.float64, device=batch.device)
    variance, shape = wp.zeros_like(mean), (rows.size, batch.shape[1])
    launch(kernels.add_means, shape, [batch, rows], [mean])
    launch(kernels.add_variances, shape, [batch, rows, mean], [variance])
    return mean, variance


class Normalizer:
    """Running mean and variance of columns, computed in float64 and applied in float32.

    Batches are merged with the parallel update of Chan et al. (Technical Report STAN-CS-79-773, 1979). Before the first
    batch, the mean is 0 and the variance 1.

    Args:
        width: Number of columns.
        limit: Normalised values are clipped to ``[-limit, limit]``.
    """

    def __init__(self, width: int, limit: float = math.inf) -> None:
        self.limit = limit
        self.mean = wp.zeros(width, dtype=wp.float64)
        self.variance = wp.ones(width, dtype=wp.float64)
        self.count = wp.zeros(1, dtype=wp.float64)
        self._scratch = Scratch()

    def update(self, batch: wp.array, rows: wp.array) -> None:
        """Merge the statistics of some rows of a batch ``(samples, width)``."""
        statistics = [self.mean, self.variance, self.count]
        launch(kernels.merge_statistics, 1, [rows.size, *moments(batch, rows)], statistics)

    def __call__(self, values: wp.array) -> wp.array:
        """Return the normalised values, ``(rows, width)`` float32."""
        normal = self._scratch("normal", *values.shape)
        launch(kernels.normalize, values.shape, [values, self.mean, self.variance, self.limit], [normal])
        return normal

    def inverse(self, normal: wp.array) -> wp.array:
        """Undo the normalisation of `normal`, except for the clipping."""
        values = self._scratch("values", *normal.shape)
        launch(kernels.denormalize, normal.shape, [normal, self.mean, self.variance], [values])
        return values
