"""The checks of `lockstep doctor`: the machine, and whether a configuration can run on it."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from orchestrator.files import check_writable, open_url
from orchestrator.run_dir import RunDirectory
from trainer.command.job import lasting
from trainer.command.run import build_orchestrator, prepare
from trainer.command.run_config import OrchestratorConfig, RunConfig, parse
from trainer.versions import versions
from workers.agents import load_ppo
from workers.envs import EnvFactory, check_env
from workers.envs.making import build_rows
from workers.envs.states import explain_state
from workers.errors import ConfigError, LockstepError, close_or_log
from workers.frameworks import available_frameworks, load_framework
from workers.threads import HeldThreads

__all__ = ["LEAST_SHARED_MEMORY", "SHARED_MEMORY_REMEDY", "Finding", "can_run", "examine", "write_access"]

_SHARED_MEMORY = Path("/dev/shm")

LEAST_SHARED_MEMORY = 2**29
"""Bytes that should be free."""

SHARED_MEMORY_REMEDY = "give Ray at least 0.5 GiB: start a container with --shm-size=2g, else free space"


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        subject: What was checked.
        detail: What was found.
        remedy: What to do about it; empty if nothing is wrong.
        hinders: Whether a training cannot start, or would give other results, if something is wrong.
    """

    subject: str
    detail: str
    remedy: str = ""
    hinders: bool = True

    @property
    def healthy(self) -> bool:
        """Whether no remedy is needed."""
        return not self.remedy

    def __str__(self) -> str:
        text = f"{'ok  ' if self.healthy else 'FAIL'} {self.subject}: {self.detail}"
        return text if self.healthy else f"{text}\n     remedy: {self.remedy}"


def examine(config: RunConfig | None, *, build: bool = True) -> Iterator[Finding]:
    """Run the checks one after the other.

    Args:
        config: A configuration to check as well, or None.
        build: Whether to build its agents and environments.
    """
    found = versions()
    yield Finding("versions", ", ".join(f"{name} {value or '(not installed)'}" for name, value in found.items()))
    try:
        num_threads = build_orchestrator(config.orchestrator if config else OrchestratorConfig()).num_threads
    except ConfigError:  # reported with the rest of the configuration
        num_threads = 1
    names = [name for name in available_frameworks() if name != "numpy"]
    needed = [config.framework] if config else [] if any(map(find_spec, names)) else names
    for name in names:
        yield _framework(name, num_threads, needed=name in needed)
    yield _shared_memory()
    yield write_access(config.logging.directory if config else None)
    yield _ray(config.orchestrator if config else OrchestratorConfig())
    if config is not None and build:
        finding = can_run(config)
        yield finding
        if finding.healthy:
            yield _environments(config)
            yield _state(config)


def _framework(name: str, num_threads: int, *, needed: bool) -> Finding:
    try:
        framework = load_framework(name)
        load_ppo(name)
    except LockstepError as error:
        return Finding(name, str(error), remedy=f"pip install 'lockstep-rl[{name}]'" if needed else "")
    framework.silence()
    with HeldThreads(framework, num_threads):
        threads = framework.num_threads()
    devices = ", ".join(framework.devices())
    return Finding(name, f"devices: {devices}; compute threads: {threads}; CPUs: {os.cpu_count()}")


def _shared_memory() -> Finding:
    subject = "shared memory"
    if not _SHARED_MEMORY.exists():
        return Finding(subject, f"this system has no {_SHARED_MEMORY}; Ray uses files instead")
    free = shutil.disk_usage(_SHARED_MEMORY).free
    detail = f"{free / 2**30:.1f} GiB free in {_SHARED_MEMORY}"
    if free >= LEAST_SHARED_MEMORY:
        return Finding(subject, detail)
    return Finding(subject, detail, SHARED_MEMORY_REMEDY)


def write_access(directory: str | None) -> Finding:
    """Try to write where the run directory will be, and leave nothing behind."""
    directory = lasting(directory or f"runs/{uuid.uuid4().hex}")
    subject = "write access"
    taken = ""
    try:
        try:
            RunDirectory(directory).check_new()
        except ConfigError:
            taken = f"; {directory!r} is not empty: lockstep train needs another one, or --resume"
        _, filesystem, path = open_url(directory)
        folder = check_writable(filesystem, path)
        is_local = isinstance(filesystem, LocalFileSystem)
        free = f", with {shutil.disk_usage(folder).free / 2**30:.1f} GiB free" if is_local else ""
    except (OSError, ConfigError) as error:
        remedy = "set logging.directory to a new directory that this user can write to"
        return Finding(subject, f"{directory!r} cannot be written: {type(error).__name__}: {error}", remedy)
    return Finding(subject, f"run directories can be created in {folder}{free}{taken}")


def _ray(config: OrchestratorConfig) -> Finding:
    subject = "ray"
    wanted = config.options.get("address") or os.environ.get("RAY_ADDRESS")

    def look() -> str:
        from orchestrator.ray import RayOrchestrator
        from orchestrator.ray.cluster import connect

        checked = parse(RayOrchestrator, config.options, "orchestrator.options")
        cluster = connect(checked.address, timeout=checked.start_timeout)
        try:
            amounts = {name: amount for name, amount in cluster.resources.items() if name in ("CPU", "GPU", "memory")}
            text = ", ".join(
                f"{amount / 2**30:.1f} GiB memory" if name == "memory" else f"{amount:g} {name}"
                for name, amount in sorted(amounts.items())
            )
        finally:
            cluster.disconnect()
        return f"{wanted or 'started on this machine'}: {text}"

    remedy = f"check the cluster at {wanted} with `ray status`" if wanted else "check that `ray start --head` works"
    return _tried(subject, look, remedy)


def can_run(config: RunConfig) -> Finding:
    """Build the workers where they would live, and do one iteration. Nothing is stored."""

    def build() -> str:
        cfg = {"timesteps": 1, "headless": True, "disable_progressbar": True}
        with prepare(config).trainer(cfg=cfg) as trainer:
            trainer.train()
            files = trainer.agent_files()
            return f"builds, steps and can be stored ({', '.join(name for name, _ in files)})\n{trainer}"

    return _tried("configuration", build, "correct the configuration as the message says")


def _environments(config: RunConfig) -> Finding:
    """Check some of the environments in this process."""

    def check() -> str:
        run = prepare(config)
        try:
            check_env(run.env, framework=config.framework)
        finally:
            run.close()
        return "the first three keep the contract in 200 steps with random actions (workers.envs.check_env)"

    return _tried("environments", check, "correct the environment as the message says")


def _state(config: RunConfig) -> Finding:
    """Say which form keeps the state of the environments, by the proof that the first checkpoint would make."""

    def look() -> str:
        env = prepare(config).env
        if isinstance(env, EnvFactory):
            env = build_rows(env, 1, 0, framework=config.framework, seed=None)
        try:
            env.reset()
            return explain_state(env, load_framework(config.framework))
        finally:
            close_or_log("the environments", env.close)

    return _tried("state", look, "correct the environment as the message says")


def _tried(subject: str, look: Callable[[], str], remedy: str) -> Finding:
    try:
        return Finding(subject, look())
    except Exception as error:  # any error is a finding
        return Finding(subject, f"{type(error).__name__}: {error}", remedy)
