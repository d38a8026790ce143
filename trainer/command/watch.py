"""`lockstep watch`: the table of a run elsewhere, from its run directory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from statistics import fmean

import rich.console

from orchestrator.run_dir import CONFIG, RunDirectory
from trainer._redaction import redacted
from trainer.callbacks.table import Screen
from trainer.callbacks.view import EVALUATED, RATE, RunView, ScopeView, duration
from trainer.command.run_reader import RunReader, returns_of

__all__ = ["view_of", "watch"]

_PAUSE, _PAUSE_AT_URL = 1.0, 5.0
"""Seconds between two looks into the directory: on a disk, and elsewhere."""

_TELLING = 10.0
"""Seconds between two lines of progress."""

_PATIENCE = 10.0
"""Seconds to wait for a run that may be about to begin."""

_LONG = 60.0
"""Seconds without a write after which it is said."""


def watch(url: str) -> Iterator[str]:
    """Show a run until it ends: as a table in a terminal, else as lines.

    Args:
        url: The run directory.

    Yields:
        Lines; in a terminal only the last one, and the first one where the run has yet to begin.

    Raises:
        ConfigError: It is no run directory, also after a while.
        OSError: It cannot be read.
        SystemExit: The run has failed, or was killed.
    """
    yield from _awaited(RunDirectory(url))
    reader, console = RunReader(url), rich.console.Console()
    if Screen.is_possible(console):
        _draw(reader, console)
    else:
        yield from _told(reader)
    yield _ending(reader)
    if reader.state not in ("finished", "interrupted"):
        raise SystemExit(1)


def _awaited(directory: RunDirectory) -> Iterator[str]:
    """Wait until a run has begun in a directory, but not for long."""
    if directory.exists(CONFIG):
        return
    yield f"waiting up to {_PATIENCE:g} seconds for a run to begin in {redacted(directory.url)}"
    deadline = time.monotonic() + _PATIENCE
    while not directory.exists(CONFIG) and time.monotonic() < deadline:
        time.sleep(_PAUSE)


def _draw(reader: RunReader, console: rich.console.Console) -> None:
    with closing(Screen(console)) as screen:
        screen.draw(view_of(reader))
        while not reader.has_ended:
            _read_again(reader)
            screen.draw(view_of(reader))


def _told(reader: RunReader) -> Iterator[str]:
    told, line = float("-inf"), ""
    while True:
        view = view_of(reader)
        is_time = time.monotonic() - told >= _TELLING or reader.has_ended
        if is_time and line != (line := f"{view}; {view.fault}" if view.fault else str(view)):
            told = time.monotonic()
            yield line
        if reader.has_ended:
            return
        _read_again(reader)


def _read_again(reader: RunReader) -> None:
    """Read what was added to the directory, after a pause."""
    time.sleep(_PAUSE if reader.is_local else _PAUSE_AT_URL)
    reader.read()


def view_of(reader: RunReader) -> RunView:
    """Return what is shown of the run in a directory."""
    scalars: list[dict[str, float]] = [{} for _ in range(reader.num_scopes)]
    for tag, by_scope in reader.metrics.items():
        for scope, series in by_scope.items():
            scalars[scope][tag] = series.values[-1]
    for one, result in zip(scalars, reader.evaluation, strict=False):
        if returns := returns_of(result):
            one[EVALUATED] = fmean(returns)
    evaluated = reader.metrics.get(EVALUATED, {})
    best = {scope: max(series.finite, default=None) for scope, series in evaluated.items()}
    state = "killed" if reader.is_killed else reader.state
    if state == "finished" and reader.stopped:
        state = f"stopped: {reader.stopped}"
    seconds = None
    if reader.began is not None and reader.written is not None:
        seconds = max(0.0, (time.time() if state == "running" else reader.written) - reader.began)
    return RunView(
        name=f"{reader.name}, {reader.env}",
        state=state,
        timestep=reader.timestep,
        timesteps=reader.timesteps,
        scopes=[ScopeView(index=index, scalars=one, best=best.get(index)) for index, one in enumerate(scalars)],
        seconds=seconds,
        remaining=_remaining(reader, scalars) if state == "running" else None,
        checkpoint=reader.checkpoints[-1] if reader.checkpoints else None,
        evaluation=max((max(series.timesteps) for series in evaluated.values()), default=None),
        recoveries=len(reader.recoveries),
        fault=_fault(reader, state),
    )


def _remaining(reader: RunReader, scalars: list[dict[str, float]]) -> float | None:
    """Return the seconds until the end, at the speed of the last metrics."""
    rates = [one[RATE] for one in scalars if RATE in one]
    if reader.num_envs < 1 or len(rates) < len(scalars) or not sum(rates) > 0:
        return None
    return max(0, reader.timesteps - reader.timestep) * reader.num_envs / sum(rates)


def _fault(reader: RunReader, state: str) -> str:
    """Return what is worth knowing: a silence, a file that cannot be read, or the last recovery."""
    silence = None if reader.written is None else time.time() - reader.written
    if state == "running" and silence is not None and silence > _LONG:
        return f"nothing was written for {duration(silence)}"
    if told := {name: one for name, one in reader.problems.items() if name != "versions.json"}:
        return "; ".join(f"{name}: {one}" for name, one in told.items())
    if not reader.recoveries:
        return ""
    last = reader.recoveries[-1]
    return f"scopes {last.get('scopes')} recovered at timestep {last.get('timestep')}: {last.get('cause')}"


def _ending(reader: RunReader) -> str:
    """Return how the run ended."""
    if not reader.is_killed:
        return f"{reader.url} is {reader.state}" + (f", because {reader.stopped}" if reader.stopped else "")
    when = "?" if reader.written is None else f"{datetime.fromtimestamp(reader.written):%Y-%m-%d %H:%M:%S}"
    told = f"{reader.url} was killed: no process trains there, and nothing was written since {when}"
    return f"{told}; to go on: lockstep resume {reader.url}"
