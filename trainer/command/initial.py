"""Agents that start from those of another run: with other scopes, or in another framework."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from orchestrator.run_dir import RunDirectory
from trainer._redaction import redacted
from trainer.command.job import lasting
from trainer.command.run_config import load_config
from workers.errors import AgentError, ConfigError, LockstepError
from workers.frameworks import load_framework
from workers.storage.agent_file import OWN, load_agent
from workers.storage.state_file import decode_state

__all__ = ["InitialAgent", "find_initial"]

_AGENT = re.compile("(.+)/agents/([0-9]{1,9})/?")


@dataclass(frozen=True)
class InitialAgent:
    """The file of an agent of another run.

    Attributes:
        key: Key of the configuration that names it, for errors.
        name: Name of the file; see `workers.storage.agent_file.dump_agent`.
        data: Its content.
        told: What is carried over, in words.
    """

    key: str
    name: str
    data: bytes
    told: str

    def load(self, agent: Any, framework: str) -> None:
        """Load the file into a new agent.

        Raises:
            AgentError: It does not fit.
        """
        try:
            load_agent(agent, self.name, self.data, load_framework(framework))
        except AgentError as error:
            raise AgentError(f"{self.key}: {error}") from error


def find_initial(url: str, index: int, *, trust: bool) -> InitialAgent:
    """Return the agent that another one starts from.

    Args:
        url: A run directory, or one of its agents, such as ``RUN_DIR/agents/0``. Without a number, it is the agent with
            the same index, or else the first one.
        index: Index of the agent that starts.
        trust: Whether to load an ``agent.bin`` that this user did not write. It can run code.

    Raises:
        ConfigError: There is no such agent, or it is not trusted.
    """
    key = f"agents.{index}.init"
    found = _AGENT.fullmatch(url)
    directory = RunDirectory(lasting(found[1] if found else url))
    try:
        timestep = directory.status()["timestep"]
        scope = int(found[2]) if found else index if directory.exists(f"agents/{index}") else 0
        name, data = directory.agent_file(scope)
        if name.endswith(OWN) and not trust and (reason := directory.foreign(name, data)):
            raise ConfigError(
                f"{name} of {url!r} is not known to be of this user ({reason}), and loading it can run code; pass "
                "--trust if you trust it"
            )
        told = _told(name, data)
        statistics = directory.statistics(scope)
        framework = load_config(directory.config()).framework
    except (LockstepError, OSError) as error:
        raise ConfigError(f"{key}: {error}") from error
    lost = ", the statistics of wrappers such as NormalizeObservation" if statistics else ""
    told = (
        f"agents.{index} starts from {redacted(directory.url)}/agents/{scope}, after {timestep} timesteps in "
        f"{framework}, with {told}. Not carried over: rollouts, replay memories, random streams{lost}"
    )
    return InitialAgent(key, name.rpartition("/")[2], data, told)


def _told(name: str, data: bytes) -> str:
    """Return what a file holds, in words."""
    if name.endswith(OWN):
        return "whatever its save() has written"
    state = decode_state(data, load_framework("numpy"))
    return f"its {', '.join(map(str, state))}" if isinstance(state, dict) else "its state"
