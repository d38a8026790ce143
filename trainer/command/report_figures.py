"""The figures of a report, by matplotlib."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.callbacks.view import EVALUATED, PHASES, RATE, RETURN
from trainer.command.run_reader import RunReader
from workers.errors import ConfigError

__all__ = ["COLOURS", "FIGURES", "Figures"]

FIGURES = {
    "returns": "Returns by timestep",
    "throughput": "Environment steps per second by timestep",
    "phases": "Time of each phase",
    "learning": "Losses and learning rate by timestep",
}
"""Name and content of each figure, in the order in which they are shown."""

COLOURS = ("#3266ad", "#d1622b", "#2f8f5b", "#a83f8e", "#8a6d1f", "#2b99a8", "#c03b4b", "#6a5acd", "#6b7280", "#4d7c0f")

_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#8a8f98",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.dpi": 130,
    "font.size": 9.5,
    "grid.alpha": 0.25,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "text.parse_math": False,  # a name may have a dollar
}

_GROUPS = ("Loss", "Learning", "Policy")
"""Groups of tags whose panels are beside each other, in this order."""

_MOST_PANELS, _PANELS_IN_ROW = 8, 4
_MOST_LINES = 8
"""Number of simultaneous agents that have a line each."""

_MOST_POINTS = 1000
_MOST_MARKS = 100
_WIDTH = 10.0


@dataclass(frozen=True)
class _Band:
    """Curves over simultaneous agents, at common timesteps.

    Attributes:
        timesteps: ``(points,)``.
        values: ``(agents, points)``; NaN before an agent's first value.
        scopes: Index of each agent's scope.
    """

    timesteps: Any
    values: Any
    scopes: Sequence[int]

    def over_agents(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return a statistic over the agents, ``(points,)``."""
        return function(self.values, *args, axis=0)


class Figures:
    """The figures of one or several runs."""

    def __init__(self, runs: Sequence[RunReader], names: Sequence[str]) -> None:
        """Take what is drawn.

        Args:
            runs: The runs.
            names: What each is called in a legend.

        Raises:
            ConfigError: matplotlib is not installed.
        """
        try:
            import matplotlib.figure
        except ImportError as error:
            raise ConfigError("a report needs matplotlib: pip install 'lockstep-rl[report]'") from error
        self._matplotlib = matplotlib
        self._runs = list(zip(runs, names, (COLOURS * len(runs))[: len(runs)], strict=True))

    def draw(self) -> dict[str, bytes]:
        """Return each figure as a PNG, by name. One that nothing is known for is left out."""
        makers = (self._returns, self._throughput, self._phases, self._learning)
        drawn: dict[str, bytes] = {}
        with self._matplotlib.rc_context(_STYLE), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # glyphs that the font lacks; points where no agent has a value
            for name, make in zip(FIGURES, makers, strict=True):
                figure = make()
                if figure is not None:
                    file = io.BytesIO()
                    figure.savefig(file, format="png", facecolor="white")
                    drawn[name] = file.getvalue()
        return drawn

    def _figure(self, height: float, columns: int = 1, rows: int = 1) -> tuple[Any, Any]:
        """Return a figure, and its axes in a row."""
        figure = self._matplotlib.figure.Figure(figsize=(_WIDTH, height), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False).ravel()

    def _returns(self) -> Any:
        panels = {RETURN: "Training return", EVALUATED: "Evaluation return"}
        found = {tag: [_band(run, [tag]) for run, _, _ in self._runs] for tag in panels}
        found = {tag: bands for tag, bands in found.items() if any(bands)}
        if not found:
            return None
        figure, axes = self._figure(4.0, len(found))
        for one, (tag, bands) in zip(axes, found.items(), strict=True):
            self._draw_bands(one, bands, marker="o" if tag == EVALUATED else "")
            one.set(title=f"{panels[tag]}{self._what(bands)}", xlabel="timestep")
        _legend(figure, axes)
        return figure

    def _what(self, bands: Sequence[_Band | None]) -> str:
        """Return what a band is."""
        most = max(len(band.scopes) for band in bands if band)
        if most == 1:
            return ""
        return ": mean, range" if most <= _MOST_LINES else ": mean, middle half, range"

    def _draw_bands(self, axes: Any, bands: Sequence[_Band | None], *, marker: str = "") -> None:
        for (run, name, colour), band in zip(self._runs, bands, strict=True):
            if band is None:
                continue
            options = {"marker": marker, "markersize": 3.5}
            count, label = len(band.scopes), name
            if count > 1:
                low, high = band.over_agents(np.nanmin), band.over_agents(np.nanmax)
                axes.fill_between(band.timesteps, low, high, color=colour, alpha=0.14, linewidth=0)
            if count > _MOST_LINES:
                low, high = (band.over_agents(np.nanpercentile, part) for part in (25, 75))
                axes.fill_between(band.timesteps, low, high, color=colour, alpha=0.25, linewidth=0)
            if len(self._runs) == 1 and 1 < count <= _MOST_LINES:
                for scope, values, own in zip(band.scopes, band.values, COLOURS, strict=False):
                    axes.plot(band.timesteps, values, color=own, linewidth=0.9, label=f"scope {scope}", **options)
                colour, label, options = "#22262e", "mean", {}
            axes.plot(band.timesteps, band.over_agents(np.nanmean), color=colour, label=label, **options)
            self._mark(axes, run, colour)

    def _throughput(self) -> Any:
        bands = [_band(run, [RATE]) for run, _, _ in self._runs]
        if not any(bands):
            return None
        figure, (axes,) = self._figure(2.6)
        for (run, name, colour), band in zip(self._runs, bands, strict=True):
            if band is not None:
                axes.plot(band.timesteps, band.over_agents(np.nansum), color=colour, label=name)
                self._mark(axes, run, colour)
        axes.set(title="Environment steps per second, of all simultaneous agents", xlabel="timestep")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        _legend(figure, [axes])
        return figure

    def _phases(self) -> Any:
        """Draw the phases over time or, of several runs, beside each other."""
        found = [{name: band for name, tag in PHASES.items() if (band := _band(run, [tag]))} for run, *_ in self._runs]
        if not any(found):
            return None
        several = len(self._runs) > 1
        figure, (axes,) = self._figure(1.2 + 0.35 * len(self._runs) if several else 2.6)
        if several:
            names = [name for _, name, _ in self._runs]
            places, starts = range(len(names)), np.zeros(len(names))
            for phase, colour in zip(PHASES, COLOURS, strict=False):
                if any(phase in one for one in found):
                    widths = np.array([np.nanmean(one[phase].values) if phase in one else 0.0 for one in found])
                    axes.barh(places, widths, left=starts, color=colour, label=phase)
                    starts += widths
            axes.set_yticks(list(places), names)
            axes.invert_yaxis()
            axes.grid(axis="y", visible=False)
        else:
            (of_run,) = found
            grid = next(iter(of_run.values())).timesteps
            layers = [
                np.nan_to_num(np.interp(grid, one.timesteps, one.over_agents(np.nanmean))) for one in of_run.values()
            ]
            axes.stackplot(grid, layers, labels=list(of_run), colors=COLOURS, alpha=0.85)
            axes.set(xlabel="timestep")
            axes.margins(x=0)
        axes.set(title="Phases: ms a timestep, mean over simultaneous agents")
        _legend(figure, [axes])
        return figure

    def _learning(self) -> Any:
        tags = dict.fromkeys(tag for run, _, _ in self._runs for tag in sorted(run.metrics))
        panels: dict[str, list[str]] = {}
        for group in _GROUPS:
            for tag in tags:
                parts = tag.split(" / ")
                if parts[0] == group and len(parts) > 1:  # a team has one of each agent
                    panels.setdefault(f"{group}: {parts[-1]}", []).append(tag)
        shown = dict(list(panels.items())[:_MOST_PANELS])
        if not shown:
            return None
        columns = min(_PANELS_IN_ROW, len(shown))
        rows = math.ceil(len(shown) / columns)
        figure, axes = self._figure(2.2 * rows + 0.4, columns, rows)
        for one, (title, of_panel) in zip(axes, shown.items(), strict=False):
            self._draw_bands(one, [_band(run, of_panel) for run, _, _ in self._runs])
            one.set_title(title.partition(": ")[2][:40], fontsize=9)
        for one in axes[len(shown) :]:
            one.set_visible(False)
        _legend(figure, axes)
        return figure

    def _mark(self, axes: Any, run: RunReader, colour: str) -> None:
        """Mark recoveries, and where a run failed."""
        steps = [one["timestep"] for one in run.recoveries if one["timestep"] is not None][:_MOST_MARKS]
        colour = "#c03b4b" if len(self._runs) == 1 else colour
        for step in steps:
            axes.axvline(step, color=colour, linewidth=0.8, linestyle=":", alpha=0.8)
        transform = axes.get_xaxis_transform()
        label = "recovery" if len(self._runs) == 1 else None
        if steps:
            axes.plot(steps, [0.02] * len(steps), "^", color=colour, markersize=5, transform=transform, label=label)
        if run.state == "failed":
            label = "failed" if len(self._runs) == 1 else None
            axes.plot([run.timestep], [0.02], "x", color=colour, markersize=7, transform=transform, label=label)


def _band(run: RunReader, tags: Iterable[str]) -> _Band | None:
    """Return the curves of all scopes with one of these tags; None if there is none."""
    curves = []
    for tag in tags:
        for scope, series in sorted(run.metrics.get(tag, {}).items()):
            timesteps, values = np.array(series.timesteps, float), np.array(series.values)
            order = np.argsort(timesteps, kind="stable")
            order = order[np.isfinite(values[order])]
            if len(order):
                curves.append((scope, timesteps[order], values[order]))
    if not curves:
        return None
    grid = np.unique(np.concatenate([timesteps for _, timesteps, _ in curves]))
    grid = grid[np.linspace(0, len(grid) - 1, min(len(grid), _MOST_POINTS)).round().astype(int)]
    rows = [np.interp(grid, timesteps, values, left=np.nan) for _, timesteps, values in curves]
    return _Band(grid, np.stack(rows), [scope for scope, _, _ in curves])


def _legend(figure: Any, axes: Sequence[Any]) -> None:
    """Draw one legend below all axes, with each label once."""
    known: dict[str, Any] = {}
    for one in axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    if len(known) > 1:
        columns = 1 if max(map(len, known)) > 60 else min(len(known), 8 if max(map(len, known)) < 16 else 3)
        figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=columns)
