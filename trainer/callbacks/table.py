"""RunTable: a run as a table in a terminal, and Screen, which keeps the table up to date there."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from time import perf_counter

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from trainer._console import shown
from trainer.callbacks.view import EVALUATED, PHASES, RATE, RETURN, RunView, ScopeView, duration, scalar
from trainer.evaluation import rounded

__all__ = ["RunTable", "Screen", "showing"]

_STYLES = {"running": "bold cyan", "finished": "bold green", "failed": "bold red"}

_AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {"min": min, "mean": fmean, "max": max}
_LEAST_SCOPES = 3
"""From this number of scopes on, the aggregates are shown as well."""

_LEAST_LINES = 6
"""Lines of a table of two scopes, without what there is to say of the whole run."""

_PADDING = 2
"""Columns of the terminal between two of the table."""

_OFTEN, _COST = 0.25, 0.01
"""Least seconds between two drawings, and the part of the time that they may take."""


@dataclass(frozen=True)
class _Column:
    """A column of numbers. Where there is no room for all, those of the largest `rank` are left out."""

    title: str
    value: Callable[[ScopeView], float | None]
    rank: int
    form: Callable[[float], str] = rounded


def _of(tag: str) -> Callable[[ScopeView], float | None]:
    return lambda scope: scalar(scope.scalars, tag)


def _with_three_digits(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


_COLUMNS = (
    _Column("return", _of(RETURN), 0),
    _Column("eval", _of(EVALUATED), 5),
    _Column("best", lambda scope: scope.best, 1),
    _Column("length", _of("Episode / Length (mean)"), 8),
    _Column("steps/s", _of(RATE), 2, "{:,.0f}".format),
    *(
        _Column(f"{name} ms", _of(tag), rank, _with_three_digits)
        for (name, tag), rank in zip(PHASES.items(), (6, 4, 7, 3, 9), strict=True)
    ),
    _Column("learning rate", _of("Learning / Learning rate"), 4, "{:.2g}".format),
)

_Row = list[Text]


class RunTable:
    """A rich renderable of a run, as wide and as high as the terminal allows.

    Where there is no room for all simultaneous agents, those with the highest and the lowest returns are shown.
    """

    def __init__(self, view: RunView) -> None:
        """Take what is shown."""
        self._view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        view, width = self._view, options.max_width
        head = [line for line in _head(view, width) if line][: max(0, console.size.height - _LEAST_LINES)]
        yield Rule(_text(f"{view.name}, {_counted(len(view.scopes), 'simultaneous agent')}"), align="left")
        yield _progress(view, width)
        yield from head
        yield Text()
        is_aggregated = len(view.scopes) >= _LEAST_SCOPES
        taken = len(head) + _LEAST_LINES + (4 if is_aggregated else 0)
        chosen, left_out = _chosen(view.scopes, max(2, console.size.height - taken))
        yield _table(view.scopes, chosen, left_out, width, is_aggregated=is_aggregated)


def _head(view: RunView, width: int) -> list[Text]:
    """Return lines with what there is to say of the whole run."""
    facts = {
        "elapsed": None if view.seconds is None else duration(view.seconds),
        "left": None if view.remaining is None else duration(view.remaining),
        "steps/s": None if view.rate is None else f"{view.rate:,.0f}",
        "checkpoint": None if view.checkpoint is None else f"{view.checkpoint:,}",
        "evaluation": None if view.evaluation is None else f"{view.evaluation:,}",
        "recoveries": f"{view.recoveries}" if view.recoveries else None,
    }
    told = [Text.assemble((f"{name} ", "dim"), value) for name, value in facts.items() if value is not None]
    nodes = {scope.node for scope in view.scopes}
    if len(nodes) == 1 and (node := nodes.pop()):
        told.append(Text.assemble(("on ", "dim"), _text(node)))
    lines = [Text(no_wrap=True, overflow="crop")]
    for one in told:
        if len(lines[-1]) and lines[-1].cell_len + one.cell_len + 3 > width:
            lines.append(Text(no_wrap=True, overflow="crop"))
        lines[-1].append_text(Text("   " if len(lines[-1]) else "")).append_text(one)
    if view.fault:
        style = "red" if view.state == "failed" else "yellow"
        fault = _text(view.fault.partition("\n")[0], style)
        fault.no_wrap, fault.overflow = True, "crop"
        lines.append(fault)
    return lines


def _progress(view: RunView, width: int) -> Table:
    """Return the line with the bar."""
    share = f"{view.timestep / view.timesteps:.0%}" if view.timesteps else ""
    of = f"{view.timestep:,} of {view.timesteps:,} timesteps" if view.timesteps else f"{view.timestep:,} timesteps"
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True, justify="right")
    bar = ProgressBar(total=max(1, view.timesteps), completed=view.timestep)
    grid.add_row(_text(view.state, _STYLES.get(view.state, "bold yellow")), bar, f"{of}  {share}".rstrip())
    return grid


def _chosen(scopes: Sequence[ScopeView], room: int) -> tuple[list[ScopeView], int]:
    """Return the scopes that are shown, and after how many of them others are left out; 0 if all are shown."""
    if len(scopes) <= room:
        return list(scopes), 0
    tag = EVALUATED if all(_of(RETURN)(scope) is None for scope in scopes) else RETURN
    known = {scope.index: value for scope in scopes if (value := _of(tag)(scope)) is not None and not math.isnan(value)}
    ordered = sorted(scopes, key=lambda scope: -known.get(scope.index, float("-inf")))
    best = room // 2  # one row says how many are left out
    worst = room - 1 - best
    return ordered[:best] + ordered[len(ordered) - worst :], best


def _table(
    scopes: Sequence[ScopeView], chosen: Sequence[ScopeView], left_out: int, width: int, *, is_aggregated: bool
) -> Table:
    columns = [one for one in _COLUMNS if any(one.value(scope) is not None for scope in scopes)]
    nodes = [_text(scope.node) for scope in chosen] if len({scope.node for scope in scopes}) > 1 else []
    first = [str(scope.index) for scope in chosen] + (list(_AGGREGATES) if is_aggregated else [])
    cells = {
        one.title: [*(_cell(one, scope) for scope in chosen), *(_summed(one, scopes) if is_aggregated else [])]
        for one in columns
    }
    widths = {title: max(map(cell_len, [title, *of])) + _PADDING for title, of in cells.items()}
    node_width = max((node.cell_len for node in nodes), default=0)
    room = width - max(map(len, ["scope", *first])) - _PADDING
    for one in sorted(columns, key=lambda one: -one.rank):
        # a node's name may be cut, but is worth more than the last columns
        if sum(widths.values()) + min(node_width, 16) > room and one.rank:
            del widths[one.title]
    table = Table(box=None, padding=(0, _PADDING, 0, 0), pad_edge=False, header_style="bold", show_edge=False)
    table.add_column("scope", justify="right", no_wrap=True)
    for title in widths:
        table.add_column(title, justify="right", no_wrap=True)
    if nodes:
        table.add_column("node", no_wrap=True, overflow="crop", style="dim")
    for row, name in enumerate(first):
        if left_out and row == left_out:
            table.add_row("...", Text(f"{len(scopes) - len(chosen)} more", style="dim"))
        if row == len(chosen):
            table.add_row()
        node = [nodes[row]] if nodes and row < len(chosen) else []
        style = "" if row < len(chosen) else "italic"
        table.add_row(name, *(cells[title][row] for title in widths), *node, style=style)
    return table


def _cell(column: _Column, scope: ScopeView) -> str:
    value = column.value(scope)
    return "-" if value is None else column.form(value)


def _summed(column: _Column, scopes: Sequence[ScopeView]) -> list[str]:
    found = [value for scope in scopes if (value := column.value(scope)) is not None and not math.isnan(value)]
    return [column.form(one(found)) if found else "-" for one in _AGGREGATES.values()]


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _text(text: str, style: str = "") -> Text:
    """Return a text that may be anybody's, in one line and without secrets and what a terminal obeys."""
    return Text(" ".join(shown(text).split()), style=style)


@contextmanager
def showing(console: Console) -> Iterator[None]:
    """Write to a console. What it cannot show is dropped, and everything is if nobody reads it, or it is closed."""
    try:
        yield
    except (OSError, UnicodeError):
        before, console.quiet = console.quiet, True
        console.out("")  # rich forgets what it could not write
        console.quiet = before
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):  # by which rich would end the program
            raise


class Screen:
    """A terminal of UTF-8 on which the table is kept up to date, below whatever else is printed.

    It takes at most about a hundredth of the time. If the terminal is closed, nothing is drawn, and nothing is raised.
    """

    def __init__(self, console: Console) -> None:
        """Take the terminal; nothing is drawn."""
        self._live = Live(
            console=console,
            auto_refresh=False,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
            vertical_overflow="crop",
        )
        self._next = 0.0

    @staticmethod
    def is_possible(console: Console) -> bool:
        """Return whether the output is a terminal that can move its cursor, and show any text that is printed."""
        return console.is_terminal and not console.is_dumb_terminal and not console.options.ascii_only

    def is_due(self) -> bool:
        """Return whether it is time to draw again."""
        return perf_counter() >= self._next

    def draw(self, view: RunView) -> None:
        """Draw the table."""
        start = perf_counter()
        with showing(self._live.console), self._live.console:  # written at once: it has begun, or has not
            self._live.start()
            self._live.update(RunTable(view), refresh=True)
        end = perf_counter()
        self._next = end + max(_OFTEN, (end - start) / _COST)

    def close(self) -> None:
        """Leave the last table where it is, and give the terminal back. A second time does nothing."""
        with showing(self._live.console):
            self._live.stop()
