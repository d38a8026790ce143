"""Evaluation of agents: episodes of their own, on mean actions, with the same results wherever they are computed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainer.step import StepTrainer
from workers.envs.statistics import Statistics, load_statistics
from workers.errors import close_or_log
from workers.frameworks import load_framework
from workers.scope.episodes import Episodes
from workers.storage.agent_file import load_agent

__all__ = ["Evaluated", "Evaluation", "Evaluations", "evaluate", "rounded", "statistics_of"]

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

    @property
    def mean(self) -> float:
        """The mean return; NaN if no episode ended."""
        return float(np.mean(self.returns)) if self.returns else float("nan")

    @property
    def scalars(self) -> dict[str, float]:
        """The results by tag, as `StepTrainer.collect_metrics` has those of ``eval()``."""
        if not self.returns:
            return {}
        found = {
            "Evaluation / Return (mean)": np.mean(self.returns),
            "Evaluation / Return (min)": np.min(self.returns),
            "Evaluation / Return (max)": np.max(self.returns),
            "Evaluation / Length (mean)": np.mean(self.lengths),
        }
        of_team = {f"Evaluation / {name} / Return (mean)": np.mean(own) for name, own in self.agents.items() if own}
        return {tag: float(value) for tag, value in (found | of_team).items()}

    def __str__(self) -> str:
        if not self.returns:
            return "no episode ended"
        of_team = [f"{name} {rounded(np.mean(returns))}" for name, returns in self.agents.items() if returns]
        team = "team " if self.agents else ""
        mean, deviation = rounded(np.mean(self.returns)), rounded(np.std(self.returns))
        episodes = f"{len(self.returns)} episodes of length {rounded(np.mean(self.lengths))}"
        return ", ".join([f"{team}return {mean} ± {deviation} ({episodes})", *of_team])


@dataclass(frozen=True)
class Evaluated:
    """The results of an evaluation during training.

    Attributes:
        timestep: Number of timesteps that the agents had trained.
        results: The results of each simultaneous agent, in scope order.
        known_by: Number of timesteps by which every mode knows the results: what depends on them has to wait until
            then, so that it is the same everywhere. See `Loop.stop`.
        files: The file of each agent that was evaluated, as `StepTrainer.agent_files` returns it.
        statistics: The statistics of the environments of each scope, by row.
    """

    timestep: int
    results: Sequence[Evaluation]
    known_by: int
    files: Sequence[tuple[str, bytes]] = ()
    statistics: Sequence[Sequence[Statistics]] = ()

    @property
    def mean(self) -> float:
        """The mean over all simultaneous agents of their mean returns; NaN if one of them has none."""
        return float(np.mean([result.mean for result in self.results]))


def rounded(value: Any) -> str:
    """Format a number with four significant digits and without an exponent."""
    return np.format_float_positional(value, precision=4, fractional=False, trim="-")


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """An evaluation that can be computed in any process.

    Attributes:
        build: Builds a trainer in local mode, with fresh environments and agents, and a seed of its own.
        files: Each agent's file, as `StepTrainer.agent_files` returns it.
        statistics: The statistics of the environments of each scope, by row.
        episodes: Number of episodes of each simultaneous agent.
        max_timesteps: Number of timesteps after which it ends, even if some episodes have not ended.
    """

    build: Callable[[], StepTrainer[Any]]
    files: Sequence[tuple[str, bytes]]
    statistics: Sequence[Sequence[Statistics]]
    episodes: int
    max_timesteps: int

    def __call__(self) -> list[Evaluation]:
        """Return the results of each simultaneous agent.

        Raises:
            AgentError: An agent's file does not fit.
        """
        trainer = self.build()
        try:
            framework = load_framework(trainer.framework)
            for agent, (name, data) in zip(trainer.agents, self.files, strict=True):
                load_agent(agent, name, data, framework)
            return evaluate(trainer, self.statistics, episodes=self.episodes, max_timesteps=self.max_timesteps)
        finally:
            close_or_log("the evaluation", trainer.close)


def evaluate(
    trainer: StepTrainer[Any], statistics: Sequence[Sequence[Statistics]], *, episodes: int, max_timesteps: int
) -> list[Evaluation]:
    """Evaluate the agents of a new trainer until each has finished its episodes.

    Each agent's episodes are divided among its environments beforehand, so that short episodes do not count more.

    Args:
        trainer: A trainer in local mode, before its first iteration.
        statistics: The statistics of the environments of each scope, by row; an empty list: there are none.
        episodes: Number of episodes of each agent.
        max_timesteps: Number of timesteps after which the evaluation ends, even if some episodes have not ended.

    Returns:
        The results of each agent, with fewer episodes than requested if some did not end.
    """
    framework = load_framework(trainer.framework)
    names = getattr(trainer.env, "possible_agents", ())
    results = [Evaluation(agents={name: [] for name in names}) for _ in trainer.scopes]
    _carry(trainer, statistics)
    remaining = np.concatenate([_shared_out(episodes, stop - start) for start, stop in trainer.scopes])
    scope_of = np.repeat(range(len(results)), [stop - start for start, stop in trainer.scopes])
    counted = Episodes(len(remaining))
    before: dict[str, Any] = {}
    for timestep in range(max_timesteps):
        if not remaining.any():
            break
        _, rewards, terminated, truncated, infos = trainer.eval(timestep=timestep)
        ended = counted.add(rewards, terminated, truncated, framework, before=before, infos=infos)
        before = infos
        for name, (rows, returns, lengths) in ended.items():
            for row, episode_return, length in zip(rows, returns, lengths, strict=True):
                if remaining[row]:
                    results[scope_of[row]].note(name, float(episode_return), int(length))
                    remaining[row] -= not name
    return results


def statistics_of(trainer: StepTrainer[Any]) -> list[list[Statistics]]:
    """Return the statistics of each scope's environments, by row.

    Raises:
        WorkerError: A worker failed.
    """
    rows = trainer.env_statistics()
    return [rows[start:stop] for start, stop in trainer.scopes]


def _carry(trainer: StepTrainer[Any], statistics: Sequence[Sequence[Statistics]]) -> None:
    """Give each environment the statistics of its row, so that agents see what they were trained on."""
    rows: list[Statistics] = []
    for stored, (start, stop) in zip(statistics, trainer.scopes, strict=True):
        held = stored or [{}]
        rows += [held[row % len(held)] for row in range(stop - start)]  # there may be more rows than in training
    for note in load_statistics(trainer.env, rows):
        _logger.warning(note)


def _shared_out(episodes: int, num_envs: int) -> Any:
    share, remainder = divmod(episodes, num_envs)
    return np.full(num_envs, share) + (np.arange(num_envs) < remainder)
