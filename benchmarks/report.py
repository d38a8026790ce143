"""Reporting for all benchmarks: tables, spreads, the machine, and sections of RESULTS.md."""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "RESULTS.md"


def write_section(name: str, text: str) -> None:
    """Replace the text between the markers of a section in RESULTS.md. A new section goes to the end."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
    before, found, rest = old.partition(begin)
    if found:
        _, closed, after = rest.partition(end)
        if not closed:
            raise ValueError(f"{RESULTS.name} has {begin!r} but no {end!r} after it; add it where the section ends")
    else:
        before, after = f"{old.rstrip()}\n\n".lstrip(), "\n"
    _replace(RESULTS, f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}")


def _replace(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def describe_machine(*packages: str) -> str:
    """Return one line: type of the machine, cores, and the versions of Python and of `packages`."""
    versions = "".join(f", {package} {version(package)}" for package in packages)
    return f"{platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}{versions}"


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Format median and range: ``"median (min to max)"``."""
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def table(columns: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Format a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
