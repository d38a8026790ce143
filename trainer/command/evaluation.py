"""Evaluation of a run's stored agents, with the same results at the end of the run and in `lockstep eval`."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from orchestrator.run_dir import RunDirectory
from trainer.command.run import OURS, prepare
from trainer.command.run_config import AgentConfig, OrchestratorConfig, RunConfig
from trainer.step import StepTrainer
from workers.envs.statistics import Statistics, load_statistics
from workers.frameworks import load_framework
from workers.scope.episodes import Episodes

__all__ = ["Evaluation", "evaluate", "rounded"]

_logger = logging.getLogger("lockstep")


@dataclass
class Evaluation:
    """Results of one simultaneous agent.

    Attributes:
        returns: Return of each episode, in the order in which they ended; for a team, the sum over its agents.
        lengths: Length of each episode, in timesteps.
        agents: For a team, the returns of each agent's episodes, by agent name.
    """

    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    agents: dict[str, list[float]] = field(default_factory=dict)

    def note(self, name: str, episode_return: float, length: int) -> None:
        """Record an episode of the agent `name` of a team, or of the simultaneous agent as a whole (``""``)."""
        if name:
            self.agents[name].append(episode_return)
        else:
            self.returns.append(episode_return)
            self.lengths.append(length)

    def __str__(self) -> str:
        if not self.returns:
            return "no episode ended"
        of_team = [f"{name} {rounded(np.mean(returns))}" for name, returns in self.agents.items() if returns]
        team = "team " if self.agents else ""
        mean, deviation = rounded(np.mean(self.returns)), rounded(np.std(self.returns))
        episodes = f"{len(self.returns)} episodes of length {rounded(np.mean(self.lengths))}"
        return ", ".join([f"{team}return {mean} ± {deviation} ({episodes})", *of_team])


def rounded(value: Any) -> str:
    """Format a number with four significant digits and without an exponent."""
    return np.format_float_positional(value, precision=4, fractional=False, trim="-")


def evaluate(config: RunConfig, directory: RunDirectory, *, trust: bool = False) -> list[Evaluation]:
    """Run the stored agents in this process until each has finished its episodes.

    Each agent's episodes are divided among its environments beforehand, so that short episodes do not count more.

    Args:
        config: The run's configuration; the code that it names is run.
        directory: The run directory with the stored agents.
        trust: Whether to load an ``agent.bin`` that this user did not write; see `RunDirectory.load_agent`.

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
        dataclasses.replace(config, orchestrator=OrchestratorConfig(options=options), agents=_as_stored(config.agents)),
        resumes=True,
    )
    cfg = dataclasses.replace(config.trainer, timesteps=wanted.max_timesteps, disable_progressbar=True)
    with run.opened(cfg=cfg, seed=wanted.seed) as trainer:
        names = getattr(trainer.env, "possible_agents", ())
        results = [Evaluation(agents={name: [] for name in names}) for _ in run.agents]
        for index, agent in enumerate(trainer.agents):
            directory.load_agent(agent, index, framework, trust=trust)
        _carry_statistics(trainer, directory)
        remaining = np.concatenate([_shared_out(wanted.episodes, stop - start) for start, stop in trainer.scopes])
        scope_of = np.repeat(range(len(results)), [stop - start for start, stop in trainer.scopes])
        episodes = Episodes(len(remaining))
        before: dict[str, Any] = {}
        for timestep in range(wanted.max_timesteps):
            if not remaining.any():
                break
            _, rewards, terminated, truncated, infos = trainer.eval(timestep=timestep)
            ended = episodes.add(rewards, terminated, truncated, framework, before=before, infos=infos)
            before = infos
            for name, (rows, returns, lengths) in ended.items():
                for row, episode_return, length in zip(rows, returns, lengths, strict=True):
                    if remaining[row]:
                        result = results[scope_of[row]]
                        result.note(name, float(episode_return), int(length))
                        remaining[row] -= not name
    return results


def _carry_statistics(trainer: StepTrainer[Any], directory: RunDirectory) -> None:
    """Give each environment the stored statistics of its row, so that agents see what they were trained on."""
    rows: list[Statistics] = []
    for scope, (start, stop) in enumerate(trainer.scopes):
        stored = directory.statistics(scope) or [{}]
        rows += [stored[row % len(stored)] for row in range(stop - start)]  # there may be more rows than in training
    for note in load_statistics(trainer.env, rows):
        _logger.warning(note)


def _as_stored(agents: list[AgentConfig]) -> list[AgentConfig]:
    """Return the agents of a run directory; one without ``action_bounds`` is older than this option, so it had none."""
    return [
        dataclasses.replace(agent, cfg={"action_bounds": "none"} | agent.cfg) if agent.agent in OURS else agent
        for agent in agents
    ]


def _shared_out(episodes: int, num_envs: int) -> Any:
    share, remainder = divmod(episodes, num_envs)
    return np.full(num_envs, share) + (np.arange(num_envs) < remainder)
