"""Sweeps: many agents in one run, several seeds of each configuration, and the table of their results."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trainer._redaction import redacted
from trainer.command.config_file import load_yaml
from trainer.command.run_config import AgentConfig, RunConfig, in_line, parse
from trainer.evaluation import Evaluation, rounded
from workers.errors import ConfigError

__all__ = ["distinct", "expand", "grouped", "results_table"]


_FEW = 2
"""Number of equal agents whose results need no table."""


def expand(config: RunConfig, *, seeds: int, vary: Sequence[str]) -> RunConfig:
    """Return a configuration with `seeds` agents for each combination of values, on scopes of one batch.

    Args:
        config: A configuration with one agent. Its environments are those of each agent.
        seeds: Number of agents with equal values, at least 1. Each has random streams and environments of its own.
        vary: ``key=value,value,...``, where the key is that of an agent, such as ``cfg.learning_rate``.

    Raises:
        ConfigError: There are several agents, or a value is invalid.
    """
    base, *others = config.agents
    if any(other != base for other in others):
        raise ConfigError("agents differ, and a sweep varies one; leave one agent in the configuration")
    if seeds < 1:
        raise ConfigError(f"--seeds is {seeds}; expected 1 or more")
    size = base.scope or config.env.num_envs // len(config.agents)
    names, values = zip(*map(_choices, vary), strict=True) if vary else ((), ())
    agents = []
    for combination in itertools.product(*values):
        data = dataclasses.asdict(base) | {"scope": size}
        for name, value in zip(names, combination, strict=True):
            _put(data, name, value)
        agent = parse(AgentConfig, data, "agents.*")
        agents += [agent] * seeds
    env = dataclasses.replace(config.env, num_envs=size * len(agents))
    expanded = dataclasses.replace(config, env=env, agents=agents)
    expanded.validate()
    return expanded


def _choices(text: str) -> tuple[str, list[Any]]:
    """Return the key and the values of ``key=value,value,...``."""
    name, separator, values = text.partition("=")
    found = load_yaml(f"values: [{values}]").get("values") if separator and values else None
    if not isinstance(found, list) or not found:
        raise ConfigError(f"--vary {text!r}; expected key=value,value,... such as cfg.learning_rate=1e-3,3e-4")
    return name.strip(), found


def _put(data: dict[str, Any], name: str, value: Any) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        inner = data.get(parent)
        if not isinstance(inner, dict):
            raise ConfigError(f"--vary {in_line(name)}: an agent has no {in_line(parent)!r} with keys of its own")
        data[parent] = data = dict(inner)
    data[last] = value


def results_table(config: RunConfig, results: Sequence[Evaluation]) -> Iterator[str]:
    """Yield the lines of a table of the different configurations of agents, the best first.

    Args:
        config: The configuration of the run.
        results: The results of each simultaneous agent.

    Yields:
        Nothing for one or two equal agents, and for those of a population: their hyper-parameters have changed.
    """
    groups = grouped([dataclasses.asdict(agent) for agent in config.agents])
    changes = any(callback.callback == "population" for callback in config.callbacks)
    if changes or (len(results) <= _FEW and len(groups) == 1):
        return
    means = {label: [results[index].mean for index in members] for label, members in groups.items()}
    ranked = sorted(groups, key=lambda label: -np.nan_to_num(np.mean(means[label]), nan=-np.inf))
    rows: list[tuple[str, ...]] = [("configuration", "agents", "return", "worst", "best", "scopes")]
    for label in ranked:
        found, members = means[label], groups[label]
        spread = f"{rounded(np.mean(found))} ± {rounded(np.std(found))}"
        scopes = f"{members[0]} to {members[-1]}" if len(members) > 1 else f"{members[0]}"
        ends = [f"{rounded(found[at])} (scope {members[at]})" for at in (int(np.argmin(found)), int(np.argmax(found)))]
        rows.append((label, str(len(found)), spread, *ends, scopes))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def grouped(agents: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Return the indices of the agents with equal configurations, by what tells these apart.

    Args:
        agents: The configuration of each simultaneous agent, as plain data. Its secrets are not told.
    """
    flat = [dict(_flat(redacted({**agent, "scope": None}))) for agent in agents]
    keys = dict.fromkeys(key for one in flat for key in one)
    differing = [key for key in keys if len({one.get(key) for one in flat}) > 1]
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, one in enumerate(flat):
        groups.setdefault(tuple(one.get(key, "default") for key in differing), []).append(index)
    labels = (
        ", ".join(f"{in_line(key)}={in_line(value)}" for key, value in zip(differing, values, strict=True))
        for values in groups
    )
    return dict(zip(distinct(label or "all agents" for label in labels), groups.values(), strict=True))


def distinct(names: Iterable[str]) -> list[str]:
    """Return names that differ: a second one that is equal to an earlier one ends with ``(2)``."""
    found: list[str] = []
    for name in names:
        numbered = (f"{name} ({number})" for number in itertools.count(2))
        found.append(next(one for one in itertools.chain([name], numbered) if one not in found))
    return found


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield all values of nested mappings, as text, with their keys."""
    for name, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(value, default=str)
