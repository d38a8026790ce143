"""Measurement for the parts of `fan_out.py`: contestants in turns, ratios within a turn, bars."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from report import spread

from trainer.torch import StepTrainer

CFG = {"headless": True, "disable_progressbar": True, "close_environment_at_exit": False}


@dataclass(frozen=True)
class Result:
    """Result of one part.

    Attributes:
        text: The report in Markdown.
        draw: Function that writes the plots.
    """

    text: str
    draw: Callable[[], None] = lambda: None


def timed(run: Callable[[], Any], steps: int, calls: int | None = None) -> Callable[[], float]:
    """Return a function that calls `run` for `steps` steps in total and returns microseconds per step.

    Args:
        run: The function to measure.
        steps: Number of steps of all calls together.
        calls: Number of calls; None: one for each step.
    """

    def measure() -> float:
        start = time.perf_counter()
        for _ in range(calls or steps):
            run()
        return (time.perf_counter() - start) / steps * 1e6

    return measure


def take_turns(contestants: Mapping[str, Callable[[], float]], repetitions: int) -> dict[str, list[float]]:
    """Return the measurements of each contestant, one for each turn; the first turn is not counted."""
    values: dict[str, list[float]] = {name: [] for name in contestants}
    for repetition in range(-1, repetitions):
        for name, measure in contestants.items():
            value = measure()
            if repetition >= 0:
                values[name].append(value)
    return values


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Return the ratios turn by turn."""
    return [a / b for a, b in zip(over, under, strict=True)]


def judge(
    values: Sequence[float], *, least: float | None = None, most: float | None = None, digits: int = 2
) -> tuple[str, str, str]:
    """Return three table cells: the spread, the bar, and whether the median meets it."""
    median = statistics.median(values)
    if least is not None:
        return spread(values, digits), f"at least {least:g}", "yes" if median >= least else "no"
    assert most is not None
    return spread(values, digits), f"at most {most:g}", "yes" if median <= most else "no"


def trainer(env: Any, agents: Any, **options: Any) -> StepTrainer:
    """Build our trainer as all parts use it."""
    return StepTrainer(env=env, agents=agents, cfg=CFG, **options)


def actors(**options: Any) -> Any:
    """Build our orchestrator, for many actors on few cores."""
    from orchestrator.ray import RayOrchestrator

    return RayOrchestrator(num_cpus=0.01, step_timeout=120, **options)
