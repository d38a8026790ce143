"""What each verb of the `lockstep` command does.

A verb is a function that takes the parsed options and yields the lines to print. It imports what it needs, so that the
command starts fast.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from trainer._console import conceal, shown
from trainer._redaction import secrets_in

if TYPE_CHECKING:
    from trainer.command.run_config import RunConfig
    from trainer.command.submit import Job

__all__ = ["config", "doctor", "evaluate", "export", "report", "resume", "submit", "sweep", "train", "watch"]


def train(options: argparse.Namespace) -> Iterator[str]:
    """Train the agents of a configuration, store them with their metrics in a run directory, and evaluate them."""
    from trainer.command.job import check_sender

    check_sender()
    yield from _trained(_read(options), options)


def sweep(options: argparse.Namespace) -> Iterator[str]:
    """Train several seeds of each of several configurations in one run, and compare them in a table.

    They are simultaneous agents on scopes of one batch of environments. The configuration has one agent;
    --vary names keys of it, and all combinations of their values are trained.
    """
    from trainer.command.job import check_sender
    from trainer.command.sweep import expand

    check_sender()
    options.resume = False
    yield from _trained(expand(_read(options), seeds=options.seeds, vary=options.vary), options)


def _trained(config: RunConfig, options: argparse.Namespace) -> Iterator[str]:
    """Train in the run directory of the configuration, or in one that is named after its file."""
    from orchestrator.run_dir import CONFIG, RunDirectory
    from trainer.command import training
    from trainer.command.job import lasting
    from workers.errors import ConfigError

    if options.resume and config.logging.directory is None:
        raise ConfigError("--resume needs logging.directory, where the run is; to go on with RUN_DIR: lockstep resume")
    path = Path(options.config).absolute()
    name = path.parent.name if path.name == "config.yaml" else path.stem  # of an earlier run
    name = f"runs/{name}-{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    url = name if config.logging.directory is None else config.logging.directory
    directory = RunDirectory(lasting(url), shared=config.logging.shared)
    yield from training.train(
        config, directory, resumes=options.resume and directory.exists(CONFIG), trust=options.trust
    )


def resume(options: argparse.Namespace) -> Iterator[str]:
    """Go on with a run from its last checkpoint, with the numbers of a run that was never stopped.

    A finished run is extended with --set trainer.timesteps=N.
    """
    from orchestrator.run_dir import RunDirectory
    from trainer.command import training
    from trainer.command.job import lasting
    from trainer.command.trust import check_resumed

    directory = RunDirectory(lasting(options.run_dir))
    text = directory.config()
    config = _load(text, options)
    if not options.trust:
        check_resumed(directory, text, config, options.overrides)
    yield from training.train(config, directory, resumes=True, trust=options.trust)


def evaluate(options: argparse.Namespace) -> Iterator[str]:
    """Evaluate the stored agents of a run, exactly as at the end of training."""
    from orchestrator.run_dir import RunDirectory
    from trainer.command import evaluation, training
    from trainer.command.job import lasting
    from trainer.command.trust import check_run

    directory = RunDirectory(lasting(options.run_dir))
    text = directory.config()
    config = _load(text, options)
    if not options.trust:
        check_run(directory, text, config, options.overrides)
    if options.video is None:
        yield from training.report(evaluation.evaluate(config, directory, trust=options.trust), config, directory)
    else:
        from trainer.command.video import record

        yield from record(config, directory, options.video, trust=options.trust)


def export(options: argparse.Namespace) -> Iterator[str]:
    """Write the trained policy of a simultaneous agent as an ONNX model, which runs without Lockstep."""
    from trainer.command.job import lasting
    from trainer.policies import export_onnx

    for path in export_onnx(lasting(options.run_dir), options.path, options.scope, trust=options.trust):
        yield shown(f"wrote {path}")


def watch(options: argparse.Namespace) -> Iterator[str]:
    """Show a run until it ends: as a table in a terminal, else as lines. Ctrl-C ends the watching, not the run."""
    from trainer.command import watch as watching

    yield from watching.watch(options.run_dir)


def report(options: argparse.Namespace) -> Iterator[str]:
    """Write a page, report.html, and pictures of one or several runs: returns, throughput, phases, losses, faults."""
    from trainer.command.report import write_report

    yield from write_report(options.run_dirs, options.output)


def doctor(options: argparse.Namespace) -> Iterator[str]:
    """Check versions, frameworks, devices, threads, shared memory, write access, Ray and, if given, a configuration.

    With --address or --cluster, check every node of a cluster instead, and the configuration there.
    """
    if options.cluster is not None or (options.address or "").startswith("http"):
        yield from _run_there(options, _check(options))
        return
    from trainer.command.config_file import read_config
    from trainer.command.doctor import Finding, examine
    from trainer.command.trust import check_config
    from workers.errors import ConfigError

    config, broken = None, []
    if options.config:
        try:
            text = read_config(options.config)
            config = _load(text, options)
        except ConfigError as error:
            remedy = "change these keys; `lockstep config` lists all keys"
            broken = [Finding("configuration", str(error), remedy)]
    if config is not None and not options.trust:
        check_config(options.config, text, config, options.overrides)
    if options.address is None:
        found = examine(config, build=options.build)
    else:
        from trainer.command.doctor_cluster import examine_cluster

        found = examine_cluster(options.address, config, build=options.build)
    healthy = True
    for finding in itertools.chain(broken, found):
        healthy &= finding.healthy or not (options.build or finding.hinders)
        yield shown(str(finding))
    if not healthy:
        raise SystemExit(1)


def submit(options: argparse.Namespace) -> Iterator[str]:
    """Train on a Ray cluster as a job: check, send the working directory, follow, and fetch the run directory.

    Ctrl-C, SIGTERM or a closed terminal ends the following; the job goes on.
    """
    from trainer.command.fetching import Place
    from trainer.command.submit import follow, stop

    if options.config is not None:
        yield from _run_there(options, _training(options))
        return
    place = Place.of(options.address, options.cluster)
    with place.jobs() as jobs:
        if options.stop is not None:
            yield from stop(options.stop, jobs, place)
        else:
            yield from follow(options.follow, jobs, place)


def config(options: argparse.Namespace) -> Iterator[str]:
    """List every key of a configuration with its default and its meaning, as YAML.

    Lists of their own show the keys of PPO and of the local and the Ray orchestrator.
    """
    from trainer.command.keys import list_keys

    yield from list_keys()


def _run_there(options: argparse.Namespace, job: Job) -> Iterator[str]:
    """Submit a job and follow it."""
    from trainer.command.fetching import Place
    from trainer.command.submit import detached, follow, start

    place = Place.of(options.address, options.cluster)
    with place.jobs() as jobs:
        yield from start(job, jobs, place)
        yield from detached(job.name, place) if options.detach else follow(job.name, jobs, place)


def _training(options: argparse.Namespace) -> Job:
    """Return the job that trains, with a configuration that is checked as far as it can be checked here."""
    from trainer.command.run import build_orchestrator
    from trainer.command.submit import Job, defaults, name_of

    name = name_of(options.config)
    options.overrides += defaults(options.overrides, _read(options), name)
    config = _read(options)
    build_orchestrator(config.orchestrator)
    return Job.training(name, config, options.config, options.working_dir or ".", options.overrides)


def _check(options: argparse.Namespace) -> Job:
    """Return the job that checks the cluster it runs on, and a configuration."""
    from trainer.command.submit import Job, name_of

    if options.config is not None:
        _read(options)
    folder = options.working_dir or "."
    return Job.check(name_of("doctor"), options.config, options.overrides, folder, build=options.build)


def _read(options: argparse.Namespace) -> RunConfig:
    """Return the configuration of the command line; see `_load`.

    Raises:
        ConfigError: It is invalid, or may run code of somebody else.
    """
    from trainer.command.config_file import read_config
    from trainer.command.trust import check_config

    text = read_config(options.config)
    config = _load(text, options)
    if not options.trust:
        check_config(options.config, text, config, options.overrides)
    return config


def _load(text: str, options: argparse.Namespace) -> RunConfig:
    """Return the configuration with the overrides, and conceal its secrets."""
    from trainer.command.run_config import load_config

    config = load_config(text, options.overrides)
    conceal(secrets_in([vars(options), dataclasses.asdict(config)]))
    return config
