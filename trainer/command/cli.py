"""The `lockstep` command."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from trainer import __version__
from trainer._console import conceal, shown
from trainer._redaction import escaped, redacted, secrets_in
from trainer.command.signals import ending_signals

if TYPE_CHECKING:
    from trainer.command.run_config import RunConfig
    from trainer.command.submit import Job

__all__ = ["main"]

_USAGE_ERROR, _FAILURE = 2, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Command-line arguments without the program name. None: those of the process.

    Returns:
        The exit code: 0 on success, 1 after a failure, 2 if the command line or a configuration is invalid, 128 plus
        the signal number if a signal ended the command.
    """
    conceal(())  # what an earlier call has set
    options = _parsed(arguments)
    conceal(secrets_in(vars(options)))
    before = {number: signal.signal(number, _terminate) for number in ending_signals()}
    try:
        return _run(options)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; those that would have no effect are an error."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.verb is _submit and options.config is None:
        given = {
            "--set": options.overrides,
            "--trust": options.trust,
            "--working-dir": options.working_dir is not None,
            "--detach": options.detach,
        }
        names = ", ".join(name for name, is_given in given.items() if is_given)
        if names:
            job = "--follow" if options.follow is not None else "--stop"
            parser.error(f"{names} given with {job}; expected only with CONFIG.yaml, to submit a job: leave it out")
    return options


def _run(options: argparse.Namespace) -> int:
    from workers.errors import AgentError, ConfigError, EnvError, LockstepError, ScopeError

    try:
        for line in options.verb(options):
            print(escaped(line), flush=True)  # a name or number of ours may equal a secret
    except (ConfigError, ScopeError, EnvError, AgentError) as error:
        return _failed(error, _USAGE_ERROR)
    except (LockstepError, OSError) as error:
        return _failed(error, _FAILURE)
    except Exception:  # a fault of ours
        return _failed(traceback.format_exc(), _FAILURE)
    except KeyboardInterrupt:
        return _failed("interrupted", 128 + signal.SIGINT)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else _failed(end.code, _FAILURE)
    return 0


def _failed(error: object, code: int) -> int:
    text = shown(getattr(error, "report", None) or str(error))
    for line in text.splitlines():
        print(f"lockstep: {line}", file=sys.stderr, flush=True)
    return code


def _terminate(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


class _Parser(argparse.ArgumentParser):
    """Parser whose errors show arguments without what a terminal obeys."""

    def error(self, message: str) -> NoReturn:
        super().error(escaped(redacted(message)))


class _HelpWithDefaults(_Parser):
    """Parser whose help ends with every configuration key and its default."""

    def format_help(self) -> str:
        """Return the help text."""
        from trainer.command.run_config import describe
        from workers.agents.ppo import PPOCfg

        ppo = "\n".join(describe(PPOCfg, "  "))
        keys = "\n".join(f"  {line}" for line in describe())
        parts = [
            super().format_help(),
            "configuration keys and their defaults:",
            keys,
            "\nagents.*.cfg of ppo, ippo and mappo:",
            ppo,
            "",
        ]
        return "\n".join(parts)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lockstep", description="Train simultaneous reinforcement-learning agents, in one process or with Ray."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    train = verbs.add_parser("train", help="train the agents of a configuration", description=_train.__doc__)
    train.__class__ = _HelpWithDefaults
    train.add_argument("config", metavar="CONFIG.yaml", help="a configuration, also the config.yaml of an earlier run")
    train.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run of this configuration that is in logging.directory, or begin it there",
    )
    train.set_defaults(verb=_train)
    resume = verbs.add_parser("resume", help="go on with a run that was stopped", description=_resume.__doc__)
    resume.add_argument("run_dir", metavar="RUN_DIR", help="a run directory written by lockstep train")
    resume.set_defaults(verb=_resume)
    evaluate = verbs.add_parser("eval", help="evaluate the agents of a run", description=_evaluate.__doc__)
    evaluate.add_argument("run_dir", metavar="RUN_DIR", help="a run directory written by lockstep train")
    evaluate.set_defaults(verb=_evaluate)
    doctor = verbs.add_parser(
        "doctor", help="check this machine or a cluster, and a configuration", description=_doctor.__doc__
    )
    doctor.add_argument("config", metavar="CONFIG.yaml", nargs="?", help="a configuration to check as well")
    there = doctor.add_mutually_exclusive_group()
    there.add_argument("--address", help="check a Ray cluster instead: auto, host:6379, or http://... of its dashboard")
    there.add_argument("--cluster", metavar="CLUSTER.yaml", help="check the cluster of this file for `ray up` instead")
    doctor.add_argument(
        "--no-build",
        action="store_false",
        dest="build",
        help="as before a training: build nothing, and fail only on what would hinder it",
    )
    doctor.set_defaults(verb=_doctor, detach=False)
    submit = verbs.add_parser("submit", help="train on a Ray cluster, as a job", description=_submit.__doc__)
    what = submit.add_mutually_exclusive_group(required=True)
    what.add_argument("config", metavar="CONFIG.yaml", nargs="?", help="a configuration in the working directory")
    what.add_argument("--follow", metavar="JOB", help="follow a job again, and fetch its run directory at its end")
    what.add_argument("--stop", metavar="JOB", help="stop a job, which stores everything first")
    where = submit.add_mutually_exclusive_group()
    where.add_argument("--address", metavar="URL", help="dashboard of the cluster, such as http://127.0.0.1:8265")
    where.add_argument("--cluster", metavar="CLUSTER.yaml", help="the file for `ray up`: use an SSH tunnel to its head")
    submit.add_argument("--detach", action="store_true", help="do not wait for the end of the job")
    submit.set_defaults(verb=_submit)
    for verb in (doctor, submit):
        verb.add_argument(
            "--working-dir", metavar="DIR", help="folder that is sent to the cluster; by default the current"
        )
    for verb in (train, resume, evaluate, doctor, submit):
        verb.add_argument(
            "--trust",
            action="store_true",
            help="run the code that a run directory of another user names or holds: import paths, agent.bin, pickles",
        )
        verb.add_argument(
            "--set",
            metavar="key=value",
            nargs="+",
            action="extend",
            default=[],
            dest="overrides",
            help="override values of the configuration, such as trainer.timesteps=1000 agents.0.cfg.rollouts=64",
        )
    return parser


def _train(options: argparse.Namespace) -> Iterator[str]:
    """Train the agents of a configuration, store them with their metrics in a run directory, and evaluate them."""
    from orchestrator.run_dir import CONFIG, RunDirectory
    from trainer.command.job import check_sender, lasting
    from trainer.command.training import train
    from workers.errors import ConfigError

    check_sender()
    config = _read(options)
    if options.resume and config.logging.directory is None:
        raise ConfigError("--resume needs logging.directory, where the run is; to go on with RUN_DIR: lockstep resume")
    path = Path(options.config).absolute()
    name = path.parent.name if path.name == "config.yaml" else path.stem  # of an earlier run
    name = f"runs/{name}-{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    url = name if config.logging.directory is None else config.logging.directory
    directory = RunDirectory(lasting(url), shared=config.logging.shared)
    yield from train(config, directory, resumes=options.resume and directory.exists(CONFIG), trust=options.trust)


def _resume(options: argparse.Namespace) -> Iterator[str]:
    """Go on with a run from its last checkpoint, with the numbers of a run that was never stopped.

    A finished run is extended with --set trainer.timesteps=N.
    """
    from orchestrator.run_dir import RunDirectory
    from trainer.command.job import lasting
    from trainer.command.training import train
    from trainer.command.trust import check_resumed

    directory = RunDirectory(lasting(options.run_dir))
    text = directory.config()
    config = _load(text, options)
    if not options.trust:
        check_resumed(directory, text, config, options.overrides)
    yield from train(config, directory, resumes=True, trust=options.trust)


def _evaluate(options: argparse.Namespace) -> Iterator[str]:
    """Evaluate the stored agents of a run, exactly as at the end of training."""
    from orchestrator.run_dir import RunDirectory
    from trainer.command.evaluation import evaluate
    from trainer.command.job import lasting
    from trainer.command.training import report
    from trainer.command.trust import check_run

    directory = RunDirectory(lasting(options.run_dir))
    text = directory.config()
    config = _load(text, options)
    if not options.trust:
        check_run(directory, text, config, options.overrides)
    yield from report(evaluate(config, directory, trust=options.trust), config, directory)


def _doctor(options: argparse.Namespace) -> Iterator[str]:
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
            remedy = "change these keys; `lockstep train --help` lists all keys"
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
        raise SystemExit(_FAILURE)


def _submit(options: argparse.Namespace) -> Iterator[str]:
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
