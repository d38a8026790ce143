"""RunView: what is shown of a run while it trains, whoever shows it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from trainer.callbacks.loop import RATE
from trainer.evaluation import rounded

__all__ = [
    "EVALUATED",
    "PHASES",
    "RATE",
    "RETURN",
    "RunView",
    "ScopeView",
    "duration",
    "in_short",
    "progress",
    "scalar",
]

RETURN, EVALUATED = "Episode / Return (mean)", "Evaluation / Return (mean)"

PHASES = {
    "act": "Stats / Inference time (ms)",
    "env": "Stats / Env stepping time (ms)",
    "record": "Stats / Recording time (ms)",
    "update": "Stats / Post-interaction time (ms)",
    "render": "Stats / Rendering time (ms)",
}
"""Short name and tag of each phase, in the order in which they come."""

_MOST_SCOPES = 4
"""Number of scopes whose returns a line of progress tells one by one."""

_LONGEST = 3e8
"""Seconds that are years."""


@dataclass(frozen=True, kw_only=True)
class ScopeView:
    """What is shown of one simultaneous agent.

    Attributes:
        index: Index of its scope.
        scalars: The last value of each tag.
        best: The best mean return of an evaluation; None if there was none.
        node: Process in which it lives; empty if that is not known.
    """

    index: int
    scalars: Mapping[str, float] = field(default_factory=dict)
    best: float | None = None
    node: str = ""


@dataclass(frozen=True, kw_only=True)
class RunView:
    """What is shown of a run. Texts may come from anybody: what shows them makes them harmless.

    Attributes:
        name: What is trained on, such as the name of the environment.
        state: What the run does, or how it ended, such as ``"running"``.
        timestep: Number of timesteps that are done.
        timesteps: Number of timesteps at which the run ends; 0 if that is not known.
        scopes: Each simultaneous agent, in scope order.
        seconds: Seconds since this process began to train; None if that is not known.
        remaining: Seconds until the run will end; None if that is not known.
        checkpoint: Timestep of the last checkpoint; None if there is none.
        evaluation: Timestep of the last evaluation; None if there was none.
        recoveries: Number of recoveries from lost workers.
        fault: The last recovery or error, in words; empty if there was none.
    """

    name: str
    state: str
    timestep: int
    timesteps: int
    scopes: Sequence[ScopeView]
    seconds: float | None = None
    remaining: float | None = None
    checkpoint: int | None = None
    evaluation: int | None = None
    recoveries: int = 0
    fault: str = ""

    @property
    def rate(self) -> float | None:
        """Environment steps per second of all scopes; None if that is not known."""
        found = [scope.scalars[RATE] for scope in self.scopes if RATE in scope.scalars]
        return sum(found) if found else None

    def __str__(self) -> str:
        """Return one line, for where there is no table."""
        of = f" of {self.timesteps:,}" if self.timesteps else ""
        return f"timestep {self.timestep:,}{of}: {progress([scope.scalars for scope in self.scopes])}"


def progress(scalars: Sequence[Mapping[str, float]]) -> str:
    """Return the mean return of each scope, or the range of many, and the environment steps per second of all.

    Args:
        scalars: The scalars of each scope, by tag.
    """
    rate = f"{sum(one.get(RATE, 0.0) for one in scalars):,.0f} environment steps/s"
    found = [one.get(RETURN, math.nan) for one in scalars]
    return f"{in_short(found)}; {rate}"


def in_short(returns: Sequence[float]) -> str:
    """Return the return of each scope, or the range of many; those that are NaN are not known.

    Args:
        returns: The returns, in scope order.
    """
    known = [one for one in returns if not math.isnan(one)]
    if not known:
        return "no episode ended"
    if len(returns) > _MOST_SCOPES:
        return f"returns {rounded(min(known))} to {rounded(max(known))} in {len(returns)} scopes"
    *most, last = ["(no episode ended)" if math.isnan(one) else rounded(one) for one in returns]
    return f"returns {', '.join(most)} and {last}" if most else f"return {last}"


def scalar(scalars: Mapping[str, float], tag: str) -> float | None:
    """Return a scalar of a scope. If only the agents of a team have it, it is their mean; None if nobody has it.

    Args:
        scalars: The scalars of the scope, by tag.
        tag: A tag such as ``"Learning / Learning rate"``; a team's are ``"Learning / agent_0 / Learning rate"``.
    """
    if tag in scalars:
        return scalars[tag]
    group, _, name = tag.partition(" / ")
    return _mean(
        value for one, value in scalars.items() if one.startswith(f"{group} / ") and one.endswith(f" / {name}")
    )


def duration(seconds: float) -> str:
    """Format a duration: hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds))) if seconds < _LONGEST else "years"


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None
