"""The page of a report: HTML that needs nothing but itself. Elements are built as a tree, so every text is escaped."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from statistics import fmean, pstdev
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

from trainer import __version__
from trainer._redaction import escaped
from trainer.callbacks.view import EVALUATED, RATE, RETURN, duration
from trainer.command.report_figures import COLOURS, FIGURES
from trainer.command.run_reader import RunReader, at, returns_of
from trainer.evaluation import rounded

__all__ = ["page"]

_STYLE = """
:root { color-scheme: light dark; --line: #d9dce1; --dim: #666d78; --back: #fff; --mark: #fff3cd; --head: #f5f6f8 }
@media (prefers-color-scheme: dark) {
  :root { --line: #363b44; --dim: #9aa2ae; --back: #161616; --mark: #4a3b12; --head: #1d2026 }
  body { color: #e3e6ea } img { filter: invert(.915) hue-rotate(180deg) } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem;
  background: var(--back) }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem }
h3 { font-size: .95rem; margin: 1.2rem 0 .4rem } p { margin: .3rem 0 } .dim { color: var(--dim) }
img { width: 100%; height: auto; display: block; margin: .8rem 0 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums }
th, td { padding: .22rem .75rem .22rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top;
  max-width: 30rem; overflow-wrap: break-word }
th { font-weight: 600; color: var(--dim); overflow-wrap: normal }
td.number, th.number { text-align: right }
td.number { white-space: pre } table.summary td { white-space: pre-line }
table.summary td:nth-child(-n+2) { min-width: 8rem; overflow-wrap: anywhere }
tr.other td { background: var(--mark) } summary { cursor: pointer; color: var(--dim); margin: .4rem 0 }
i.run { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .5em }
.failed, .killed { color: #d0394b } .finished { color: #2f8f5b }
"""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_MOST_ROWS = 16
"""Most rows of a table that is open when the page is."""

_MOST_FAULTS = 500
_LONGEST = 300
"""Most characters of a value."""


def page(runs: Sequence[RunReader], names: Sequence[str], pictures: Mapping[str, bytes]) -> bytes:
    """Return the page.

    Args:
        runs: The runs, one or several.
        names: What each is called.
        pictures: PNG files by name, in the order in which they are shown.
    """
    html = Element("html", lang="en")
    head, body = SubElement(html, "head"), SubElement(html, "body")
    SubElement(head, "meta", charset="utf-8")
    SubElement(head, "meta", {"http-equiv": "Content-Security-Policy", "content": _POLICY})
    SubElement(head, "meta", name="viewport", content="width=device-width")
    title = names[0] if len(runs) == 1 else f"{len(runs)} runs"
    _add(head, "title", title)
    SubElement(head, "style").text = _STYLE
    _add(body, "h1", title)
    _add(body, "p", f"Lockstep {__version__}, {datetime.now():%Y-%m-%d %H:%M}", "dim")
    _summary(body, runs, names)
    for name, data in pictures.items():
        source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        SubElement(body, "img", src=source, alt=FIGURES[name])
    if not pictures:
        _add(body, "p", "There are no metrics to draw.", "dim")
    _evaluations(body, runs, names)
    _faults(body, runs, names)
    _add(body, "h2", "Configuration")
    _compared(body, names, [dict(_flat(_grouped(run.config))) for run in runs])
    _add(body, "h2", "Versions")
    _compared(body, names, [{name: str(value) for name, value in run.versions.items() if value} for run in runs])
    _problems(body, runs, names)
    return b"<!DOCTYPE html>\n" + tostring(html, encoding="utf-8", method="html")


def _add(parent: Element, tag: str, text: str, kind: str = "") -> Element:
    """Add an element with a text that may be anybody's."""
    element = SubElement(parent, tag, {"class": kind} if kind else {})
    element.text = escaped(text)
    return element


def _table(
    parent: Element, columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = ()
) -> Element:
    """Add a table, and return it.

    Args:
        parent: Where to.
        columns: The heads of the columns.
        rows: The texts of each row.
        numbers: Columns that are aligned to the right.
    """
    table = SubElement(SubElement(parent, "div", {"class": "wide"}), "table")
    kinds = ["number" if column in numbers else "" for column in columns]
    head = SubElement(table, "tr")
    for column, kind in zip(columns, kinds, strict=True):
        _add(head, "th", column, kind)
    for row in rows:
        line = SubElement(table, "tr")
        for text, kind in zip(row, kinds, strict=True):
            _add(line, "td", text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ...", kind)
    return table


def _details(parent: Element, told: str, *, is_open: bool) -> Element:
    details = SubElement(parent, "details", {"open": "open"} if is_open else {})
    _add(details, "summary", told)
    return details


def _summary(body: Element, runs: Sequence[RunReader], names: Sequence[str]) -> None:
    best = "best evaluation of each agent"  # which may be of several timesteps
    numbers = ("timesteps", "agents", "last returns", best, "final evaluation", "steps/s", "recoveries")
    columns = ("run", "environment", "state", *numbers, "time")
    rows = [[name, *_summed(run)] for run, name in zip(runs, names, strict=True)]
    known = [index for index, cells in enumerate(zip(*rows, strict=True)) if set(cells) != {"-"}]
    table = _table(body, [columns[one] for one in known], [[row[one] for one in known] for row in rows], numbers)
    table.set("class", "summary")
    for number, line in enumerate(list(table)[1:]):
        line[2].set("class", line[2].text or "")
        if len(runs) > 1:
            name = line[0].text
            line[0].text = None
            square = SubElement(
                line[0], "i", {"class": "run", "style": f"background: {COLOURS[number % len(COLOURS)]}"}
            )
            square.tail = name


def _summed(run: RunReader) -> list[str]:
    last, best, rates = (
        [one(values) for series in run.metrics.get(tag, {}).values() if (values := series.finite)]
        for tag, one in ((RETURN, itemgetter(-1)), (EVALUATED, max), (RATE, fmean))
    )
    final = [fmean(returns) for result in run.evaluation if (returns := returns_of(result))]
    took = None if run.began is None or run.written is None else max(0.0, run.written - run.began)
    return [
        run.env,
        "killed" if run.is_killed else run.state,
        f"{run.timestep:,} of {run.timesteps:,}",
        f"{run.num_scopes}",
        *map(_range, (last, best, final)),
        f"{sum(rates):,.0f}" if rates else "-",
        f"{len(run.recoveries)}",
        "-" if took is None else duration(took),
    ]


def _range(values: Sequence[float]) -> str:
    """Format the mean over agents and, in a second line, their range."""
    if not values:
        return "-"
    mean = rounded(fmean(values))
    return mean if len(values) == 1 else f"{mean}\n{rounded(min(values))} to {rounded(max(values))}"


def _evaluations(body: Element, runs: Sequence[RunReader], names: Sequence[str]) -> None:
    if not any(run.evaluation for run in runs):
        return
    _add(body, "h2", "Final evaluation")
    numbers = ("scope", "episodes", "return", "deviation", "min", "max")
    rows = [
        [name, *_evaluated(scope, result)]
        for run, name in zip(runs, names, strict=True)
        for scope, result in enumerate(run.evaluation)
    ]
    is_open = len(rows) <= _MOST_ROWS
    parent = body if is_open else _details(body, f"{len(rows)} simultaneous agents", is_open=False)
    if len(runs) == 1:
        _table(parent, (*numbers, "weights"), [row[1:] for row in rows], numbers)
    else:
        _table(parent, ("run", *numbers, "weights"), rows, numbers)


def _evaluated(scope: int, result: dict[str, Any]) -> list[str]:
    returns, weights = returns_of(result), at(result, "weights", kind=str) or ""
    values = [fmean(returns), pstdev(returns), min(returns), max(returns)] if returns else []
    return [f"{scope}", f"{len(returns)}", *(map(rounded, values) if values else "----"), weights[:8]]


def _faults(body: Element, runs: Sequence[RunReader], names: Sequence[str]) -> None:
    rows = [
        [name, *(_plain(fault.get(key)) for key in ("timestep", "scopes", "cause", "seconds", "replayed", "message"))]
        for run, name in zip(runs, names, strict=True)
        for fault in run.recoveries
    ]
    if rows:
        _add(body, "h2", "Faults and recoveries")
        columns = ("run", "timestep", "scopes", "cause", "seconds", "replayed", "message")
        parent = body if len(rows) <= _MOST_ROWS else _details(body, f"{len(rows)} recoveries", is_open=False)
        _table(parent, columns, rows[:_MOST_FAULTS], ("timestep", "seconds", "replayed"))


def _compared(body: Element, names: Sequence[str], found: Sequence[Mapping[str, str]]) -> None:
    """Add a table with a column for each run; differences come first."""
    keys = list(dict.fromkeys(key for each in found for key in each))
    rows = {key: [each.get(key, "-") for each in found] for key in keys}
    other = {key: row for key, row in rows.items() if len(set(row)) > 1}
    if other:
        table = _table(body, ("", *names), [[key, *row] for key, row in other.items()])
        for line in list(table)[1:]:
            line.set("class", "other")
    same = [[key, row[0]] for key, row in rows.items() if key not in other]
    if same:
        told = f"{len(same)} values" if len(found) == 1 else f"{len(same)} values that all runs share"
        _table(_details(body, told, is_open=False), ("", "value"), same)


def _grouped(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration in which neighbours among the agents that are equal are one."""
    agents = config.get("agents")
    if not isinstance(agents, list):
        return dict(config)
    grouped: dict[str, Any] = {}
    for _, group in groupby(enumerate(agents), key=lambda pair: json.dumps(pair[1], sort_keys=True, default=str)):
        members = list(group)
        first, last = members[0][0], members[-1][0]
        name = "*" if len(members) == len(agents) else f"{first}" if first == last else f"{first} to {last}"
        grouped[name] = members[0][1]
    return {**config, "agents": grouped}


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the keys and values of plain data, those of lists of plain values in one."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        for index, item in enumerate(value):
            yield from _flat(item, f"{key}.{index}")
    else:
        yield key, _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _problems(body: Element, runs: Sequence[RunReader], names: Sequence[str]) -> None:
    rows = [[name, file, told] for run, name in zip(runs, names, strict=True) for file, told in run.problems.items()]
    if rows:
        _add(body, "h2", "What could not be read")
        _table(body, ("run", "file", "problem"), rows)
