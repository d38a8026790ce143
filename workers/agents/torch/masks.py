"""Conversion of action masks on a device, in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["legal_on_device"]


def legal_on_device(mask: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return which categories may be sampled, as `workers.agents.masks.legal_actions`, without waiting for the device.

    Args:
        mask: ``(rows, categories)``, bool or an integer dtype; 0 or False marks illegal categories.
        sizes: Number of categories of each component.

    Returns:
        A new array, ``(rows, categories)`` bool, on the device of `mask`. If a component has no legal category, all its
        categories are allowed.
    """
    parts = (mask != 0).split(list(sizes), dim=1)
    return torch.cat([part | ~part.any(1, keepdim=True) for part in parts], dim=1)
