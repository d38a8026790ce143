"""Trained policies: the agents of a run directory, to act with, and as ONNX models.

Imports ``trainer.command``, which reads configurations. Imported by the command line and by users.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.run_dir import RunDirectory
from trainer.command.evaluation import as_stored
from trainer.command.run import OURS, AgentFactory
from trainer.command.run_config import AgentConfig, load_config, parse
from trainer.command.stored_spaces import read_spaces
from workers.agents.independent import resolve_groups
from workers.agents.onnx_policy import policy_model
from workers.agents.ppo import PPOCfg
from workers.errors import AgentError, ConfigError, LockstepError
from workers.frameworks import load_framework
from workers.storage.agent_file import STATE
from workers.storage.space_data import to_data
from workers.storage.state_file import decode_state
from workers.types import Scope

__all__ = ["export_onnx", "load_agent"]

_logger = logging.getLogger("lockstep")


def load_agent(run_dir: str, scope: int = 0, *, device: Any = None, trust: bool = False) -> Any:
    """Load the trained agent of a scope, one of Lockstep's own, to act with it.

    Two lines are a policy::

        agent = load_agent("runs/mine")
        actions = agent.predict(observations)

    The environment is not needed: the run has stored its spaces. In a run directory of an older version it has not, so
    the environment is built once.

    Args:
        run_dir: A run directory of `lockstep train`: a path, or a URL that fsspec supports.
        scope: Index of the simultaneous agent.
        device: Device of the agent, such as ``"cuda:0"``; None: the framework's default, whatever the run used.
        trust: Whether the environment may be built, where that is needed, if the configuration names code for it and
            is not known to be of this user.

    Returns:
        A `PPO`, or `IndependentAgents` for a team, of the run's framework, in evaluation and for any number of rows.
        It holds what was learned, but no rollout, and its ``cfg`` has rollouts of one timestep.

    Raises:
        ConfigError: This is no run directory, it has no such scope, its agent is none of Lockstep's own, or its
            environment is not trusted.
        AgentError: Nothing is stored, it does not fit, or the agent cannot be built.
    """
    stored = _Stored.find(run_dir, scope, trust=trust)
    _warn_of_statistics(stored)
    cfg = dataclasses.asdict(stored.cfg) | {"rollouts": 1, "mini_batches": 1}  # so that it takes little memory
    config = dataclasses.replace(stored.config, cfg=cfg, device=device)
    try:
        agent = AgentFactory(config, stored.framework, stored.spaces)(Scope(scope, 0, 1))
    except LockstepError:
        raise
    except Exception as error:  # the spaces may be those of a stranger, and too large
        raise AgentError(
            f"the agent of scope {scope} in {stored.directory.url!r} cannot be built: {type(error).__name__}: {error}"
        ) from error
    stored.directory.load_agent(agent, scope, load_framework(stored.framework))
    return agent


def export_onnx(run_dir: str, path: str | Path, scope: int = 0, *, trust: bool = False) -> list[Path]:
    """Write the trained policy of a scope as an ONNX model, from what is stored; `policy_model` describes the model.

    Its metadata say ``framework``; ``timestep``, that of the stored agent; ``observation_space`` and ``action_space``,
    as JSON; for a team ``agents``, their names; and ``wrapper_statistics``, the names of those by which wrappers
    normalised the observations outside of the policy, if there are any. The run's framework need not be installed.

    Args:
        run_dir: See `load_agent`.
        path: The file. For a team, a folder, in which each agent or group gets a file of its name: ``wings.onnx``.
        scope: See `load_agent`.
        trust: See `load_agent`.

    Returns:
        The files that were written.

    Raises:
        ConfigError: See `load_agent`; or the package onnx is not installed, or `path` does not suit.
        AgentError: Nothing is stored, or it does not fit.
        OSError: A file cannot be written.
    """
    stored, path = _Stored.find(run_dir, scope, trust=trust), Path(path)
    told = {"framework": stored.framework, "timestep": str(stored.directory.status()["timestep"])}
    if statistics := _warn_of_statistics(stored):
        told["wrapper_statistics"] = json.dumps(statistics)
    state = stored.state()
    names = stored.spaces.get("possible_agents")
    if names is None:
        path.write_bytes(stored.model(state, stored.spaces, told))
        return [path]
    groups = resolve_groups(stored.config.groups, names)
    files = {group: path / f"{_file_name(group)}.onnx" for group in groups}
    if path.suffix == ".onnx":
        raise ConfigError(f"{str(path)!r} is given for a team; expected a folder, for {', '.join(files)}")
    models = {
        group: stored.model(
            state.get(group, {}),
            {f"{kind}_space": stored.spaces[f"{kind}_spaces"][members[0]] for kind in ("observation", "action")},
            told | {"agents": json.dumps(members)},
        )
        for group, members in groups.items()
    }
    path.mkdir(parents=True, exist_ok=True)
    for group, model in models.items():
        files[group].write_bytes(model)
    return list(files.values())


@dataclass(frozen=True)
class _Stored:
    """What is stored of an agent.

    Attributes:
        directory: The run directory.
        scope: Index of the agent's scope.
        framework: The run's framework.
        config: The agent's configuration.
        cfg: The configuration of PPO.
        spaces: Spaces of one environment, by argument name.
    """

    directory: RunDirectory
    scope: int
    framework: str
    config: AgentConfig
    cfg: PPOCfg
    spaces: Mapping[str, Any]

    @classmethod
    def find(cls, run_dir: str, scope: int, *, trust: bool) -> _Stored:
        """Read everything but the state."""
        directory = RunDirectory(run_dir)
        config = load_config(directory.config())
        config = dataclasses.replace(config, agents=as_stored(config.agents))
        if not 0 <= scope < len(config.agents):
            raise ConfigError(
                f"scope is {scope}; expected 0 to {len(config.agents) - 1}, as {directory.url!r} has them"
            )
        agent = config.agents[scope]
        if agent.agent not in OURS:
            raise ConfigError(
                f"the agent of scope {scope} in {directory.url!r} is {agent.agent!r}; expected one of Lockstep's own, "
                f"{', '.join(OURS)}: build the agent yourself, and load it with RunDirectory(...).load_agent"
            )
        cfg = parse(PPOCfg, agent.cfg, f"agents.{scope}.cfg")
        spaces = read_spaces(directory, config, scope, trust=trust)
        return cls(directory, scope, config.framework, agent, cfg, spaces)

    def state(self) -> dict[str, Any]:
        """Return the agent's `state_dict`, with arrays of NumPy."""
        name, data = self.directory.agent_file(self.scope)
        try:
            if not name.endswith(STATE):
                raise AgentError(f"it is no {STATE}")
            state = decode_state(data, load_framework("numpy"))
            if not isinstance(state, dict):
                raise AgentError("it is not the state of an agent")
        except AgentError as error:
            raise AgentError(f"{self.directory.url}/{name}: {error}") from error
        return state

    def model(self, state: Mapping[str, Any], spaces: Mapping[str, Any], told: Mapping[str, str]) -> bytes:
        """Return the model of a single agent."""
        both = {name: spaces[name] for name in ("observation_space", "action_space")}
        texts = {name: json.dumps(to_data(space)) for name, space in both.items()}
        return policy_model(state, **both, cfg=self.cfg, metadata={**told, **texts})


def _warn_of_statistics(stored: _Stored) -> list[str]:
    """Return the names of the statistics that normalised observations outside of the agent, and tell of them."""
    rows = stored.directory.statistics(stored.scope)
    names = sorted({name for row in rows for name in row if not name.endswith("return_rms")})  # those of rewards
    if names:
        _logger.warning(
            "wrappers of the environments normalised the observations of this agent, each by its own statistics (%s): "
            "the policy takes what they gave, not raw observations. %s/agents/%d/statistics.safetensors has the "
            "statistics; with normalize_observations of PPO, they are part of the policy",
            ", ".join(names),
            stored.directory.url,
            stored.scope,
        )
    return names


def _file_name(group: str) -> str:
    """Return the name of a group, which is that of its file.

    Raises:
        ConfigError: It is no name of a file.
    """
    if not group.isprintable() or "/" in group or "\\" in group:
        raise ConfigError(f"the agent or group {group!r} cannot be the name of a file; rename it")
    return group
