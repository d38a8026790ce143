"""Evaluating the stored agents of a run: at its end, and by `lockstep eval`, with the same numbers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from orchestrator.run_dir import RunDirectory
from trainer.run import prepare
from trainer.run_config import OrchestratorConfig, RunConfig
from workers.frameworks import load_framework
from workers.tracking import Episodes

__all__ = ["Evaluation", "evaluate"]


@dataclass
class Evaluation:
    """What one agent achieved.

    Attributes:
        returns: Return of each episode, in the order in which they ended.
        lengths: Its length, in timesteps.
    """

    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.returns:
            return "no episode ended"
        mean, deviation, length = (
            float(value) for value in (np.mean(self.returns), np.std(self.returns), np.mean(self.lengths))
        )
        return f"return {mean!r} (std {deviation!r}, length {length!r}, {len(self.returns)} episodes)"


def evaluate(config: RunConfig, directory: RunDirectory) -> list[Evaluation]:
    """Let the stored agents act, in this process, until each has had its episodes.

    The episodes of an agent are shared out over its environments beforehand, so that short ones do not count more.

    Args:
        config: The run's configuration.
        directory: Where its agents are stored.

    Returns:
        For each agent; fewer episodes than asked for if they did not end within ``evaluation.max_timesteps``.

    Raises:
        AgentError: An agent is not stored, or does not fit.
        ConfigError: The configuration cannot be made ready.
    """
    wanted, framework = config.evaluation, load_framework(config.framework)
    run = prepare(dataclasses.replace(config, orchestrator=OrchestratorConfig()))
    cfg = dataclasses.replace(config.trainer, timesteps=wanted.max_timesteps, disable_progressbar=True)
    results = [Evaluation() for _ in run.agents]
    with run.trainer(cfg=cfg, seed=wanted.seed) as trainer:
        for index, agent in enumerate(trainer.agents):
            directory.load_agent(agent, index, framework)
        remaining = np.concatenate([_shared_out(wanted.episodes, stop - start) for start, stop in trainer.scopes])
        scope_of = np.repeat(range(len(results)), [stop - start for start, stop in trainer.scopes])
        episodes = Episodes(len(remaining))
        for timestep in range(wanted.max_timesteps):
            if not remaining.any():
                break
            _, rewards, terminated, truncated, _ = trainer.eval(timestep=timestep)
            for row, episode_return, length in zip(
                *episodes.add(rewards, terminated, truncated, framework), strict=True
            ):
                if remaining[row]:
                    remaining[row] -= 1
                    results[scope_of[row]].returns.append(float(episode_return))
                    results[scope_of[row]].lengths.append(int(length))
    return results


def _shared_out(episodes: int, num_envs: int) -> Any:
    share, remainder = divmod(episodes, num_envs)
    return np.full(num_envs, share) + (np.arange(num_envs) < remainder)
