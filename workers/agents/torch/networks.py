"""Components of the PyTorch PPO agent: perceptrons, policies and normalisers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["CategoricalPolicy", "GaussianPolicy", "Normalizer", "perceptron"]


IMPOSSIBLE = -1e30
"""Logit of a category of probability 0. With -inf or the lowest float, the entropy or its gradient could be NaN."""


class Tanh(nn.Module):
    """Tanh as 2 sigmoid(2x) - 1, within 2e-7 of `torch.tanh` and several times as fast on a CPU."""

    def forward(self, values: Tensor) -> Tensor:
        """Return the tanh of `values`, which are overwritten."""
        return values.mul_(2.0).sigmoid_().mul(2.0).sub_(1.0)


ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": Tanh, "relu": nn.ReLU, "elu": nn.ELU}


def perceptron(sizes: tuple[int, ...], activation: str, head_gain: float) -> nn.Sequential:
    """Create a multi-layer perceptron with a linear head, zero biases and orthogonal weights of gain sqrt(2).

    Args:
        sizes: Width of the inputs, of each hidden layer and of the outputs.
        activation: Name of the hidden layers' activation.
        head_gain: Gain of the head's weights.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), ACTIVATIONS[activation]()]
    layers.pop()
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, head_gain if layer is layers[-1] else math.sqrt(2.0))
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


class CategoricalPolicy(nn.Module):
    """Independent categorical components; actions are ``(rows, components)`` int64.

    Components with fewer categories than the largest one are padded with categories of probability 0, so that the
    number of array operations does not depend on the number of components.

    Args:
        network: Maps observations ``(rows, size)`` to the logits of all components, one component after the other.
        components: Actions of each component, in the order of the logits.
    """

    # derived from the action space, so not part of the state
    starts: Tensor  # the first action of each component
    shifts: Tensor  # offsets from the columns of `head` to the actions of their component
    columns: Tensor  # columns of `head` that are not padding

    def __init__(self, network: nn.Module, components: Sequence[range]) -> None:
        super().__init__()
        self.network = network
        sizes = [len(actions) for actions in components]
        self.count, self.width = len(sizes), max(sizes)
        self.noise_width = self.count * self.width
        starts = torch.tensor([actions.start for actions in components])
        first = self.width * torch.arange(self.count)
        self.register_buffer("starts", starts, persistent=False)
        self.register_buffer("shifts", starts - first, persistent=False)
        columns = torch.cat([torch.arange(size) + start for size, start in zip(sizes, first, strict=True)])
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, observations: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """Return the log-probability of each category, ``(rows, components * categories)``: the other methods' `head`.

        Args:
            observations: ``(rows, size)``.
            action_mask: Legal categories, of the logits' shape, at least one in each component; None if all are legal.
        """
        logits: Tensor = self.network(observations)
        if action_mask is not None:
            logits = logits.masked_fill(~action_mask, IMPOSSIBLE)
        if self.count == 1:  # needs no padding here and no sum in `log_prob`
            return torch.log_softmax(logits, 1)
        padded = logits.new_full((len(logits), self.count * self.width), IMPOSSIBLE)
        padded = padded.index_copy(1, self.columns, logits)
        return torch.log_softmax(padded.view(-1, self.count, self.width), 2).flatten(1)

    def draw(self, noise: Tensor) -> Tensor:
        """Fill and return the noise of `sample`, ``(rows, noise_width)``."""
        return noise.exponential_()

    def sample(self, head: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return sampled and most likely actions; samples use Gumbel noise, minus the log of an exponential draw."""
        return self._argmax(head - noise.log()), self._argmax(head)

    def log_prob(self, head: Tensor, actions: Tensor) -> Tensor:
        """Return the log-probability of the actions, ``(rows, 1)``."""
        log_probs = head.gather(1, actions - self.shifts)
        return log_probs if self.count == 1 else log_probs.sum(1, keepdim=True)

    def entropy(self, head: Tensor) -> Tensor:
        """Return the mean entropy, a scalar."""
        return -(head.exp() * head).sum(1).mean()

    def _argmax(self, scores: Tensor) -> Tensor:
        """Return the action with the largest score in each component."""
        return scores.view(-1, self.count, self.width).argmax(2) + self.starts


class GaussianPolicy(nn.Module):
    """Independent normal distributions with standard deviations that do not depend on the observation.

    Args:
        network: Maps observations ``(rows, size)`` to means ``(rows, width)``.
        width: Width of the actions.
        initial_log_std: Initial logarithm of the standard deviation.
    """

    def __init__(self, network: nn.Module, width: int, initial_log_std: float) -> None:
        super().__init__()
        self.network = network
        self.noise_width = width
        self.log_std = nn.Parameter(torch.full((width,), float(initial_log_std)))

    def forward(self, observations: Tensor) -> Tensor:
        """Return the mean actions, ``(rows, width)``: the other methods' `head`."""
        mean: Tensor = self.network(observations)
        return mean

    def draw(self, noise: Tensor) -> Tensor:
        """Fill and return the noise of `sample`, ``(rows, noise_width)``."""
        return noise.normal_()

    def sample(self, head: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return sampled and most likely actions."""
        return head + self.log_std.exp() * noise, head

    def log_prob(self, head: Tensor, actions: Tensor) -> Tensor:
        """Return the log-probability density of the actions, ``(rows, 1)``."""
        scores = (actions - head) * torch.exp(-self.log_std)
        constant = self.log_std.sum() + 0.5 * math.log(2.0 * math.pi) * head.shape[1]
        return -0.5 * scores.square().sum(1, keepdim=True) - constant

    def entropy(self, head: Tensor) -> Tensor:
        """Return the mean entropy, a scalar."""
        return (self.log_std + 0.5 * math.log(2.0 * math.pi * math.e)).sum()


class Normalizer(nn.Module):
    """Running mean and variance of columns, computed in float64 and applied in float32.

    Batches are merged with the parallel update of Chan et al. (Technical Report STAN-CS-79-773, 1979). Before the first
    batch, the mean is 0 and the variance 1.

    Args:
        width: Number of columns.
        limit: Normalised values are clipped to ``[-limit, limit]``.
    """

    EPSILON = 1e-8
    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, width: int, limit: float = math.inf) -> None:
        super().__init__()
        self.limit = limit
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(width, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def update(self, batch: Tensor) -> None:
        """Merge the statistics of a batch ``(rows, width)``."""
        variance, mean = torch.var_mean(batch.double(), 0, correction=0)
        self.count += len(batch)
        weight = len(batch) / self.count
        self.variance.lerp_(variance, weight).add_(weight * (1.0 - weight) * (mean - self.mean).square())
        self.mean.lerp_(mean, weight)

    def forward(self, values: Tensor) -> Tensor:
        """Return the normalised values, ``(rows, width)`` float32."""
        return ((values - self.mean.float()) / self._std()).clamp(-self.limit, self.limit)

    def inverse(self, values: Tensor) -> Tensor:
        """Undo the normalisation of `values`, except for the clipping."""
        return values * self._std() + self.mean.float()

    def _std(self) -> Tensor:
        return (self.variance + self.EPSILON).sqrt().float()
