"""The best agents of a run, in a run directory of their own."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from orchestrator.run_dir import RunDirectory
from trainer.callbacks.loop import Callback, Loop
from trainer.command.evaluation import store
from trainer.command.run_config import RunConfig
from trainer.command.run_log import stored
from trainer.command.stored_spaces import write_spaces
from trainer.evaluation import Evaluated
from workers.errors import ConfigError

__all__ = ["BEST", "BestAgents"]

_logger = logging.getLogger("lockstep")

BEST = "best"
"""Name of the folder in a run directory."""


class BestAgents(Callback):
    """Callback that stores the agents of the evaluation with the highest mean return over all simultaneous agents.

    The folder is a run directory: the verbs that take one, such as ``eval`` and ``export``, take it too.
    """

    def __init__(self, directory: RunDirectory, config: RunConfig, spaces: Mapping[str, Any]) -> None:
        """Take what is needed; nothing is written.

        Args:
            directory: The run directory.
            config: The configuration of the run.
            spaces: Spaces of one environment, by argument name.
        """
        self._directory = RunDirectory(f"{directory.url}/{BEST}", shared=config.logging.shared)
        self._config, self._spaces = config, spaces
        self._best: float | None = None

    def on_evaluation(self, loop: Loop, evaluation: Evaluated) -> None:
        """Store the agents, if they are the best so far. A write that fails is told, and the training goes on."""
        if not evaluation.mean > (-math.inf if self._best is None else self._best):  # NaN: some episodes did not end
            return
        directory = self._directory
        try:
            directory.write_config(stored(self._config))
            directory.write_agents(evaluation.files, evaluation.statistics)
            write_spaces(directory, self._spaces)
            status = {"state": "finished", "timestep": evaluation.timestep, "stopped": "these are the best agents"}
            directory.write("status.json", json.dumps(status))
            store(evaluation.results, directory)
        except (ConfigError, OSError) as error:  # a ConfigError if the folder cannot be written
            _logger.error("%s cannot be written; training continues: %s", directory.url, error)
        else:
            self._best = evaluation.mean

    def state_dict(self) -> Mapping[str, Any]:
        """Return the mean return of the best agents."""
        return {"best": self._best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` returned."""
        self._best = state["best"]
