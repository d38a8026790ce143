"""The files for Ray's cluster launcher: valid for Ray, and their commands do what they should on a host.

The commands are run as Ray runs them, by an interactive login shell, in a home directory with a ``ray`` that only says
how it was called.
"""

from __future__ import annotations

import re
import resource
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError  # type: ignore[import-untyped]
from packaging.version import Version
from ray.autoscaler._private.command_runner import _with_interactive
from ray.autoscaler._private.util import prepare_config, validate_config, with_envs

from tests.support.packaging import PINS
from tests.support.processes import ROOT

FILES = ["cluster.yaml", "deploy/aws.yaml", "deploy/gcp.yaml"]
CLOUDS = FILES[1:]

INSTALLED = ["LICENSE", "README.md", "constraints.txt", "orchestrator", "pyproject.toml", "trainer", "workers"]

# prints how it was called, and what it would hand on to the jobs of the cluster
RAY = """#!/bin/sh
echo "ray $*"
echo "RAY_AUTH_MODE=$RAY_AUTH_MODE"
echo "PYTHONWARNINGS=${PYTHONWARNINGS-unset}"
echo "RAY_enable_autoscaler_v2=$RAY_enable_autoscaler_v2"
echo "open files: $(ulimit -n)"
"""
# as Ubuntu has it: what follows is not for shells of programs
BASHRC = "case $- in\n    *i*) ;;\n      *) return;;\nesac\nalias ll='ls -l'\n"


def load(file: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))
    return loaded


def setups(file: str) -> dict[str, list[str]]:
    """The set-up commands of the head and of each type of worker, as Ray puts them together."""
    config = prepare_config(load(file))
    found = {"head": config["head_setup_commands"], "worker": config["worker_setup_commands"]}
    for name, kind in config["available_node_types"].items():
        if "worker_setup_commands" in kind:  # they replace the others
            found[name] = kind["worker_setup_commands"]
    return found


_, HARD_LIMIT = resource.getrlimit(resource.RLIMIT_NOFILE)
AS_MANY_AS_HERE = 100_000 if HARD_LIMIT == resource.RLIM_INFINITY else HARD_LIMIT
CASES = [(file, node) for file in FILES for node in setups(file)]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The home directory of a host: the token, and a stand-in for ray in Lockstep's environment."""
    (tmp_path / ".bashrc").write_text(BASHRC, encoding="utf-8")
    (tmp_path / ".profile").write_text('. "$HOME/.bashrc"\n', encoding="utf-8")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("not-a-secret", encoding="utf-8")
    (tmp_path / ".ray" / "auth_token").chmod(0o644)
    (tmp_path / "lockstep-venv" / "bin").mkdir(parents=True)
    for name in ("ray", "lockstep"):
        program = tmp_path / "lockstep-venv" / "bin" / name
        program.write_text(RAY, encoding="utf-8")
        program.chmod(0o755)
    return tmp_path


def run(command: str, home: Path, *, most_open_files: int = 1024) -> str:
    """Run a command as Ray does over SSH, and return its output."""
    over_ssh = f"ulimit -Sn 256; ulimit -Hn {most_open_files}; {' '.join(_with_interactive(command))}"
    done = subprocess.run(
        ["sh", "-c", over_ssh],
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,  # without the terminal of whoever runs the tests
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def set_up(file: str, node: str, home: Path) -> None:
    """Run the set-up commands that concern the home directory, and not those that install something."""
    for command in setups(file)[node]:
        if ".bashrc" in command or ".ray/" in command:
            run(command, home)


@pytest.mark.parametrize("file", FILES)
def test_ray_accepts_the_file(file: str):
    prepared = prepare_config(load(file))
    validate_config(prepared)
    workers = sum(kind["max_workers"] for kind in prepared["available_node_types"].values())
    assert 0 < prepared["max_workers"] <= workers


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "where", ["file_mount", "provider.security_group.Name", "available_node_types.head.max_worker"]
)
def test_ray_refuses_a_typo(file: str, where: str):
    config = load(file)
    *path, last = where.split(".")
    target = config
    for key in path:
        target = target.setdefault(key, {})
    target[last] = 1
    with pytest.raises(ValidationError, match=last):
        validate_config(config)


@pytest.mark.parametrize("file", FILES)
def test_nothing_of_rays_defaults_is_left(file: str):
    """For clouds they install another Ray and open the dashboard."""
    given, prepared = load(file), prepare_config(load(file))
    for role in ("head", "worker"):
        assert prepared[f"{role}_start_ray_commands"] == given[f"{role}_start_ray_commands"]
        extra = given.get(f"{role}_setup_commands", [])
        assert prepared[f"{role}_setup_commands"] == given["setup_commands"] + extra


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(("role", "version"), [("head", "1"), ("head", "2"), ("worker", "2")])
def test_ray_starts_with_the_token_and_what_jobs_need(file: str, role: str, version: str, home: Path):
    """`ray up` chooses version 2 of the autoscaler, with which clusters of the local provider have no workers."""
    autoscaler = {"RAY_enable_autoscaler_v2": "1"} if version == "2" else {}
    set_up(file, role, home)
    commands = with_envs(load(file)[f"{role}_start_ray_commands"], {**autoscaler, "RAY_HEAD_IP": "192.0.2.10"})
    stop, start = [run(command, home) for command in commands[:2]]
    assert stop.startswith("ray stop")
    call, *environment = start.splitlines()
    assert "RAY_AUTH_MODE=token" in environment
    assert "PYTHONWARNINGS=unset" in environment
    if role == "worker":
        assert call == "ray start --address=192.0.2.10:6379"
        return
    assert call == "ray start --head --port=6379 --autoscaling-config=~/ray_bootstrap_config.yaml"
    chosen = "0" if load(file)["provider"]["type"] == "local" else autoscaler.get("RAY_enable_autoscaler_v2", "")
    assert f"RAY_enable_autoscaler_v2={chosen}" in environment


@pytest.mark.parametrize("most", [1024, AS_MANY_AS_HERE])
@pytest.mark.parametrize("file", FILES)
def test_ray_may_open_65536_files_or_as_many_as_the_host_allows(file: str, most: int, home: Path):
    for role in ("head", "worker"):
        set_up(file, role, home)
        start = run(load(file)[f"{role}_start_ray_commands"][1], home, most_open_files=most)
        assert f"open files: {min(65_536, most)}\n" in start


@pytest.mark.parametrize(("file", "node"), CASES)
def test_ray_and_lockstep_are_found_and_use_the_token(file: str, node: str, home: Path):
    """By jobs, which get what `ray start` has; by `ray down`, which calls `ray stop`; and by programs over SSH."""
    for _ in range(2):  # `ray up` may run it again
        set_up(file, node, home)
    assert run("ray stop", home).startswith("ray stop\nRAY_AUTH_MODE=token\n")
    assert run("lockstep train", home).startswith("ray train\nRAY_AUTH_MODE=token\n")
    program = subprocess.run(
        ["bash", "-c", ". ~/.bashrc; ray stop"],  # a shell that is not interactive
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert program.stdout.startswith("ray stop\nRAY_AUTH_MODE=token\n"), program.stderr
    bashrc = (home / ".bashrc").read_text(encoding="utf-8")
    assert bashrc.count("lockstep-venv") == 1
    assert BASHRC in bashrc


@pytest.mark.parametrize("file", FILES)
def test_a_host_without_bashrc_is_set_up_as_well(file: str, home: Path):
    (home / ".bashrc").unlink()
    (home / ".profile").unlink()
    set_up(file, "worker", home)
    assert run("ray stop", home).startswith("ray stop\nRAY_AUTH_MODE=token\n")


@pytest.mark.parametrize(("file", "node"), CASES)
def test_only_its_user_reads_the_token(file: str, node: str, home: Path):
    assert load(file)["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    set_up(file, node, home)
    assert (home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("file", FILES)
def test_the_file_says_how_to_make_a_token(file: str):
    head = [line for line in (ROOT / file).read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any("ray get-auth-token --generate" in line for line in head)


@pytest.mark.parametrize("file", FILES)
def test_hosts_get_what_is_installed_and_no_environments_runs_and_caches(file: str):
    """Ray reads every file of a mount at each `ray up`, whatever rsync excludes."""
    config = load(file)
    mounts = {target: source for target, source in config["file_mounts"].items() if target.startswith("~/lockstep")}
    assert mounts == {f"~/lockstep/{name}": name for name in INSTALLED}
    assert all((ROOT / name).exists() for name in INSTALLED)
    assert config["rsync_exclude"] == ["__pycache__"]


@pytest.mark.parametrize(("file", "node"), CASES)
def test_the_set_up_installs_the_tested_versions_and_shows_its_progress(file: str, node: str):
    installs = [command for command in setups(file)[node] if "pip install" in command]
    torch, lockstep = [shlex.split(install) for install in installs][:2]
    for words in map(shlex.split, installs):
        assert words[0].startswith("~/lockstep-venv/bin/")
        assert words[words.index("--constraint") + 1] == "~/lockstep/constraints.txt"
        assert not {"--quiet", "-q", "-qq"} & set(words)
    (pin,) = [word for word in torch if word.startswith("torch==")]
    version = Version(pin.removeprefix("torch=="))
    assert version.public == PINS["torch"]
    has_gpus = node.startswith("gpu")
    if file in CLOUDS:
        assert (version.local == "cpu") != has_gpus
        assert ("https://download.pytorch.org/whl/cpu" in torch) != has_gpus
    assert lockstep[-1] == "$HOME/lockstep[torch,multiagent]"
    assert "python3.11 -m venv ~/lockstep-venv" in setups(file)[node]


@pytest.mark.parametrize("file", FILES)
def test_the_dashboard_stays_on_its_host(file: str):
    """Ray's default is 127.0.0.1; who uses it makes a tunnel."""
    config = load(file)
    assert "--dashboard-host" not in str(config)
    assert "IpPermissions" not in config["provider"].get("security_group", {})


@pytest.mark.parametrize("file", CLOUDS)
def test_ray_down_deletes_the_nodes(file: str):
    assert load(file)["provider"]["cache_stopped_nodes"] is False


def test_clouds_differ_only_where_they_must():
    aws, gcp = map(load, CLOUDS)
    for key in ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands", "file_mounts"):
        assert aws[key] == gcp[key]
    for key in ("rsync_exclude", "idle_timeout_minutes"):
        assert aws[key] == gcp[key]
    assert set(aws["available_node_types"]) == set(gcp["available_node_types"]) == {"head", "cpu_worker", "gpu_worker"}
    ours, theirs = [cloud["available_node_types"]["gpu_worker"]["worker_setup_commands"] for cloud in (aws, gcp)]
    assert ours == theirs


@pytest.mark.parametrize("file", CLOUDS)
def test_workers_with_gpus_differ_in_torch_alone(file: str):
    """Their list replaces that of the others, so it must do all the rest, too."""
    nodes = setups(file)
    with_gpus = [command for command in nodes["gpu_worker"] if command != "nvidia-smi"]
    assert len(with_gpus) == len(nodes["worker"])
    differ = [pair for pair in zip(nodes["worker"], with_gpus, strict=True) if pair[0] != pair[1]]
    assert [re.search(r"torch==\S+", command)[0] for command in differ[0]] == [  # type: ignore[index]
        f"torch=={PINS['torch']}+cpu",
        f"torch=={PINS['torch']}",
    ]
    assert len(differ) == 1


@pytest.mark.parametrize("file", CLOUDS)
def test_resources_of_google_cloud_are_those_of_the_machine_types(file: str):
    """On AWS Ray looks them up."""
    for kind in load(file)["available_node_types"].values():
        if "machineType" not in kind["node_config"]:
            assert kind["resources"] == {}
            continue
        family, _, cpus = kind["node_config"]["machineType"].split("-")
        expected = {"CPU": int(cpus), **({"GPU": 1} if family == "g2" else {})}
        assert kind["resources"] == expected
