"""Disks that are full while a run trains: it says so, and the last good checkpoint stays."""

from __future__ import annotations

import builtins
import csv
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.command.test_cli import Counting
from tests.command.test_resume import saved, short
from tests.support.command import Shown

__all__ = ["short"]


class Filling(Counting):
    """Agent that fills the disk of the run in timestep 50, and makes room in timestep 90."""

    ballast: Path

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        super().post_interaction(timestep=timestep, timesteps=timesteps)
        if timestep == 50:
            fill(self.ballast)
        if timestep == 90:
            make_room(self.ballast)

    def snapshot(self) -> dict[str, Any]:
        return {"count": self.count, "rest": "x" * 1000}

    def restore(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


FAILING: list[Path] = []
"""Folders of disks that fail."""


def fill(ballast: Path) -> None:
    if not os.path.ismount(ballast.parent):
        FAILING.append(ballast.parent)
        return
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 512)


def make_room(ballast: Path) -> None:
    FAILING.clear()
    ballast.unlink(missing_ok=True)


@contextmanager
def tmpfs(folder: Path) -> Iterator[None]:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", folder], capture_output=True)
    if done.returncode:
        pytest.skip("this user cannot mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def failing_writes() -> Iterator[None]:
    """Refuse to write files in the folders that are `FAILING`."""
    original = os.open

    def refusing(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT and any(str(path).startswith(str(folder)) for folder in FAILING):
            raise OSError(28, "No space left on device")
        return original(path, flags, *args, **kwargs)

    def opened(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if set(mode) & set("wxa") and any(str(path).startswith(str(folder)) for folder in FAILING):
            raise OSError(28, "No space left on device")
        return plain_open(path, mode, *args, **kwargs)

    plain_open = builtins.open
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", opened)
        patch.setattr(os, "open", refusing)
        yield


@pytest.mark.parametrize("disk", ["tmpfs", "failing"])
@pytest.mark.parametrize("required", [False, True])
def test_a_full_disk(disk: str, required: bool, short: Path, tmp_path: Path, command: Shown, monkeypatch: Any):
    mount = tmp_path / "disk"
    mount.mkdir()
    monkeypatch.setattr(Filling, "ballast", mount / "ballast", raising=False)
    agents = f"agents=[{{agent: '{__name__}:Filling'}}]"
    options = [agents, "trainer.timesteps=120", "evaluation.episodes=0", f"checkpoint.required={required}".lower()]
    options.append(f"logging.directory={mount}/run")
    with tmpfs(mount) if disk == "tmpfs" else failing_writes():
        code, lines, messages = command.run("train", short, "--set", *options)
        make_room(mount / "ballast")
        folder = mount / "run"
        if required:
            assert code == 1
            assert re.search("no checkpoint of timestep 56: .*No space left on device", messages)
            assert saved(folder) == [28, 42]
            code, lines, _ = command.run("resume", folder, "--set", "trainer.timesteps=49")
            assert (code, "resumed at timestep 42" in lines) == (0, True)
            assert saved(folder) == [42, 49]
        else:
            assert code == 0, messages
            for timestep in (56, 70, 84):
                told = (
                    f"no checkpoint of timestep {timestep} (the last one is that of timestep 42); training continues: "
                )
                assert told in messages
            assert saved(folder) == [112, 120]
            assert json.loads((folder / "status.json").read_text()) == {"state": "finished", "timestep": 120}
        with (folder / "metrics.csv").open(newline="") as file:
            assert all(len(row) == 4 for row in csv.reader(file))
        assert not re.findall("Traceback", messages.replace("Traceback (most recent call last):\n  File", ""))
