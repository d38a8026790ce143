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


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lockstep",
        description="Train simultaneous reinforcement-learning agents, in one process or with Ray.",
        epilog="lockstep VERB --help tells how a verb is used; lockstep config lists the keys of a configuration.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="VERB")

    def add(name: str, function: Callable[..., Iterator[str]], summary: str, operands: str, example: str) -> _Parser:
        """Add a verb, whose help begins with the function's docstring."""
        verb = subparsers.add_parser(
            name,
            help=summary,
            usage=f"lockstep {name} {operands}[options]",
            description=function.__doc__,
            epilog=f"example: lockstep {name} {example}",
        )
        verb.set_defaults(verb=function)
        return verb

    config, run_dir = "examples/cartpole.yaml", "runs/mine"
    _add_train(
        add("train", verbs.train, "train the agents of a configuration", "CONFIG.yaml ", f"{config} --set seed=1")
    )
    _add_sweep(
        add(
            "sweep",
            verbs.sweep,
            "train several seeds and configurations in one run",
            "CONFIG.yaml ",
            f"{config} --seeds 8",
        )
    )
    _add_run(add("resume", verbs.resume, "go on with a run that was stopped", "RUN_DIR ", run_dir))
    _add_eval(add("eval", verbs.evaluate, "evaluate the agents of a run", "RUN_DIR ", f"{run_dir} --video"))
    _add_export(
        add(
            "export", verbs.export, "write a trained policy as an ONNX model", "RUN_DIR FILE.onnx ", f"{run_dir} a.onnx"
        )
    )
    add("watch", verbs.watch, "show a run that trains elsewhere", "RUN_DIR ", run_dir).add_argument(
        "run_dir", metavar="RUN_DIR", help="a run directory, or its URL"
    )
    _add_report(add("report", verbs.report, "draw one or several runs", "RUN_DIR ... ", f"{run_dir} runs/other"))
    _add_doctor(
        add("doctor", verbs.doctor, "check this machine or a cluster, and a configuration", "[CONFIG.yaml] ", config)
    )
    operands = "(CONFIG.yaml | --follow JOB | --stop JOB) "
    _add_submit(
        add("submit", verbs.submit, "train on a Ray cluster, as a job", operands, f"{config} --cluster cluster.yaml")
    )
    add("config", verbs.config, "list the keys of a configuration and their defaults", "", "| grep learning_rate")
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG.yaml", help="a configuration, or the config.yaml of a run")
    parser.add_argument("--resume", action="store_true", help="go on with the run in logging.directory, if any")
    _add_changes(parser)


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG.yaml", help="a configuration with one agent")
    parser.add_argument("--seeds", metavar="N", type=int, default=1, help="agents of each configuration; default: 1")
    parser.add_argument(
        "--vary",
        metavar="key=a,b",
        nargs="+",
        action="extend",
        default=[],
        help="keys of the agent with their values, such as cfg.rollouts=16,32",
    )
    _add_changes(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a run directory written by lockstep train")
    _add_changes(parser)


def _add_eval(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument(
        "--video", metavar="SCOPE", type=_scope, nargs="*", help="record an episode of these scopes, or of all"
    )


def _scope(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is given; expected scopes, such as 0 1; put RUN_DIR before --video")
    return int(text)


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a run directory written by lockstep train")
    parser.add_argument("path", metavar="FILE.onnx", help="the file; for a team, a folder for a file of each group")
    parser.add_argument("--scope", metavar="N", type=int, default=0, help="which simultaneous agent; default: 0")
    _add_trust(parser)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", help="a run directory, or its URL")
    parser.add_argument("--output", metavar="FOLDER", default="report", help="where to write it; default: report")


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG.yaml", nargs="?", help="a configuration to check as well")
    there = parser.add_mutually_exclusive_group()
    there.add_argument("--address", metavar="URL", help="check a Ray cluster: auto, host:6379 or http://...")
    there.add_argument("--cluster", metavar="FILE", help="check the cluster of this file for ray up")
    parser.add_argument(
        "--no-build", action="store_false", dest="build", help="build nothing, and fail only on what hinders training"
    )
    parser.set_defaults(detach=False)
    _add_working_dir(parser)
    _add_changes(parser)


def _add_submit(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("config", metavar="CONFIG.yaml", nargs="?", help="a configuration in the working directory")
    what.add_argument("--follow", metavar="JOB", help="follow a job again, and fetch its run directory")
    what.add_argument("--stop", metavar="JOB", help="stop a job, which stores everything first")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--address", metavar="URL", help="dashboard of the cluster: http://127.0.0.1:8265")
    where.add_argument("--cluster", metavar="FILE", help="reach the cluster of this file for ray up by SSH")
    parser.add_argument("--detach", action="store_true", help="do not wait for the end of the job")
    _add_working_dir(parser)
    _add_changes(parser)


def _add_working_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--working-dir", metavar="DIR", help="folder to send to the cluster; default: this one")


def _add_changes(parser: argparse.ArgumentParser) -> None:
    """Add the options of every verb that reads a configuration."""
    _add_trust(parser)
    parser.add_argument(
        "--set",
        metavar="key=value",
        nargs="+",
        action="extend",
        default=[],
        dest="overrides",
        help="change values; lockstep config lists all keys",
    )


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trust", action="store_true", help="run code from another user's run directory")
