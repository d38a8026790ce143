"""The extras, the pins, and the Makefile."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.packaging import PINS
from tests.support.processes import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
REQUIREMENTS = sorted({*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)})


def test_the_extras():
    used = {"torch", "jax", "warp", "skrl", "mujoco", "envpool", "multiagent", "onnx", "report", "video"}
    assert used | {"wandb", "mlflow", "trackio", "dev", "all"} == set(EXTRAS)
    (everything,) = map(Requirement, EXTRAS["all"])
    assert everything.name == PROJECT["name"] == "lockstep-rl"
    assert everything.extras == set(EXTRAS) - {"all", "dev"}


@pytest.mark.parametrize("line", [line for line in REQUIREMENTS if not line.startswith("lockstep-rl")])
def test_every_dependency_is_pinned_and_installed_at_that_version(line: str):
    requirement = Requirement(line)
    pinned = PINS[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pinned)
    # a build for one device has a local version: 2.13.0+cpu
    assert Version(importlib.metadata.version(requirement.name)).public == pinned


def test_torch_is_the_cpu_build():
    assert PINS["torch"] == "2.13.0"
    assert "torch==2.13.0" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("package", ["trainer", "orchestrator", "workers"])
def test_packages_are_typed(package: str):
    assert (ROOT / package / "py.typed").read_text(encoding="utf-8") == ""
    assert (ROOT / package / "__init__.py").is_file()


def test_the_makefile_has_its_targets():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    assert {"help", "setup", "train", "test", "check", "format", "bench", "bench-peers"} <= targets
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert set(phony.split()) == targets
    readme = ROOT / "README.md"
    promised = re.findall(r"\bmake ([a-z]+)\b", readme.read_text(encoding="utf-8")) if readme.exists() else []
    helped = re.findall(r'echo "make ([a-z]+)', text)
    assert set(helped) | set(promised) <= targets
