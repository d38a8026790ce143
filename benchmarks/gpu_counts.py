"""Counts for `gpu.py`: kernels and launches of a step, and what its arithmetic alone would take."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from report import table
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from workers.agents.torch.workspace import Workspace

NO_KERNEL = {"t", "view", "select", "slice", "detach", "expand", "unbind", "split", "unsqueeze", "squeeze", "alias",
             "_unsafe_view", "permute", "transpose", "as_strided", "device", "empty", "empty_like", "new_empty",
             "empty_strided", "_local_scalar_dense", "reshape", "lift_fresh", "split_with_sizes"}  # fmt: skip
"""Operations that launch nothing: they change how memory is seen, or reserve it."""


class Kernels(TorchDispatchMode):
    """Counts operations that launch a kernel on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += operation.overloadpacket.__name__ not in NO_KERNEL
        return operation(*args, **kwargs or {})


def count_kernels(trainer: Any, step: Callable[[], Any], rollouts: int) -> str:
    """Count the operations of a rollout with its update: started one by one, and within captured functions.

    The environments count, too. This works on every device.
    """
    captured: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    real = Workspace.run

    def run(self: Workspace, function: Callable[..., Any], *args: int) -> Any:
        with Kernels() as mode:
            result = function(*args)
        captured[function.__name__] += mode.count
        runs[function.__name__] += 1
        return result

    Workspace.run = run  # type: ignore[method-assign,assignment]
    workspaces = [agent._workspace for agent in trainer.agents]
    for workspace in workspaces:
        workspace.captures = True  # on a CPU, too
    try:
        for _ in range(rollouts):
            step()
        captured.clear()
        runs.clear()
        with Kernels() as mode:
            for _ in range(rollouts):
                step()
    finally:
        Workspace.run = real  # type: ignore[method-assign]
        for workspace in workspaces:
            workspace.captures = workspace._device.type == "cuda"
    with Kernels() as alone:
        for _ in range(rollouts):
            trainer.env.step(torch.zeros(trainer.env.num_envs, 12, device=trainer.env.device))
    inside = sum(captured.values())
    environments = alone.count - rollouts  # without the actions
    others = mode.count - inside - environments
    rows = [
        ["kernels of the environments", f"{environments / rollouts:.1f}"],
        ["other kernels that are started one by one", f"{others / rollouts:.1f}"],
        ["graphs that are launched", f"{sum(runs.values()) / rollouts:.1f}"],
        ["kernels in them", f"{inside / rollouts:.1f}"],
        *[
            [f"of these in `{name}`, {runs[name] / rollouts:.2f} times", f"{captured[name] / rollouts:.1f}"]
            for name in runs
        ],
    ]
    return table(["operations of PyTorch, counted", "per step"], rows)


def count_launches(step: Callable[[], Any], rollouts: int, device: str) -> str:
    """Count the calls of CUDA in two rollouts with the profiler."""
    if device == "cpu":
        return "Calls of CUDA: there is none."
    for _ in range(3 * rollouts):
        step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        for _ in range(2 * rollouts):
            step()
    calls: Counter[str] = Counter()
    for event in profiled.key_averages():
        if event.key.startswith(("cuda", "cu")) and not event.key.startswith("cub"):
            calls[event.key] += event.count
    total = calls.total()
    rows = [[name, f"{count / 2 / rollouts:.2f}", f"{count / 2:.0f}"] for name, count in calls.most_common(12)]
    return table([f"calls of CUDA ({total / 2 / rollouts:.1f} per step)", "per step", "per rollout"], rows)


def _rate(function: Callable[[], Any], amount: float, device: str) -> float:
    """Return an amount per second of a function, the best of 5."""
    best = 0.0
    for _ in range(6):
        if device != "cpu":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device != "cpu":
            torch.cuda.synchronize()
        best = max(best, amount / (time.perf_counter() - start))
    return best


def floor(args: Any, cfg: dict[str, Any], observations: int, actions: int) -> str:
    """Return what a step takes by its arithmetic and by its memory traffic, at rates measured here."""
    size = 4096 if args.device != "cpu" else 256
    square = torch.randn(size, size, device=args.device)
    flops = _rate(lambda: square @ square, 2.0 * size**3, args.device)
    bandwidth = _rate(lambda: square.clone(), 8.0 * size**2, args.device)
    weights = []
    for outputs in (actions, 1):
        sizes = (observations, *cfg["hidden_sizes"], outputs)
        weights.append(sum(a * b for a, b in itertools.pairwise(sizes)))
    units = observations + sum(cfg["hidden_sizes"])
    passes = 1 + 3 * cfg["learning_epochs"]  # forward before the update; forward and twice as much backward in it
    arithmetic = 2.0 * args.envs * (weights[0] + weights[1] + passes * sum(weights))
    traffic = 4.0 * args.envs * 2 * units * (2 + 2 * passes)  # activations of both networks, written and read
    rows = [
        [
            "arithmetic",
            f"{arithmetic / 1e9:.2f} GFLOP at {flops / 1e12:.2f} TFLOP/s",
            f"{arithmetic / flops * 1e3:.3f}",
        ],
        ["memory", f"{traffic / 1e9:.2f} GB at {bandwidth / 1e9:.0f} GB/s", f"{traffic / bandwidth * 1e3:.3f}"],
    ]
    return table(["floor of a step, 1 agent", "per step", "ms"], rows)
