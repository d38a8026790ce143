"""The image: it can be built from what the context holds, has the tested versions, and runs as no root."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.version import Version

from tests.support.packaging import PINS
from tests.support.processes import ROOT
from tests.support.schedule import only_long
from trainer import __version__

TEXT = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
PACKAGES = ["orchestrator", "trainer", "workers"]


def instructions() -> list[tuple[str, str]]:
    """Instructions and their arguments, each on one line."""
    lines = [line for line in TEXT.splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = [line.partition(" ")[::2] for line in joined.splitlines()]
    return [(name, " ".join(arguments.split())) for name, arguments in found]


def arguments(name: str) -> list[str]:
    return [given for instruction, given in instructions() if instruction == name]


def in_context(path: str) -> bool:
    """Whether .dockerignore leaves a file of the root to Docker: the last pattern that fits decides."""
    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [pattern for pattern in patterns if pattern and not pattern.startswith("#")]
    assert patterns[0] == "*"
    first, *_ = Path(path).parts
    kept = f"!{first}" in patterns
    return kept and not any(f"**/{part}" in patterns for part in Path(path).parts)


def test_what_is_copied_exists_and_is_in_the_context():
    copied = [source for given in arguments("COPY") for source in given.split()[:-1]]
    assert set(PACKAGES) <= set(copied)
    for source in copied:
        assert (ROOT / source).exists(), source
        assert in_context(source), source
    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert sorted(pattern[1:] for pattern in patterns if pattern.startswith("!")) == sorted(copied)


@pytest.mark.parametrize(
    "path", [".git/config", "runs/mine/config.yaml", ".venv/bin/python", "trainer/__pycache__/x.pyc"]
)
def test_what_does_not_belong_there_is_kept_out(path: str):
    assert not in_context(path)


def test_folders_are_copied_under_their_names():
    for given in arguments("COPY"):
        *sources, target = given.split()
        assert target == "./" or sources == [target], given


def test_versions_are_the_tested_ones():
    (base,) = arguments("FROM")
    assert re.fullmatch(r"python:3\.11\.\d+-slim", base)
    installs = [shlex.split(given) for given in arguments("RUN") if given.startswith("pip install")]
    assert len(installs) == 2
    for words in installs:
        assert words[words.index("--constraint") + 1] == "constraints.txt"
    (torch,) = [word for word in installs[0] if word.startswith("torch==")]
    assert torch == f"torch=={PINS['torch']}+${{TORCH_BUILD}}"
    assert "https://download.pytorch.org/whl/${TORCH_BUILD}" in installs[0]
    assert arguments("ARG") == ["TORCH_BUILD=cpu"]
    assert ".[torch,multiagent]" in installs[1]
    assert Version(__version__) == Version(re.findall(r"--tag lockstep:(\S+)", TEXT)[0])


def test_it_runs_as_no_root_and_holds_no_secret():
    names = [name for name, _ in instructions()]
    assert arguments("USER") == ["1000"]
    assert names.index("USER") > max(position for position, name in enumerate(names) if name in ("RUN", "COPY"))
    assert not re.search("token|password|secret|RAY_AUTH", " ".join(map(" ".join, instructions())), re.IGNORECASE)


def test_programs_are_on_the_path_of_every_shell():
    """KubeRay may start Ray from a login shell, which sets PATH: nothing may depend on ENV PATH or a venv."""
    assert not any("PATH" in given for given in arguments("ENV"))
    assert "venv" not in TEXT


def daemon() -> bool:
    docker = shutil.which("docker")
    return docker is not None and subprocess.run([docker, "info"], capture_output=True, timeout=60).returncode == 0


@only_long
def test_it_can_be_built():
    if not daemon():
        pytest.skip("no Docker daemon answers")
    build = ["docker", "build", "--quiet", "--file", "deploy/Dockerfile", "."]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    assert built.returncode == 0, built.stderr
    image = built.stdout.strip()
    try:
        for command in (["lockstep", "--version"], ["bash", "--login", "-c", "ray --version && id -un"]):
            done = subprocess.run(
                ["docker", "run", "--rm", image, *command], capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["ray,", "version", PINS["ray"], "lockstep"]
    finally:
        subprocess.run(["docker", "image", "rm", "--force", image], capture_output=True, timeout=300)
