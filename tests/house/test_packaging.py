"""The extras, the pins, and the file for Ray's cluster launcher."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.processes import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
REQUIREMENTS = sorted({*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)})


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    return loaded


def test_the_extras():
    assert {"torch", "jax", "warp", "skrl", "mujoco", "envpool", "multiagent", "dev", "all"} == set(EXTRAS)
    (everything,) = map(Requirement, EXTRAS["all"])
    assert everything.name == PROJECT["name"] == "lockstep-rl"
    assert everything.extras == set(EXTRAS) - {"all", "dev"}


@pytest.mark.parametrize("line", [line for line in REQUIREMENTS if not line.startswith("lockstep-rl")])
def test_every_dependency_is_pinned_and_installed_at_that_version(line: str):
    requirement = Requirement(line)
    pinned = pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pinned)
    # a build for one device has a local version: 2.13.0+cpu
    assert Version(importlib.metadata.version(requirement.name)).public == pinned


def test_torch_is_the_cpu_build():
    assert pins()["torch"] == "2.13.0"
    installs = [file for file in ("Makefile", "cluster.yaml") if "torch==2.13.0" in (ROOT / file).read_text("utf-8")]
    assert installs == ["Makefile", "cluster.yaml"]


@pytest.mark.parametrize("package", ["trainer", "orchestrator", "workers"])
def test_packages_are_typed(package: str):
    assert (ROOT / package / "py.typed").read_text(encoding="utf-8") == ""
    assert (ROOT / package / "__init__.py").is_file()


def test_cluster_is_valid_for_ray():
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(cluster())
    validate_config(prepared)
    given = cluster()
    assert prepared["max_workers"] == len(given["provider"]["worker_ips"]) == 2
    for commands in ("head_start_ray_commands", "worker_start_ray_commands", "setup_commands"):
        assert prepared[commands] == given[commands]


def test_cluster_with_a_typo_is_refused():
    from jsonschema import ValidationError  # type: ignore[import-untyped]
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(ValidationError, match="file_mount"):
        validate_config({**cluster(), "file_mount": {}})


@pytest.mark.parametrize("role", ["head", "worker"])
def test_ray_starts_with_the_token(role: str):
    start = cluster()[f"{role}_start_ray_commands"][-1]
    exported = re.match(r"export ([^;]*);", start)
    assert exported is not None
    assert "RAY_AUTH_MODE=token" in exported[1].split()
    assert "export RAY_AUTH_MODE=token" in start
    assert start.index("export RAY_AUTH_MODE=token") < start.index("ray start")
    assert ("RAY_enable_autoscaler_v2=0" in exported[1].split()) == (role == "head")
    assert ("--head" in start) == (role == "head")
    assert start.endswith(
        "--autoscaling-config=~/ray_bootstrap_config.yaml" if role == "head" else "=$RAY_HEAD_IP:6379"
    )


def test_every_host_gets_the_token_and_the_code():
    assert cluster()["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token", "~/lockstep": "."}
    installed = [command for command in cluster()["setup_commands"] if "constraints.txt" in command]
    assert len(installed) == 2
    expanded = subprocess.run(["bash", "-c", f"echo {installed[-1]}"], capture_output=True, text=True, timeout=10)
    assert expanded.stdout.split()[-1] == f"{Path.home()}/lockstep[torch]"


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
