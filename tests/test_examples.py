"""The examples run as they stand, and the main job prints the same lines in both modes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def lines_of(name: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", ["local.py", "ray_actors.py"])
def test_library_call_is_short_and_runs(name):
    assert len((EXAMPLES / name).read_text().splitlines()) < 40
    lines = lines_of(name)
    assert lines[-2].startswith("environments 0:32: ")
    assert lines[-1].startswith("environments 32:64: ")


def test_main_job_prints_the_same_lines_in_both_modes():
    arguments = ["--timesteps", "400", "--seed", "5"]
    local = lines_of("train_cartpole.py", *arguments)[-2:]
    for index, line in enumerate(local):
        assert re.fullmatch(rf"agent {index} return \d+\.\d\d weights [0-9a-f]{{64}}", line)
    assert local[0].split()[-1] != local[1].split()[-1]
    assert lines_of("train_cartpole.py", *arguments, "--orchestrator", "ray")[-2:] == local
