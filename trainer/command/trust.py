"""What a configuration runs, and the check that a run directory of somebody else does not run it unasked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.origin import ORIGIN
from orchestrator.run_dir import CONFIG, RunDirectory
from trainer.command.run_config import RunConfig
from workers.envs.making import imports_module
from workers.errors import ConfigError
from workers.storage.agent_file import OWN

__all__ = ["check_config", "check_resumed", "check_run", "code"]

Key = tuple[str, ...]

_OF_A_RUN = (
    ORIGIN,
    "status.json",
    "versions.json",
    "agents",
    "metrics.csv",
    "tensorboard",
    "evaluation.json",
    "checkpoints",
)
"""Names by which the folder of a configuration is known as a run directory."""

_LISTS = ("agents", "callbacks")
"""Lists of a configuration whose items have a `cfg`."""

_SENDING = ("wandb", "mlflow", "trackio")
"""Callbacks that send data to where their `cfg` says."""

_MOST_TEXTS, _LONGEST = 20, 200
"""How many texts are told that may name code, and how many characters of a value."""


def code(config: RunConfig) -> dict[Key, str]:
    """Return the values that name code of environments and agents, by key: import paths, and names of modules.

    Among the keyword arguments of environments and agents, these are all texts with a colon or a slash: some
    environments make another one by its name, which may be an import path, and others open files and URLs.
    """
    found: dict[Key, str] = {}
    env = config.env
    if env.factory is not None:
        found["env", "factory"] = env.factory
    if env.id is not None and imports_module(env.id):
        found["env", "id"] = env.id
    arguments = [*_texts(env.kwargs, ("env", "kwargs"))]
    for index, agent in enumerate(config.agents):
        if ":" in agent.agent:
            found["agents", str(index), "agent"] = agent.agent
        arguments += _texts(agent.cfg, ("agents", str(index), "cfg"))
    return found | _marked(arguments)


def _callbacks(config: RunConfig) -> dict[Key, str]:
    """Return the values that name code of callbacks, which only training runs, by key, and what sends data away."""
    found: dict[Key, str] = {}
    arguments: list[tuple[Key, str]] = []
    for index, callback in enumerate(config.callbacks):
        if ":" in callback.callback or callback.callback in _SENDING:
            found["callbacks", str(index), "callback"] = callback.callback
        arguments += _texts(callback.cfg, ("callbacks", str(index), "cfg"))
    return found | _marked(arguments)


def _marked(arguments: list[tuple[Key, str]]) -> dict[Key, str]:
    return {key: text for key, text in arguments if any(mark in text for mark in ":/\\")}


def check_run(directory: RunDirectory, text: str, config: RunConfig, overrides: Sequence[str]) -> None:
    """Check that `lockstep eval` runs only what this user wrote or names.

    Args:
        directory: The run directory.
        text: Its configuration, as read.
        config: The configuration with the user's overrides.
        overrides: ``key=value``; see `load_config`.

    Raises:
        ConfigError: There is more; the message names it.
        AgentError: An agent is not stored.
    """
    told, reasons = _foreign(directory, text, code(config), overrides)
    for index, agent in enumerate(config.agents):
        if ":" in agent.agent:  # ours never load what can run code
            name, data = directory.agent_file(index)
            if name.endswith(OWN) and (reason := directory.foreign(name, data)):
                told.append(name)
                reasons.append(reason)
    _refuse(directory, told, reasons)


def check_config(path: str, text: str, config: RunConfig, overrides: Sequence[str]) -> None:
    """Check that a configuration, if it is that of a run directory, uses only what this user wrote or names.

    Any other configuration is a program that the user chose to run.

    Args:
        path: Path of the configuration.
        text: See `check_run`.
        config: See `check_run`.
        overrides: See `check_run`.

    Raises:
        ConfigError: There is more; the message names it.
    """
    place = Path(path).absolute()
    if place.name != CONFIG or not any(os.path.lexists(place.with_name(name)) for name in _OF_A_RUN):
        return
    check_resumed(RunDirectory(str(place.parent)), text, config, overrides)


def check_resumed(directory: RunDirectory, text: str, config: RunConfig, overrides: Sequence[str]) -> None:
    """Check that training with the configuration of a run directory uses only what this user wrote or names.

    Args:
        directory: See `check_run`.
        text: See `check_run`.
        config: See `check_run`.
        overrides: See `check_run`.

    Raises:
        ConfigError: There is more; the message names it.
    """
    named = code(config) | _callbacks(config)
    address, folder = config.orchestrator.options.get("address"), config.logging.directory
    if address not in (None, "auto"):
        named["orchestrator", "options", "address"] = address
    if folder is not None:
        named["logging", "directory"] = folder
    named |= {("agents", str(i), "init"): agent.init for i, agent in enumerate(config.agents) if agent.init is not None}
    if config.orchestrator.kind == "ray":  # its workers look for modules in the current folder first
        named["orchestrator", "kind"] = "ray"
    _refuse(directory, *_foreign(directory, text, named, overrides))


def _foreign(
    directory: RunDirectory, text: str, named: Mapping[Key, str], overrides: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return what the configuration of a run directory names, and why it may be somebody else's."""
    set_keys = {tuple(override.partition("=")[0].strip().split(".")) for override in overrides}
    left = {key: value for key, value in named.items() if not any(key[: len(one)] == one for one in set_keys)}
    reason = directory.foreign(CONFIG, text.encode()) if left else ""
    if not reason:
        return [], []
    texts = [key for key in left if key[:2] == ("env", "kwargs") or (key[0] in _LISTS and key[2] == "cfg")]
    told = [_told(key, value) for key, value in left.items() if key not in texts]
    told += [_told(key, left[key]) for key in texts[:_MOST_TEXTS]]
    if len(texts) > _MOST_TEXTS:
        told.append(f"{len(texts) - _MOST_TEXTS} more texts in env.kwargs, agents.*.cfg and callbacks.*.cfg")
    return told, [reason]


def _told(key: Key, value: str) -> str:
    # in ASCII: other letters may look like these, or move the cursor
    name, text = ascii(".".join(key))[1:-1], ascii(value)
    return f"{name[:_LONGEST]} = {text if len(text) <= _LONGEST else text[:_LONGEST] + '...'}"


def _refuse(directory: RunDirectory, told: Sequence[str], reasons: Sequence[str]) -> None:
    if told:
        raise ConfigError(
            f"the run directory {directory.url!r} is not known to be of this user "
            f"({', '.join(dict.fromkeys(reasons))}), and these would be run or opened: {', '.join(told)}. Read them, "
            "and pass --trust if you trust them"
        )


def _texts(value: Any, key: Key) -> Iterator[tuple[Key, str]]:
    """Yield all texts in plain data, with their keys."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(item, (*key, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, (*key, str(index)))
