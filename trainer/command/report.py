"""`lockstep report`: a page and pictures of one or several runs, from their run directories."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from orchestrator.files import list_names, make_folder, named_errors, open_url, replace_at
from trainer._redaction import escaped, redacted
from trainer.command.report_figures import COLOURS, FIGURES, Figures
from trainer.command.report_page import page
from trainer.command.run_reader import RunReader
from trainer.command.sweep import distinct, grouped
from workers.errors import ConfigError

__all__ = ["write_report"]

_LONGEST = 50
"""Most characters of a run's name in a legend."""


def write_report(urls: Sequence[str], output: str) -> Iterator[str]:
    """Write ``report.html``, which has everything in it, and each figure as a PNG beside it.

    Args:
        urls: The run directories.
        output: A folder, or a URL that fsspec supports; files of an earlier report are replaced or removed.

    Yields:
        Lines that tell what was written.

    Raises:
        ConfigError: One of them is no run directory, matplotlib is not installed, or the folder cannot be written.
    """
    runs = [RunReader(url) for url in urls]
    names = _names(runs)
    pictures = Figures(*_curves(runs, names)).draw()
    files = {f"{name}.png": data for name, data in pictures.items()} | {"report.html": page(runs, names, pictures)}
    url, filesystem, path = open_url(output, "folder of the report")
    try:
        make_folder(filesystem, path, private=False)
        for name, data in files.items():
            replace_at(filesystem, f"{path}/{name}", data)
        with named_errors():
            for name in {f"{one}.png" for one in FIGURES} - files.keys() & {*list_names(filesystem, path)}:
                filesystem.rm(f"{path}/{name}")
    except OSError as error:
        raise ConfigError(f"the folder of the report {url!r} cannot be written: {error}") from error
    for run, name in zip(runs, names, strict=True):
        yield from (f"{name}: {file}: {told}" for file, told in run.problems.items())
    yield from (redacted(os.path.join(url, name)) for name in files)


def _curves(runs: Sequence[RunReader], names: Sequence[str]) -> tuple[Sequence[RunReader], Sequence[str]]:
    """Return what is drawn, and its names: the runs or, of a single one, the agents of each of its configurations."""
    agents = runs[0].config.get("agents")
    if len(runs) > 1 or not isinstance(agents, list) or not all(isinstance(agent, dict) for agent in agents):
        return runs, names
    groups = grouped(agents)
    if not 1 < len(groups) < len(agents) or len(groups) > len(COLOURS):
        return runs, names
    return [runs[0].only(scopes) for scopes in groups.values()], _labels(label.replace("cfg.", "") for label in groups)


def _names(runs: Sequence[RunReader]) -> list[str]:
    """Return what each run is called: the name of its directory or, where several have the same, what differs."""
    count = Counter(run.name for run in runs)
    same = [run.url.split("/") for run in runs if count[run.name] > 1]
    first = _shared(same)
    last = _shared([parts[first:][::-1] for parts in same])
    return _labels(
        run.name if count[run.name] == 1 else "/".join(parts[first : len(parts) - last]) or run.name
        for run, parts in ((run, run.url.split("/")) for run in runs)
    )


def _shared(paths: Sequence[Sequence[str]]) -> int:
    """Return the number of parts at the start that are equal in all paths."""
    alike = [len({*parts}) == 1 for parts in zip(*paths, strict=False)]
    return [*alike, False].index(False)


def _labels(names: Iterable[str]) -> list[str]:
    """Return a different label of a legend for each name."""
    return distinct(map(_shortened, names))


def _shortened(name: str) -> str:
    """Return a name for a legend, from which matplotlib would leave out one that begins with an underscore."""
    name = " ".join(escaped(name).split())
    short = name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2]}...{name[-_LONGEST // 2 :]}"
    return f" {short}" if short.startswith("_") else short
