"""Evaluation of a run's stored agents, with the same results at the end of the run and in `lockstep eval`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.run_dir import RunDirectory
from trainer.command.run import OURS, prepare
from trainer.command.run_config import AgentConfig, OrchestratorConfig, RunConfig
from trainer.evaluation import Evaluation
from trainer.evaluation import evaluate as evaluate_agents
from trainer.step import StepTrainer
from workers.frameworks import load_framework

__all__ = ["as_stored", "evaluate", "store"]


def evaluate(
    config: RunConfig,
    directory: RunDirectory,
    *,
    trust: bool = False,
    begin: Callable[[StepTrainer[Any]], object] = lambda trainer: None,
) -> list[Evaluation]:
    """Run the stored agents in this process until each has finished its episodes; see `trainer.evaluation.evaluate`.

    Args:
        config: The run's configuration; the code that it names is run.
        directory: The run directory with the stored agents.
        trust: Whether to load an ``agent.bin`` that this user did not write; see `RunDirectory.load_agent`.
        begin: Called with the trainer before the first iteration.

    Returns:
        The results of each agent, with fewer episodes than requested if some did not end within
        ``evaluation.max_timesteps``.

    Raises:
        AgentError: An agent is not stored, or its stored state does not fit.
        ConfigError: The configuration is invalid.
    """
    wanted, framework = config.evaluation, load_framework(config.framework)
    options = {name: value for name, value in config.orchestrator.options.items() if name == "num_threads"}
    run = prepare(
        dataclasses.replace(config, orchestrator=OrchestratorConfig(options=options), agents=as_stored(config.agents)),
        resumes=True,
    )
    cfg = dataclasses.replace(config.trainer, timesteps=wanted.max_timesteps, disable_progressbar=True)
    with run.opened(cfg=cfg, seed=wanted.seed) as trainer:
        for index, agent in enumerate(trainer.agents):
            directory.load_agent(agent, index, framework, trust=trust)
        begin(trainer)
        statistics = [directory.statistics(scope) for scope in range(len(config.agents))]
        return evaluate_agents(trainer, statistics, episodes=wanted.episodes, max_timesteps=wanted.max_timesteps)


def store(results: Sequence[Evaluation], directory: RunDirectory) -> None:
    """Write ``evaluation.json``: the results of the stored agents.

    Raises:
        AgentError: An agent is not stored.
        OSError: It cannot be written.
    """
    found = [
        {"scope": scope, "weights": directory.digest(scope), **dataclasses.asdict(result)}
        for scope, result in enumerate(results)
    ]
    directory.write("evaluation.json", json.dumps(found, indent=1))


def as_stored(agents: list[AgentConfig]) -> list[AgentConfig]:
    """Return the agents of a run directory; one without ``action_bounds`` is older than this option, so it had none."""
    return [
        dataclasses.replace(agent, cfg={"action_bounds": "none"} | agent.cfg) if agent.agent in OURS else agent
        for agent in agents
    ]
