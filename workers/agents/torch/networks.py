"""What the PPO agent for PyTorch is made of: parameters, perceptrons, action distributions, Adam, normalisation.

Gradients are written out rather than recorded by autograd, and go to preallocated buffers: with networks of this size
on a CPU, recording and allocating would cost as much as the arithmetic. The tests hold them against autograd.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from workers.errors import AgentError

__all__ = ["MLP", "Adam", "CategoricalPolicy", "GaussianPolicy", "Normalizer", "Parameters", "copy_tensors"]

_ALIGNMENT = 16  # float32 elements: each parameter starts on a cache line, whatever the sizes of the others
_BACKWARD: dict[str, Any] = {  # gradient <- gradient * derivative, from the activation's output
    "tanh": lambda grad, output: torch.ops.aten.tanh_backward.grad_input(grad, output, grad_input=grad),
    "relu": lambda grad, output: torch.ops.aten.threshold_backward.grad_input(grad, output, 0, grad_input=grad),
    "elu": lambda grad, output: torch.ops.aten.elu_backward.grad_input(grad, 1, 1, 1, True, output, grad_input=grad),
}


def _tanh_(values: Tensor) -> Tensor:
    """Tanh in place as 2 sigmoid(2x) - 1: within 2e-7 of `torch.tanh`, which takes four times as long on a CPU."""
    return values.mul_(2.0).sigmoid_().mul_(2.0).sub_(1.0)


_FORWARD: dict[str, Any] = {"tanh": _tanh_, "relu": torch.relu_, "elu": torch.nn.functional.elu_}


def copy_tensors(name: str, source: Mapping[str, Any], target: Mapping[str, Tensor]) -> None:
    """Copy tensors by name into existing ones.

    Args:
        name: What they belong to, used in errors.
        source: Tensors to copy.
        target: Tensors that are overwritten.

    Raises:
        AgentError: Names or shapes differ; nothing has been copied then.
    """
    given = {key: tuple(value.shape) for key, value in source.items()}
    expected = {key: tuple(value.shape) for key, value in target.items()}
    if given != expected:
        raise AgentError(f"the state of {name} does not fit this agent: expected {expected}, got {given}")
    for key, value in target.items():
        value.copy_(source[key])


class Parameters:
    """Named float32 tensors, and their gradients, as views of two flat buffers: optimised and clipped by few calls.

    Args:
        shapes: Shape of each parameter by name.
        device: Where they live.

    Attributes:
        flat: All parameters, with zeros between them.
        flat_grad: Their gradients.
        values: Views of `flat` by name.
        grads: Views of `flat_grad` by name.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], device: torch.device) -> None:
        self.shapes = dict(shapes)
        size = sum(self._padded(shape) for shape in self.shapes.values())
        self.flat = torch.zeros(size, device=device)
        self.flat_grad = torch.zeros(size, device=device)
        self.values = self.split(self.flat)
        self.grads = self.split(self.flat_grad)

    @staticmethod
    def _padded(shape: tuple[int, ...]) -> int:
        return -(-math.prod(shape) // _ALIGNMENT) * _ALIGNMENT

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Views by name of a buffer laid out like `flat`."""
        views, start = {}, 0
        for name, shape in self.shapes.items():
            views[name] = flat[start : start + math.prod(shape)].view(shape)
            start += self._padded(shape)
        return views

    def clip_grad_norm_(self, max_norm: float) -> None:
        """Scale all gradients so that their norm together is at most `max_norm`, as `clip_grad_norm_` of torch does."""
        norm = torch.linalg.vector_norm(self.flat_grad)
        self.flat_grad.mul_((max_norm / (norm + 1e-6)).clamp_(max=1.0))


class MLP:
    """A multi-layer perceptron with a linear head, whose backward pass is written out.

    Args:
        name: Prefix of its parameters' names.
        sizes: Width of the inputs, of each hidden layer and of the outputs.
        activation: ``"tanh"``, ``"relu"`` or ``"elu"``.
        parameters: Where its parameters are found.
    """

    def __init__(self, name: str, sizes: tuple[int, ...], activation: str, parameters: Parameters) -> None:
        layers = range(len(sizes) - 1)
        self.weights = [parameters.values[f"{name}.{k}.weight"] for k in layers]
        self.biases = [parameters.values[f"{name}.{k}.bias"] for k in layers]
        self.weight_grads = [parameters.grads[f"{name}.{k}.weight"] for k in layers]
        self.bias_grads = [parameters.grads[f"{name}.{k}.bias"] for k in layers]
        self._transposed = [weight.t() for weight in self.weights]
        self._activate = _FORWARD[activation]
        self._activate_backward = _BACKWARD[activation]
        self._workspaces: dict[int, tuple[list[Tensor], list[Tensor]]] = {}

    @staticmethod
    def shapes(name: str, sizes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters by name, weights as ``(outputs, inputs)``."""
        shapes: dict[str, tuple[int, ...]] = {}
        for k in range(len(sizes) - 1):
            shapes[f"{name}.{k}.weight"] = (sizes[k + 1], sizes[k])
            shapes[f"{name}.{k}.bias"] = (sizes[k + 1],)
        return shapes

    def initialize(self, head_gain: float) -> None:
        """Draw orthogonal weights, of gain sqrt(2) in the hidden layers; zero the biases."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            torch.nn.init.orthogonal_(weight, head_gain if weight is self.weights[-1] else math.sqrt(2.0))
            bias.zero_()

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs ``(rows, outputs)``, a fresh tensor, of inputs ``(rows, inputs)``, contiguous float32."""
        hidden, _ = self._workspace(inputs.shape[0])
        for k, output in enumerate(hidden):
            torch.addmm(self.biases[k], inputs, self._transposed[k], out=output)
            self._activate(output)
            inputs = output
        return torch.addmm(self.biases[-1], inputs, self._transposed[-1])

    def backward(self, inputs: Tensor, output_grad: Tensor) -> None:
        """Overwrite the parameters' gradients.

        Args:
            inputs: Those of the last `forward` of as many rows.
            output_grad: Gradient of the loss with respect to its outputs.
        """
        hidden, hidden_grads = self._workspace(inputs.shape[0])
        grad = output_grad
        for k in range(len(hidden), -1, -1):
            torch.mm(grad.t(), hidden[k - 1] if k else inputs, out=self.weight_grads[k])
            torch.sum(grad, 0, out=self.bias_grads[k])
            if k:
                grad = torch.mm(grad, self.weights[k], out=hidden_grads[k - 1])
                self._activate_backward(grad, hidden[k - 1])

    def _workspace(self, rows: int) -> tuple[list[Tensor], list[Tensor]]:
        """Hidden activations and their gradients; there are few numbers of rows, so each has its own."""
        if rows not in self._workspaces:
            outputs = [torch.empty(rows, bias.shape[0], device=bias.device) for bias in self.biases[:-1]]
            self._workspaces[rows] = (outputs, [torch.empty_like(output) for output in outputs])
        return self._workspaces[rows]


class Policy(Protocol):
    """A distribution over actions, given what the policy's network returned (its head)."""

    def sample(self, head: Tensor) -> tuple[Tensor, Tensor]:
        """Sampled and most likely actions, ``(rows, size)``, with one draw from the global generator."""

    def evaluate(self, head: Tensor, actions: Tensor) -> Tensor:
        """Log-probability of the actions, ``(rows, 1)``. The gradients refer to the last call."""

    def entropy(self) -> Tensor:
        """Mean entropy, a scalar, of the last `evaluate`."""

    def backward(self, log_prob_grad: Tensor, entropy_grad: float) -> Tensor:
        """Gradient with respect to the head, ``(rows, head)``; that of own parameters is overwritten.

        Args:
            log_prob_grad: Gradient of the loss with respect to the log-probabilities, ``(rows, 1)``.
            entropy_grad: Gradient of the loss with respect to the mean entropy.
        """


class CategoricalPolicy:
    """Categories by their logits; actions are ``(rows, 1)`` int64, counted from 0."""

    def __init__(self) -> None:
        self._actions = self._log_probs = self._probs = torch.empty(0)

    def sample(self, head: Tensor) -> tuple[Tensor, Tensor]:
        """See `Policy`. The logits' argmax under Gumbel noise, which is minus the log of an exponential draw."""
        noise = torch.empty_like(head).exponential_().log_()
        return torch.argmax(head - noise, 1, keepdim=True), torch.argmax(head, 1, keepdim=True)

    def evaluate(self, head: Tensor, actions: Tensor) -> Tensor:
        """See `Policy`."""
        self._actions = actions
        self._log_probs = torch.log_softmax(head, 1)
        self._probs = self._log_probs.exp()
        return self._log_probs.gather(1, actions)

    def entropy(self) -> Tensor:
        """See `Policy`."""
        return -(self._probs * self._log_probs).sum() / self._probs.shape[0]

    def backward(self, log_prob_grad: Tensor, entropy_grad: float) -> Tensor:
        """See `Policy`. d log p(a) / d logits = onehot(a) - p; dH / d logits = -p (log p + H)."""
        grad = torch.mul(self._probs, -log_prob_grad).scatter_add_(1, self._actions, log_prob_grad)
        if entropy_grad:
            entropy = -(self._probs * self._log_probs).sum(1, keepdim=True)
            grad.addcmul_(self._probs, self._log_probs + entropy, value=-entropy_grad / grad.shape[0])
        return grad


class GaussianPolicy:
    """Independent normal distributions; the head is the mean, actions are ``(rows, size)`` float32.

    Args:
        log_std: Logarithm of the standard deviation, ``(size,)``, whatever the observation.
        log_std_grad: Where its gradient goes.
    """

    def __init__(self, log_std: Tensor, log_std_grad: Tensor) -> None:
        self.log_std = log_std
        self._log_std_grad = log_std_grad
        self._scores = self._inverse_std = torch.empty(0)

    def sample(self, head: Tensor) -> tuple[Tensor, Tensor]:
        """See `Policy`."""
        return torch.addcmul(head, torch.randn_like(head), self.log_std.exp()), head

    def evaluate(self, head: Tensor, actions: Tensor) -> Tensor:
        """See `Policy`."""
        self._inverse_std = torch.exp(-self.log_std)
        self._scores = (actions - head).mul_(self._inverse_std)
        constant = self.log_std.sum() + 0.5 * math.log(2.0 * math.pi) * head.shape[1]
        return self._scores.square().sum(1, keepdim=True).mul_(-0.5).sub_(constant)

    def entropy(self) -> Tensor:
        """See `Policy`."""
        return (self.log_std + 0.5 * math.log(2.0 * math.pi * math.e)).sum()

    def backward(self, log_prob_grad: Tensor, entropy_grad: float) -> Tensor:
        """See `Policy`. With z = (a - mean) / std: d log p / d mean = z / std, d log p / d log std = z^2 - 1."""
        torch.sum(self._scores.square().sub_(1.0).mul_(log_prob_grad), 0, out=self._log_std_grad)
        self._log_std_grad.add_(entropy_grad)
        return (self._scores * self._inverse_std).mul_(log_prob_grad)


class Adam:
    """Adam (https://arxiv.org/abs/1412.6980) on one flat buffer, as `torch.optim.Adam` computes it.

    Args:
        parameters: What is optimised.
    """

    BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self._first_moment = torch.zeros_like(parameters.flat)
        self._second_moment = torch.zeros_like(parameters.flat)
        self._denominator = torch.zeros_like(parameters.flat)
        self.steps = 0

    def step(self, learning_rate: float) -> None:
        """Apply the gradients once."""
        self.steps += 1
        grad = self._parameters.flat_grad
        self._first_moment.lerp_(grad, 1.0 - self.BETA1)
        self._second_moment.mul_(self.BETA2).addcmul_(grad, grad, value=1.0 - self.BETA2)
        torch.sqrt(self._second_moment, out=self._denominator)
        self._denominator.mul_(1.0 / math.sqrt(1.0 - self.BETA2**self.steps)).add_(self.EPSILON)
        step_size = learning_rate / (1.0 - self.BETA1**self.steps)
        self._parameters.flat.addcdiv_(self._first_moment, self._denominator, value=-step_size)

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Views of the first and second moment estimates, by the parameters' names."""
        split = self._parameters.split
        return {"first_moment": split(self._first_moment), "second_moment": split(self._second_moment)}


class Normalizer:
    """Running mean and variance of columns in float64, applied in float32.

    Batches are merged by the parallel update of Chan et al. (Technical Report STAN-CS-79-773, 1979). Before the first
    batch the mean is 0 and the variance 1.

    Args:
        width: Number of columns.
        device: Where the statistics live.
        limit: Normalised values are limited to ``[-limit, limit]``; None for no limit.
    """

    EPSILON = 1e-8

    def __init__(self, width: int, device: torch.device, limit: float | None = None) -> None:
        self.mean = torch.zeros(width, dtype=torch.float64, device=device)
        self.variance = torch.ones(width, dtype=torch.float64, device=device)
        self.count = 0
        self._limit = limit
        self.refresh()

    def refresh(self) -> None:
        """Make what is applied from the statistics."""
        std = torch.sqrt(self.variance + self.EPSILON)
        self._mean = self.mean.float()
        self._std = std.float()
        self._inverse_std = (1.0 / std).float()

    def update(self, batch: Tensor) -> None:
        """Merge the statistics of a batch ``(rows, width)``."""
        batch = batch.double()
        rows = batch.shape[0]
        variance, mean = torch.var_mean(batch, 0, correction=0)
        weight = rows / (self.count + rows)
        delta = mean - self.mean
        self.variance.mul_(1.0 - weight).add_(variance, alpha=weight)
        self.variance.addcmul_(delta, delta, value=weight * (1.0 - weight))
        self.mean.add_(delta, alpha=weight)
        self.count += rows
        self.refresh()

    def normalize_(self, values: Tensor) -> Tensor:
        """Normalise ``(rows, width)`` float32 values in place."""
        values.sub_(self._mean).mul_(self._inverse_std)
        return values if self._limit is None else values.clamp_(-self._limit, self._limit)

    def denormalize_(self, values: Tensor) -> Tensor:
        """The inverse of `normalize_`, but for the limit."""
        return values.mul_(self._std).add_(self._mean)
