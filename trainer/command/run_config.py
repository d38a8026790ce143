"""The configuration of a run: typed dataclasses, read from YAML and checked key by key."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.scopes import resolve_scopes
from trainer._redaction import is_secret, redacted
from trainer.command.config_file import LONGEST_TOLD, dump_yaml, load_yaml, shortened
from trainer.config import StepTrainerCfg
from workers.errors import ConfigError, ScopeError, which_keys

__all__ = [
    "AgentConfig",
    "CallbackConfig",
    "CheckpointConfig",
    "EnvConfig",
    "EvaluationConfig",
    "LoggingConfig",
    "OrchestratorConfig",
    "RunConfig",
    "dump_config",
    "in_line",
    "load_config",
    "parse",
    "seconds_between",
]

_MOST_TOLD = 20
"""Number of errors that are told at once."""


@dataclass(kw_only=True)
class EnvConfig:
    """The environments. Set either `id` or `factory`."""

    id: str | None = None
    """Id of a Gymnasium environment, such as CartPole-v1 (package.module:Name-v0 imports the module first), or of a
    PettingZoo environment, such as classic/tictactoe_v3; or a module with parallel_env or env, such as
    mpe2.simple_spread_v3."""

    factory: str | None = None
    """Import path, package.module:build, of a function build(num_envs, first_env, **kwargs) that builds environments of
    any kind."""

    num_envs: int = 64
    """Total number of environments of all simultaneous agents."""

    kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments for gymnasium.make, pettingzoo.make, the module's function or the factory."""

    states: Literal["own", "joint", "none"] = "own"
    """States of a multi-agent environment. own: the environment's, if it has any; joint: the observations of all its
    agents; none: no states."""

    allow_nonfinite: bool = False
    """Whether observations, states and rewards may be NaN or infinite, which ends the run otherwise."""


@dataclass(kw_only=True)
class AgentConfig:
    """One simultaneous agent."""

    agent: str = "ppo"
    """ppo; for a multi-agent environment, ippo, or mappo with critics that see the states; or the import path,
    package.module:name, of a class or function that builds an agent."""

    scope: int | None = None
    """Number of environments of this agent. null for every agent: divide them as equally as possible."""

    cfg: dict[str, Any] = field(default_factory=dict)
    """Fields of PPOCfg for ppo, ippo and mappo; keyword arguments for any other agent."""

    device: str | None = None
    """Device of this agent, such as cuda:0; null: that of the run."""

    init: str | None = None
    """Run directory whose agent this one starts from, or one of its agents, such as runs/mine/agents/0; its scopes and
    framework may be others."""

    groups: dict[str, list[str]] = field(default_factory=dict)
    """For ippo and mappo, groups of agents that share their parameters: group name to list of agent names."""


@dataclass(kw_only=True)
class OrchestratorConfig:
    """The orchestrator: where the simultaneous agents live."""

    kind: Literal["local", "ray"] = "local"
    """local: in this process; ray: each agent in a Ray actor, together with its environments."""

    options: dict[str, Any] = field(default_factory=dict)
    """Fields of LocalOrchestrator (num_threads) or RayOrchestrator (also address, num_cpus, step_timeout, ...)."""


@dataclass(kw_only=True)
class LoggingConfig:
    """The run directory."""

    directory: str | None = None
    """Directory or fsspec URL; must be empty or not exist yet, unless --resume is given. null: runs/<name of the
    config>-<date and time>."""

    shared: bool = False
    """Whether other users of the machine may read the run directory, as far as the umask allows."""

    interval: int | None = None
    """Number of timesteps between writes of metrics and agents. null: a hundredth of trainer.timesteps."""


@dataclass(kw_only=True)
class CheckpointConfig:
    """The checkpoints, from which `lockstep resume` goes on."""

    interval: int | str | None = None
    """Number of timesteps between checkpoints, or a time such as 90s, 10min or 2h. null: every 10 seconds, or less
    often where they would take more than 1 % of the time."""

    keep_last: int = 2
    """Number of checkpoints that are kept; 0: none is written."""

    keep_best: int = 0
    """Number of checkpoints that are kept as well because their agents had the highest mean return in an evaluation;
    needs evaluation.every."""

    allow_pickle: bool = False
    """Whether to pickle what offers its state in no other way. Loading a pickle runs code, so `lockstep resume` loads
    only those that this user has signed."""

    required: bool = False
    """Whether a checkpoint that cannot be written, such as on a full disk, ends the run. Otherwise it goes on."""


@dataclass(kw_only=True)
class EvaluationConfig:
    """The evaluation during a run, at its end, and in `lockstep eval`."""

    every: int | None = None
    """Number of timesteps between evaluations during training, in environments of their own; null: at the end only."""

    episodes: int = 10
    """Number of episodes of each simultaneous agent; 0: no evaluation."""

    seed: int = 1_000_000
    """Seed of the evaluation: environment i gets seed + i, which must not be a seed of training."""

    max_timesteps: int = 10_000
    """Number of timesteps after which the evaluation ends, even if some episodes have not ended."""


@dataclass(kw_only=True)
class CallbackConfig:
    """A callback: what is done beside the training, on the driver."""

    callback: str
    """early_stopping, population, wandb, mlflow or trackio; or the import path, package.module:name, of a class or
    function that builds a Callback."""

    cfg: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments."""


@dataclass(kw_only=True)
class RunConfig:
    """The configuration of a run."""

    framework: Literal["torch", "jax", "warp"] = "torch"
    """Framework of the trainer and the agents."""

    env: EnvConfig
    """The environments."""

    device: str | None = None
    """Device of all agents, such as cpu or cuda, and of env.factory if it has a parameter device; null: the framework's
    default."""

    agents: list[AgentConfig] = field(default_factory=lambda: [AgentConfig()])
    """The simultaneous agents, in the order of their scopes."""

    trainer: StepTrainerCfg = field(default_factory=StepTrainerCfg)
    """The trainer; see StepTrainerCfg."""

    orchestrator: OrchestratorConfig = field(default_factory=OrchestratorConfig)
    """Where the simultaneous agents live."""

    seed: int | None = 0
    """Seed of environments and agents. null: nothing is seeded, and the run is not reproducible."""

    logging: LoggingConfig = field(default_factory=LoggingConfig)
    """Where the run directory is, and how often it is written."""

    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """How often checkpoints are written, and which are kept."""

    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """The evaluation during the run and at its end."""

    callbacks: list[CallbackConfig] = field(default_factory=list)
    """What else is done between iterations, in this order."""

    def validate(self) -> None:
        """Check what the types cannot express.

        Raises:
            ConfigError: A value is invalid; the message names the key.
        """
        env, scopes = self.env, [agent.scope for agent in self.agents]
        given = f"{env.id!r} and env.factory is {env.factory!r}"
        if (env.id is None) == (env.factory is None):
            raise ConfigError(f"env.id is {given}; expected one of them, and null for the other")
        agents = {f"agents.{i}.agent": agent.agent for i, agent in enumerate(self.agents)}
        inits = {f"agents.{i}.init": agent.init for i, agent in enumerate(self.agents)}
        names = {"env.id": env.id, "env.factory": env.factory, "logging.directory": self.logging.directory}
        devices = {"device": self.device} | {f"agents.{i}.device": agent.device for i, agent in enumerate(self.agents)}
        callbacks = {f"callbacks.{i}.callback": one.callback for i, one in enumerate(self.callbacks)}
        for key, name in (names | agents | inits | devices | callbacks).items():  # they are told as they are
            _require(name is None or name.isprintable(), key, name, "printable characters")
        _require(env.num_envs >= 1, "env.num_envs", env.num_envs, "an integer of at least 1")
        _require(bool(self.agents), "agents", self.agents, "at least one agent")
        sized = [scope is not None for scope in scopes]
        _require(all(sized) or not any(sized), "agents.*.scope", scopes, "a number for every agent, or for none")
        _require(self.seed is None or self.seed >= 0, "seed", self.seed, "an integer of at least 0, or null")
        interval, evaluation = self.logging.interval, self.evaluation
        _require(interval is None or interval >= 1, "logging.interval", interval, "an integer of at least 1, or null")
        with named("checkpoint.interval"):
            seconds_between(self.checkpoint.interval)
        kept = self.checkpoint.keep_last
        _require(kept >= 0, "checkpoint.keep_last", kept, "an integer of at least 0")
        best, every = self.checkpoint.keep_best, evaluation.every
        _require(best >= 0, "checkpoint.keep_best", best, "an integer of at least 0")
        _require(every is None or every >= 1, "evaluation.every", every, "an integer of at least 1, or null")
        _require(not best or every is not None, "checkpoint.keep_best", best, "0, or evaluation.every to be set")
        _require(not best or kept > 0, "checkpoint.keep_best", best, "0 if checkpoint.keep_last is 0")
        _require(
            every is None or evaluation.episodes > 0, "evaluation.every", every, "null if evaluation.episodes is 0"
        )
        for name, least in (("episodes", 0), ("seed", 0), ("max_timesteps", 1)):
            value = getattr(evaluation, name)
            _require(value >= least, f"evaluation.{name}", value, f"an integer of at least {least}")
        apart = self.seed is None or abs(evaluation.seed - self.seed) >= env.num_envs
        distance = f"a number at least {env.num_envs} (env.num_envs) away from seed"
        _require(apart, "evaluation.seed", evaluation.seed, distance)
        with named("trainer"):
            self.trainer.validate()
        try:
            resolve_scopes(
                [scope for scope in scopes if scope is not None],
                num_envs=env.num_envs,
                num_simultaneous_agents=len(scopes),
            )
        except ScopeError as error:
            raise ConfigError(f"agents.*.scope: {error}") from error


def seconds_between(interval: int | str | None) -> float | None:
    """Return the seconds between checkpoints; None if the interval is no time.

    Raises:
        ConfigError: The interval is invalid.
    """
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(s|min|h)", interval) if isinstance(interval, str) else None
    seconds = float(found[1]) * {"s": 1, "min": 60, "h": 3600}[found[2]] if found else None
    if not (interval is None or seconds or (isinstance(interval, int) and interval >= 1)):
        raise ConfigError(
            f"{interval!r} is given; expected a number of timesteps, a time such as 90s, 10min or 2h, or null"
        )
    return seconds


def _require(valid: bool, key: str, given: Any, expected: str) -> None:
    if not valid:
        raise ConfigError(f"{key} is {given!r}; expected {expected}")


class named:
    """Context manager that prefixes a `ConfigError` with the key of the run's configuration that it concerns."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, ConfigError):
            raise ConfigError(f"{self._key}: {error}") from error


def parse(kind: type[Any], data: Any, key: str = "") -> Any:
    """Build a dataclass from plain data. Types are strict: the only conversion is from an integer to a float.

    Args:
        kind: The dataclass; dataclasses nest.
        data: Mappings, lists and scalars, as loaded from YAML.
        key: Key of the data in the run's configuration, for messages.

    Raises:
        ConfigError: Values are invalid; for each one the message names the key, what was given and what is expected.
    """
    try:
        # as JSON, so that a list is accepted for a tuple
        adapter = _adapter(kind)  # type: ignore[arg-type]  # mypy does not know that a type is hashable
        return adapter.validate_json(json.dumps([data], default=str))[0]
    except ValidationError as error:
        details = error.errors(include_url=False)
        lines = [_explain(kind, key, detail) for detail in details[:_MOST_TOLD]]
        if len(details) > _MOST_TOLD:
            lines.append(f"... and {len(details) - _MOST_TOLD} more errors")
        raise ConfigError("\n".join(lines)) from None
    except (TypeError, ValueError, RecursionError) as error:  # keys that JSON does not allow, very large integers
        raise ConfigError(
            f"{key or 'the config'} is a {type(data).__name__}; expected a mapping with plain keys and values ({error})"
        ) from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Return an adapter for a list of `kind`: pydantic applies a config only to dataclasses nested in the type."""
    many: Any = list[kind]
    return TypeAdapter(many, config=ConfigDict(extra="forbid", strict=True))


def _explain(kind: type[Any], key: str, detail: ErrorDetails) -> str:
    location = detail["loc"][1:]
    place = ".".join([*filter(None, [key]), *map(in_line, location)]) or "the config"
    if detail["type"] == "json_invalid":
        return f"{place} contains a character that is not Unicode, or too many levels ({detail['msg']})"
    if detail["type"] == "unexpected_keyword_argument":
        allowed = [field.name for field in dataclasses.fields(_type_at(kind, location[:-1]))]
        return f"{place}: unknown key; {which_keys(location[-1:], allowed)}"
    if detail["type"] in ("missing", "missing_argument"):
        return f"{place} is missing"
    if detail["type"] == "value_error":
        return f"{place}: {detail['ctx']['error']}"
    expected = detail["msg"].removeprefix("Input should be ").replace("a valid array", "a list")
    if detail["type"] in ("dataclass_type", "dataclass_exact_type", "dict_type"):
        expected = "a mapping of keys to values"
    if detail["type"] == "int_type" and isinstance(detail["input"], float) and detail["input"].is_integer():
        expected += f": write {int(detail['input'])}"  # 1e4 is a float
    given = redacted(detail["input"], within=any(map(is_secret, location)))
    return f"{place} is {shortened(given)}; expected {expected}"


def in_line(key: int | str) -> str:
    """Return a part of a key as it is told within a line: a text from a file may imitate lines of output."""
    text = str(key)
    return text if text.isprintable() and len(text) <= LONGEST_TOLD else shortened(text)


def _type_at(kind: Any, location: Sequence[int | str]) -> Any:
    """Return the dataclass at a location within `kind`."""
    for name in location:
        kind = get_args(kind)[0] if isinstance(name, int) else get_type_hints(kind)[name]
    return kind


def load_config(text: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check a configuration.

    Args:
        text: YAML.
        overrides: ``key=value``, such as ``trainer.timesteps=1000`` or ``agents.0.cfg.rollouts=64``; values are YAML.

    Raises:
        ConfigError: The text is not valid YAML, or a value is invalid; the message says what and where.
    """
    config: RunConfig = parse(RunConfig, load_yaml(text, overrides))
    config.validate()
    return config


def dump_config(config: RunConfig) -> str:
    """Return the configuration as YAML with all defaults; `load_config` restores it.

    Raises:
        ConfigError: It is too large for `load_config`.
    """
    return dump_yaml(dataclasses.asdict(config))
