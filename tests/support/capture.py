"""What a CUDA graph forbids, checked without a GPU: a mode that refuses it while a function runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from workers.agents.torch.workspace import Workspace

__all__ = ["CaptureError", "CapturingWorkspace", "Forbidding"]

READS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique2", "_unique2")
"""Operations that wait for the device, because a value or a shape depends on values there."""


class CaptureError(AssertionError):
    """A captured function does what a graph cannot repeat."""


class Forbidding(TorchDispatchMode):
    """Refuses host values and copies to another device; notes the memory that was not made inside.

    Attributes:
        outer: Addresses of the tensors that were made before, in their order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.outer: list[int] = []
        self._made: set[int] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = operation.overloadpacket.__name__, kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if name in READS:
            raise CaptureError(f"{name} reads values of the device")
        masks = tree_leaves(args[1]) if name in ("index", "index_put", "index_put_") else []
        if any(mask.dtype in (torch.bool, torch.uint8) for mask in masks):
            raise CaptureError(f"{name} has a mask: its shape depends on values of the device")
        self._check_devices(name, tensors, kwargs)
        for tensor in tensors:
            if _address(tensor) not in self._made:
                self.outer.append(_address(tensor))
        result = _result_of(operation, name, args, kwargs)
        self._made |= {_address(leaf) for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)} - set(
            self.outer
        )
        return result

    def _check_devices(self, name: str, tensors: list[torch.Tensor], kwargs: Any) -> None:
        # tensors without dimensions may be numbers of the program, which are launched with the kernel
        devices = {tensor.device for tensor in tensors if tensor.dim()}
        if name in ("_to_copy", "to") and kwargs.get("device") is not None:
            devices.add(torch.device(kwargs["device"]))
        if len(devices) > 1:
            raise CaptureError(f"{name} copies between {', '.join(sorted(map(str, devices)))}")


def _result_of(operation: Any, name: str, args: Any, kwargs: Any) -> Any:
    if name == "_fused_adam_" and not args[0][0].is_cpu:
        return None  # it has no form without values, and changes in place
    return operation(*args, **kwargs)


def _address(tensor: torch.Tensor) -> int:
    """Return where a tensor's memory is; views share it. Tensors without memory are known by their storage."""
    try:
        return tensor.untyped_storage().data_ptr() or tensor.untyped_storage()._cdata
    except RuntimeError:
        return tensor.untyped_storage()._cdata


class CapturingWorkspace(Workspace):
    """A workspace that runs each function as if it were captured.

    It compares the memory with that of the last run, and spoils earlier results, which a graph may overwrite.

    Attributes:
        runs: Number of runs by name of the function.
    """

    def __init__(self, device: torch.device, *, compares: bool = True) -> None:
        super().__init__(device)
        self.captures = True
        self.runs: dict[str, int] = {}
        self._results: list[torch.Tensor] = []
        self._compares = compares
        self._outer: dict[Any, list[int]] = {}

    def forget_graphs(self) -> None:
        super().forget_graphs()
        self._outer.clear()

    def run(self, function: Callable[..., Any], *args: int) -> Any:
        name = function.__name__
        for tensor in self._results:
            tensor.fill_(torch.nan if tensor.is_floating_point() else -77)
        with Forbidding() as mode:
            result = function(*args)
        self._results = [tensor for tensor in tree_leaves(result) if isinstance(tensor, torch.Tensor)]
        self.runs[name] = self.runs.get(name, 0) + 1
        if (name, *args) not in self._outer:  # the first run, which makes static tensors, is not captured
            self._outer[name, *args] = []
            return result
        before = self._outer[name, *args] = self._outer[name, *args] or mode.outer
        if self._compares and before != mode.outer:
            raise CaptureError(f"{name} uses other memory than in the last run")
        return result
