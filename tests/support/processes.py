"""Processes of the tests: Python in a new process, and descendants of this one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import psutil

__all__ = ["PATIENCE", "ROOT", "descendants", "python", "still_alive", "wait_for"]

ROOT = Path(__file__).parents[2]

PATIENCE = 300.0
"""Deadline, in seconds, for things that are normally quick: on a loaded machine they may be slow without fault."""


def python(
    *arguments: str | Path, cwd: Path = ROOT, env: Mapping[str, str | None] = {}
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments, such as ``"-c", program``; it does not see the Ray of this process.

    Args:
        arguments: The command line.
        cwd: The working directory.
        env: Environment variables to set; None removes one.
    """
    changed = {**os.environ, "RAY_ADDRESS": None, **env}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={name: value for name, value in changed.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def descendants(word: str = "") -> list[psutil.Process]:
    """Return the living descendants of this process with `word` in their command line."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if word in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:  # gone, or a zombie that its parent is about to collect
            continue
    return found


def wait_for(path: Path) -> None:
    """Wait until another process has made a file."""
    for _ in range(int(PATIENCE / 0.05)):
        if path.exists():
            return
        threading.Event().wait(0.05)
    raise TimeoutError(f"no {path}")


def still_alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Wait for processes to end, and return those that do not."""
    return list(psutil.wait_procs(processes, timeout=PATIENCE)[1])
