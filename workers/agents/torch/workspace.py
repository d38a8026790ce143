"""Workspace: the static tensors of an agent, and the CUDA graphs that are captured from functions of them."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["Workspace"]

R = TypeVar("R")

_free_streams: dict[torch.device, list[torch.cuda.Stream]] = defaultdict(list)
"""Streams of workspaces that are gone."""


class Workspace:
    """Static tensors on one device, and functions that are captured there as CUDA graphs.

    On a CPU, `run` calls the function. On a GPU, it launches the kernels of a function with one call: starting them
    one by one takes most of the time of networks as small as those of reinforcement learning.

    A function that `run` gets must launch the same kernels on the same memory each time. It reads and writes only
    tensors that keep their place, never a value on the host. It draws no random numbers: a graph would go on with the
    generator of the time when it was captured.

    A workspace holds nothing between two iterations. It is pickled and copied without its contents.

    Attributes:
        captures: Whether functions are captured: the next `run` of any function then overwrites their results.
    """

    def __init__(self, device: torch.device) -> None:
        """Start without tensors and graphs.

        Args:
            device: The device of all tensors.
        """
        self._device = device
        self.captures = device.type == "cuda"
        self._buffers: dict[tuple[Any, ...], Tensor] = {}
        self._graphs: dict[tuple[Any, ...], tuple[torch.cuda.CUDAGraph, Any] | None] = {}
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def __reduce__(self) -> tuple[type[Workspace], tuple[torch.device]]:
        return Workspace, (self._device,)

    def buffer(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the tensor of this name and shape, with the values last written to it."""
        key = (name, *shape)
        if key not in self._buffers:
            with torch.inference_mode(False):  # in which tensors could not be written to later
                self._buffers[key] = torch.zeros(shape, dtype=dtype, device=self._device)
        return self._buffers[key]

    def kept(self, results: list[Tensor]) -> list[Tensor]:
        """Return results of `run` as tensors that its next call does not overwrite."""
        return list(torch._foreach_mul(results, 1)) if self.captures else results  # one call for all copies

    def copy(self, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
        """Copy tensors to others of the same shapes, and of any dtype and device, with few calls."""
        groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
        for target, source in zip(targets, sources, strict=True):
            # a GPU copies those of one dtype in one kernel; a CPU copies one by one in any case
            kind = (target.dtype, source.dtype) if self.captures else None
            places, given = groups.setdefault(kind, ([], []))
            places.append(target)
            given.append(source)
        for places, given in groups.values():
            torch._foreach_copy_(places, given)

    def forget_graphs(self) -> None:
        """Capture all functions again, because tensors that they use have been replaced."""
        self._graphs.clear()
        self._pool = None  # it ends with its last graph

    def run(self, function: Callable[..., R], *args: int) -> R:
        """Return ``function(*args)``, from a captured graph where the device is a GPU.

        The first call runs the function once as it is, which loads its kernels. The second one captures it.

        Args:
            function: A method of the agent, known by its name.
            args: Numbers that determine the shapes, or which kernels are launched.
        """
        if not self.captures:
            return function(*args)
        key = (function.__name__, *args)
        if key not in self._graphs:
            result = self._warm_up(function, *args)
            self._graphs[key] = None
            return result
        graph, result = self._graphs[key] or self._capture(key, function, *args)
        graph.replay()
        return result

    def _warm_up(self, function: Callable[..., R], *args: int) -> R:
        """Run a function on the stream on which it will be captured.

        The stream is the workspace's own: libraries keep memory for each stream, which captured functions use whenever
        they run.
        """
        if self._stream is None:
            # first those that others no longer use: torch has 32 streams, and gives them out again and again
            free = _free_streams[self._device]
            self._stream = free.pop() if free else torch.cuda.Stream(self._device)
            weakref.finalize(self, free.append, self._stream)
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = function(*args)
        current.wait_stream(self._stream)
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, Tensor):
                tensor.record_stream(current)  # its memory is free only after what uses it there
        return result

    def _capture(
        self, key: tuple[Any, ...], function: Callable[..., Any], *args: int
    ) -> tuple[torch.cuda.CUDAGraph, Any]:
        graph = torch.cuda.CUDAGraph()
        # one pool, because the graphs of an agent never run at the same time
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        options: dict[str, Any] = {"pool": self._pool, "stream": self._stream}
        try:  # in two contexts on one stream: after an error, torch's own leaves it current
            with torch.cuda.stream(self._stream), torch.cuda.graph(graph, capture_error_mode="thread_local", **options):
                result = function(*args)
        except BaseException:
            self.forget_graphs()
            raise
        self._graphs[key] = graph, result
        return graph, result
