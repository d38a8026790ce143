"""The plots of `fan_out.py`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

FOLDER = Path(__file__).parent


def _save(figure: Any, axes: Any, name: str) -> None:
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(FOLDER / name, dpi=120)
    plt.close(figure)


def _line(axes: Any, xs: Sequence[float], values: Sequence[Sequence[float]], label: str) -> None:
    """Draw medians, with ranges as error bars."""
    medians = [statistics.median(each) for each in values]
    below = [middle - min(each) for middle, each in zip(medians, values, strict=True)]
    above = [max(each) - middle for middle, each in zip(medians, values, strict=True)]
    axes.errorbar(xs, medians, yerr=[below, above], marker="o", capsize=3, label=label)


def plot_workers(rates: Mapping[int, Mapping[str, Sequence[float]]]) -> None:
    """Plot throughput by number of workers."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name in dict.fromkeys(name for each in rates.values() for name in each):
        counts = [count for count in rates if name in rates[count]]
        _line(axes, counts, [rates[count][name] for count in counts], name)
    axes.set(
        xlabel="simultaneous agents (ours and ParallelTrainer's: worker processes)",
        ylabel="environment steps per second",
        title="HalfCheetah-v5, 64 environments, skrl's PPO",
        xticks=list(rates),
    )
    axes.set_ylim(bottom=0)
    _save(figure, axes, "fan_out_workers.png")


def plot_phases(medians: Mapping[str, float], phases: Sequence[str]) -> None:
    """Plot the phases of a step from left to right, for each worker and the driver."""
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    whole, rest = medians["the driver's step"], medians["the rest: fan-out, and waiting for the slower"]
    workers = sorted({name.rpartition(", ")[2] for name in medians if ", worker" in name})
    starts = dict.fromkeys(workers, 0.0)
    for phase in phases:
        widths = [medians[f"{phase}, {worker}"] for worker in workers]
        axes.barh(workers, widths, left=[starts[worker] for worker in workers], label=phase)
        for worker, width in zip(workers, widths, strict=True):
            starts[worker] += width
    axes.barh(["driver"], [whole - rest], color="lightgrey", label="workers' phases")
    axes.barh(["driver"], [rest], left=[whole - rest], color="grey", label="the rest")
    axes.invert_yaxis()
    axes.set(xlabel="µs a step", title="CartPole-v1, 64 environments, two workers")
    _save(figure, axes, "fan_out_phases.png")


def plot_payload(times: Mapping[int, Mapping[str, Sequence[float]]], threshold: int) -> None:
    """Plot the time of a step by size of the outputs; the threshold applies to each of two workers."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name in next(iter(times.values())):
        _line(axes, list(times), [each[name] for each in times.values()], name)
    axes.axvline(2 * threshold / 1024, color="grey", linestyle=":", label="threshold")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="observations of a step, KB",
        ylabel="µs a step",
        title="Two workers that do nothing",
    )
    _save(figure, axes, "fan_out_payload.png")


def plot_scaling(times: Mapping[int, Sequence[float]], sleep: float) -> None:
    """Plot the time of a step by number of workers."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    _line(axes, list(times), list(times.values()), "ours")
    axes.axhline(sleep, color="grey", linestyle=":", label="the sleep itself")
    axes.set(
        xscale="log",
        xlabel="workers",
        ylabel="ms a step",
        title=f"Environments that sleep {sleep:g} ms",
    )
    axes.set_xticks(list(times), [str(count) for count in times])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    _save(figure, axes, "fan_out_scaling.png")
