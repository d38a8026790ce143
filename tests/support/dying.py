"""The lockstep command, in a process that ends itself at some moment.

    python -m tests.support.dying MOMENT ARGUMENTS

MOMENT is a signal and a time, such as ``KILL@0.83`` (seconds after training began); or a signal and a write, such as
``KILL#37`` (before the 37th time that a file or folder of a run directory is opened for writing, renamed or removed).
"""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from tests.support.processes import PATIENCE, ROOT

_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def main() -> None:
    """Run the command until the moment."""
    name, kind, number = re.fullmatch("([A-Z]+)([@#])(.+)", sys.argv[1]).groups()  # type: ignore[union-attr]
    what = getattr(signal, f"SIG{name}")
    arguments = sys.argv[2:]
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a test may run without a terminal, and ignore it
    if kind == "#":
        _end_at_write(int(number), what, arguments)
    else:
        _end_after(float(number), what)
    from trainer.command.cli import main as command

    sys.exit(command(arguments))


def _end_at_write(number: int, what: signal.Signals, arguments: list[str]) -> None:
    place = next(one.partition("=")[2] for one in [*arguments, f"={arguments[1]}"] if "/run" in one)
    count = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        is_write = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (is_write or event in _CHANGES) and args and place in str(args[0]):
            count += 1
            if count == number:
                os.kill(os.getpid(), what)

    sys.addaudithook(hook)


def _end_after(seconds: float, what: signal.Signals) -> None:
    from trainer.callbacks.loop import Loop

    groups = Loop.groups

    def timed(loop: Loop) -> Generator[int]:
        timer = threading.Timer(seconds, os.kill, (os.getpid(), what))
        timer.daemon = True
        timer.start()
        yield from groups(loop)

    Loop.groups = timed  # type: ignore[method-assign,assignment]


def lockstep(moment: str | None, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own.

    Args:
        moment: When it ends itself; None: it does not.
        arguments: The arguments of the command.
    """
    module = ["trainer"] if moment is None else ["tests.support.dying", moment]
    return subprocess.run(
        [sys.executable, "-m", *module, *map(str, arguments)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def results(folder: Path) -> dict[str, Any]:
    """Return what a finished run has written, without wall-clock times: agents, evaluation, metrics, events."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, Any] = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in [*folder.glob("agents/*/*"), folder / "evaluation.json", folder / "status.json"]
    }
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    rows = [row for row in rows if not row[2].startswith("Recovery / ")]
    found["metrics"] = [row for row in rows if not re.search(r"time \(ms\)$|per second$", row[2])]
    for scope in sorted(folder.glob("tensorboard/*")):
        reader = EventAccumulator(str(scope), size_guidance={"scalars": 0})
        reader.Reload()
        tags = [tag for tag in reader.Tags()["scalars"] if not tag.startswith("Recovery / ")]
        found[scope.name] = {tag: [event.step for event in reader.Scalars(tag)] for tag in tags}
        index = scope.name.removeprefix("scope_")
        expected: dict[str, list[int]] = {}
        for row in rows[1:]:
            if row[1] == index:
                expected.setdefault(row[2], []).append(int(row[0]))
        assert found[scope.name] == expected
    return found


def seconds_of_training(folder: Path, *arguments: object) -> float:
    """Train in a process of its own, and return how long the loop took."""
    start = time.perf_counter()
    done = lockstep(None, *arguments)
    assert done.returncode == 0, done.stderr
    created = (folder / "versions.json").stat().st_mtime
    return min((folder / "status.json").stat().st_mtime - created, time.perf_counter() - start)


if __name__ == "__main__":
    main()
