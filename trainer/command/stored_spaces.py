"""The spaces of a run in its directory, so that its agents can be built without its environments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gymnasium import Space

from orchestrator.run_dir import RunDirectory
from trainer.command.run import check_spaces, find_spaces
from trainer.command.run_config import RunConfig
from trainer.command.trust import check_run
from workers.errors import ConfigError
from workers.storage.space_data import from_data, to_data

__all__ = ["read_spaces", "write_spaces"]

_SPACES = "spaces.json"
_KINDS = ("observation", "action", "state")


def write_spaces(directory: RunDirectory, spaces: Mapping[str, Any]) -> None:
    """Write the spaces of one environment, as `AgentFactory` has them.

    Raises:
        OSError: They cannot be written.
    """
    directory.write(_SPACES, json.dumps(to_data(spaces)))


def read_spaces(directory: RunDirectory, config: RunConfig, scope: int, *, trust: bool) -> dict[str, Any]:
    """Return the spaces of one environment for one of Lockstep's own agents.

    A directory of an older version has none: there, an environment is built.

    Args:
        directory: The run directory.
        config: Its configuration.
        scope: Index of the agent's scope.
        trust: Whether to build an environment for which the configuration, not of this user, names code.

    Raises:
        ConfigError: The file is damaged, does not fit the agent, or the environment is not trusted or cannot be built.
    """
    agent = config.agents[scope]
    if not directory.exists(_SPACES):
        config = replace(config, agents=[agent])
        if not trust:
            check_run(directory, directory.config(), config, ())
        return find_spaces(config)
    data = directory.read_json(_SPACES, "is damaged")
    try:
        spaces: dict[str, Any] = from_data(data)
        if not _are_whole(spaces):
            raise ConfigError("they are not those of an environment")
        check_spaces(agent, f"agents.{scope}", spaces)
    except ConfigError as error:
        raise ConfigError(f"{directory.url}/{_SPACES}: {error}") from error
    return spaces


def _are_whole(spaces: Mapping[str, Any]) -> bool:
    """Whether these are all spaces of an environment, for every agent of a team."""
    names = spaces.get("possible_agents")
    if names is None:
        return all(isinstance(spaces.get(f"{kind}_space", 0), Space | None) for kind in _KINDS)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return False
    by_name = [spaces.get(f"{kind}_spaces") for kind in _KINDS]
    return all(
        isinstance(each, dict) and all(isinstance(each.get(name, 0), Space | None) for name in names)
        for each in by_name
    )
