"""The arguments of the `lockstep` command. What a verb does is the function of its name in `verbs`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from trainer import __version__
from trainer._redaction import escaped, redacted
from trainer.command import verbs

__all__ = ["parsed"]


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, whose `verb` is a function; options that would have no effect are an error."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.verb is verbs.submit and options.config is None:
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
    subparsers = parser.add_subparsers(required=True, metavar="VERB")

    def add(name: str, function: Callable[[argparse.Namespace], Iterator[str]], summary: str) -> _Parser:
        """Add a verb, whose help begins with the function's docstring."""
        verb = subparsers.add_parser(name, help=summary, description=function.__doc__)
        verb.set_defaults(verb=function)
        return verb

    train = add("train", verbs.train, "train the agents of a configuration")
    resume = add("resume", verbs.resume, "go on with a run that was stopped")
    evaluate = add("eval", verbs.evaluate, "evaluate the agents of a run")
    doctor = add("doctor", verbs.doctor, "check this machine or a cluster, and a configuration")
    submit = add("submit", verbs.submit, "train on a Ray cluster, as a job")
    _add_train(train)
    for verb in (resume, evaluate):
        verb.add_argument("run_dir", metavar="RUN_DIR", help="a run directory written by lockstep train")
    _add_doctor(doctor)
    _add_submit(submit)
    for verb in (doctor, submit):
        verb.add_argument(
            "--working-dir", metavar="DIR", help="folder that is sent to the cluster; by default the current"
        )
    for verb in (train, resume, evaluate, doctor, submit):
        _add_changes(verb)
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.__class__ = _HelpWithDefaults
    parser.add_argument("config", metavar="CONFIG.yaml", help="a configuration, also the config.yaml of an earlier run")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run of this configuration that is in logging.directory, or begin it there",
    )


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG.yaml", nargs="?", help="a configuration to check as well")
    there = parser.add_mutually_exclusive_group()
    there.add_argument("--address", help="check a Ray cluster instead: auto, host:6379, or http://... of its dashboard")
    there.add_argument("--cluster", metavar="CLUSTER.yaml", help="check the cluster of this file for `ray up` instead")
    parser.add_argument(
        "--no-build",
        action="store_false",
        dest="build",
        help="as before a training: build nothing, and fail only on what would hinder it",
    )
    parser.set_defaults(detach=False)


def _add_submit(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("config", metavar="CONFIG.yaml", nargs="?", help="a configuration in the working directory")
    what.add_argument("--follow", metavar="JOB", help="follow a job again, and fetch its run directory at its end")
    what.add_argument("--stop", metavar="JOB", help="stop a job, which stores everything first")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--address", metavar="URL", help="dashboard of the cluster, such as http://127.0.0.1:8265")
    where.add_argument("--cluster", metavar="CLUSTER.yaml", help="the file for `ray up`: use an SSH tunnel to its head")
    parser.add_argument("--detach", action="store_true", help="do not wait for the end of the job")


def _add_changes(parser: argparse.ArgumentParser) -> None:
    """Add the options of every verb that reads a configuration."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run the code that a run directory of another user names or holds: import paths, agent.bin, pickles",
    )
    parser.add_argument(
        "--set",
        metavar="key=value",
        nargs="+",
        action="extend",
        default=[],
        dest="overrides",
        help="override values of the configuration, such as trainer.timesteps=1000 agents.0.cfg.rollouts=64",
    )
