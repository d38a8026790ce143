"""Adam in PyTorch, as static tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

__all__ = ["Adam"]

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Torch's names of Adam's moments."""


class Adam:
    """The optimizer Adam (https://arxiv.org/abs/1412.6980) with torch's fused kernels.

    A step can be captured as a CUDA graph. ``torch.optim.Adam`` would import torch's compiler, which takes as long as
    importing torch itself.

    Attributes:
        parameters: The parameters.
        rate: The learning rate, on the device.
    """

    def __init__(self, parameters: Mapping[str, Tensor], device: torch.device) -> None:
        """Start at step 0.

        Args:
            parameters: The parameters by name.
            device: Their device.
        """
        self.parameters = list(parameters.values())
        self._names = list(parameters)
        self._moments = {kind: [torch.zeros_like(one) for one in self.parameters] for kind in MOMENTS}
        self._steps = [torch.zeros((), device=device) for _ in self.parameters]
        self.use_device(device)

    def use_device(self, device: torch.device) -> None:
        """Create the learning rate, of the dtype that the kernels read on a device."""
        self.rate = torch.zeros((), dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)

    def step(self, grads: Sequence[Tensor], max_norm: float) -> None:
        """Take a step with gradients clipped as by `clip_grad_norm_`, which would need more calls.

        Args:
            grads: The gradient of each parameter.
            max_norm: Maximum norm of all gradients together.
        """
        norm = torch.cat([grad.flatten() for grad in grads]).norm()
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        adam(
            self.parameters,
            list(torch._foreach_mul(list(grads), scale)),
            self._moments["exp_avg"],
            self._moments["exp_avg_sq"],
            max_exp_avg_sqs=[],
            state_steps=self._steps,
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    def state(self) -> dict[str, Any]:
        """Return the number of steps, and copies of the moments by parameter."""
        moments = {
            kind: {name: tensor.clone() for name, tensor in zip(self._names, tensors, strict=True)}
            for kind, tensors in self._moments.items()
        }
        return {"step": int(self._steps[0]), **moments}

    def load(self, state: Mapping[str, Any]) -> None:
        """Copy in a result of `state`, in NumPy arrays."""
        for kind, tensors in self._moments.items():
            for name, tensor in zip(self._names, tensors, strict=True):
                tensor.copy_(torch.tensor(state[kind][name]))
        for step in self._steps:
            step.fill_(float(state["step"]))
