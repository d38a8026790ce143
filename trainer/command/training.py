"""A run, from its configuration to its run directory."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import rich.console

from orchestrator.run_dir import RunDirectory
from trainer._redaction import redacted
from trainer.callbacks.console import Console
from trainer.callbacks.loop import Loop
from trainer.callbacks.metrics import Metrics
from trainer.command.best_agents import BestAgents
from trainer.command.callbacks import build_callbacks
from trainer.command.checkpointing import Checkpoints
from trainer.command.evaluation import evaluate, store
from trainer.command.run import OURS, prepare, resolve
from trainer.command.run_config import AgentConfig, RunConfig, in_line, load_config, parse
from trainer.command.run_log import Status, StoredAgents, begin, go_on
from trainer.command.signals import stop_on_signals
from trainer.command.stored_spaces import write_spaces
from trainer.command.sweep import results_table
from trainer.evaluation import Evaluation
from workers.agents.ppo import PPOCfg
from workers.errors import ConfigError

__all__ = ["report", "train"]

_logger = logging.getLogger("lockstep")

_DIGITS = 8
"""Number of digits of a digest in the printed lines."""


def train(config: RunConfig, directory: RunDirectory, *, resumes: bool = False, trust: bool = False) -> Iterator[str]:
    """Train, store and evaluate the agents.

    Args:
        config: The configuration.
        directory: The run directory, which must be empty or not exist yet, unless `resumes` is set.
        resumes: Whether to go on with the run in the directory, from its last checkpoint, as if it had not been
            stopped.
        trust: Whether to load what this user did not write and can run code: pickles, and an ``agent.bin``.

    Yields:
        Lines that report progress, and at the end the results of the evaluation.

    Raises:
        ConfigError: The configuration is invalid, or is that of another run.
        AgentError: An agent cannot be stored.
        CheckpointError: No checkpoint can be loaded, or written although it is required.
        DivergedError: An agent holds NaN or infinity; those stored before are kept, and the metrics are written.
        WorkerError: Environments or agents failed; the training up to then is stored as far as possible.
        SystemExit: A signal stopped the run; the training up to then is stored.
        KeyboardInterrupt: A second signal stopped the run at once; what was stored last is kept.
    """
    config, timesteps = resolve(config), config.trainer.timesteps
    before = load_config(directory.config()) if resumes else config
    if resumes:
        check_same(before, config)
    else:
        directory.check_new()
    if resumes and _is_finished(directory, timesteps, is_same=before.callbacks == config.callbacks):
        if why := directory.status()["stopped"]:
            remedy = "to train on, change the callbacks, such as --set callbacks=[]"
            yield f"{redacted(directory.url)} is finished, because {in_line(why)}; {remedy}"
        else:
            yield f"{redacted(directory.url)} is finished; to train on, set trainer.timesteps to more than {timesteps}"
        yield f"run directory: {redacted(directory.url)}"
        if directory.exists("evaluation.json"):
            return
    else:
        with ExitStack() as stack:
            callbacks = build_callbacks(config)
            run = prepare(config, trust=trust, resumes=resumes and directory.checkpoints().any())
            trainer = stack.enter_context(run.opened(cfg=dataclasses.replace(config.trainer, disable_progressbar=True)))
            metrics = stack.enter_context(directory.metrics())
            stop = stack.enter_context(stop_on_signals())
            stack.enter_context(directory.locked())
            status = Status(directory, stop)
            agents = StoredAgents(directory, status)
            every = config.evaluation.every
            checkpoints = Checkpoints(config.checkpoint, directory, metrics, agents, evaluated_every=every)
            best = [BestAgents(directory, run.config, run.agents[0].spaces)] if every else []
            around = [agents, *best, Metrics(metrics), checkpoints]
            interval = config.logging.interval
            loop = Loop(trainer, [status, _console(config), *callbacks, *around], metrics_every=interval)
            if resumes:
                go_on(config, loop, directory, agents, trust=trust)
            else:
                begin(config, loop, directory, agents)
            write_spaces(directory, run.agents[0].spaces)
            yield str(trainer)
            yield from [factory.initial.told for factory in run.agents if factory.initial is not None]
            yield f"run directory: {redacted(directory.url)}"
            if resumes:
                yield f"resumed at timestep {loop.timestep}"
            with loop:
                for _ in loop.groups():
                    if stop.signal:
                        break
            if stop.signal:
                yield f"stopped at timestep {status.timestep}; the agents are stored in {redacted(directory.url)}"
                if checkpoints.saves:
                    yield f"to go on: lockstep resume {redacted(directory.url)}"
                raise SystemExit(128 + stop.signal)
            if loop.stop_reason:
                yield f"stopped at timestep {loop.timestep}: {loop.stop_reason}"
    if config.evaluation.episodes:
        try:
            results = evaluate(config, directory, trust=trust)
        except Exception:
            _logger.error("training is finished and stored in %s, but evaluation failed:", directory.url)
            raise
        store(results, directory)  # first: nobody may read the lines
        yield from report(results, config, directory)


def check_same(stored: RunConfig, config: RunConfig) -> None:
    """Check that a configuration goes on with the run of another one: in what its numbers depend on, they are equal.

    Raises:
        ConfigError: They are not; the message names the keys.
    """
    stored, config = (
        dataclasses.replace(
            each, agents=[dataclasses.replace(one, cfg=_with_defaults(one), device=None) for one in each.agents]
        )
        for each in (stored, config)
    )
    one, other = (json.loads(json.dumps(dataclasses.asdict(each), default=str)) for each in (stored, config))
    names = ("framework", "env", "agents", "seed")
    if different := [key for name in names for key in _different(one[name], other[name], name)]:
        raise ConfigError(
            f"a run can only be resumed with the {', '.join(different)} that it was begun with; start a new run instead"
        )


def _with_defaults(agent: AgentConfig) -> dict[str, Any]:
    """Return the `cfg` of an agent, which may be stored without the fields of a newer Lockstep."""
    return dataclasses.asdict(parse(PPOCfg, agent.cfg, "agents.*.cfg")) if agent.agent in OURS else agent.cfg


def _different(one: Any, other: Any, key: str) -> Iterator[str]:
    """Yield the keys in which two pieces of plain data differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in one | other:
            yield from _different(one.get(name), other.get(name), f"{key}.{name}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from _different(*pair, f"{key}.{index}")
    elif one != other:
        yield in_line(key)


def _is_finished(directory: RunDirectory, timesteps: int, *, is_same: bool) -> bool:
    """Return whether there is nothing to do; `is_same`: whether the callbacks are those that may have stopped it."""
    try:
        status = directory.status()
    except ConfigError:  # the run was killed while it began
        return False
    return status["state"] == "finished" and (status["timestep"] >= timesteps or (is_same and bool(status["stopped"])))


def _console(config: RunConfig) -> Console:
    """Return what shows the run: a table in a terminal, unless it is disabled, or lines."""
    is_terminal = False if config.trainer.disable_progressbar else None  # None: as it is
    return Console(config.env.id or config.env.factory or "", console=rich.console.Console(force_terminal=is_terminal))


def report(results: Sequence[Evaluation], config: RunConfig, directory: RunDirectory) -> Iterator[str]:
    """Yield a line with the results of each stored agent."""
    status, wanted = directory.status(), config.evaluation
    if status["state"] != "finished":
        _logger.warning("the run is %s; the stored agents are from timestep %s", status["state"], status["timestep"])
    for scope, result in enumerate(results):
        yield f"scope {scope}: {result}, weights {directory.digest(scope)[:_DIGITS]}"
        if missing := wanted.episodes - len(result.returns):
            _logger.warning(
                "scope %d: %d of %d episodes did not end within evaluation.max_timesteps = %d",
                scope,
                missing,
                wanted.episodes,
                wanted.max_timesteps,
            )
    yield from results_table(config, results)
