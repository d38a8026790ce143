"""The environments, agents and trainer that a run's configuration describes."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from orchestrator import LocalOrchestrator
from orchestrator.base import Orchestrator
from trainer._redaction import hide, redacted, secrets_in
from trainer.command.importing import find_modules, imported, told
from trainer.command.initial import InitialAgent, find_initial
from trainer.command.run_config import AgentConfig, EnvConfig, OrchestratorConfig, RunConfig, in_line, named, parse
from trainer.command.trust import code
from trainer.step import StepTrainer
from workers.agents import load_ppo
from workers.agents.independent import IndependentAgents, resolve_groups
from workers.agents.ppo import PPOCfg
from workers.envs import EnvFactory, make_env, wrap_env
from workers.envs.checking import is_multi_agent
from workers.envs.making import build_rows
from workers.errors import AgentError, ConfigError, LockstepError, close_or_log
from workers.frameworks import load_framework
from workers.threads import HeldThreads, thread_variables
from workers.types import Scope

__all__ = [
    "OURS",
    "AgentFactory",
    "Run",
    "build_orchestrator",
    "check_spaces",
    "factory_takes",
    "find_spaces",
    "prepare",
    "resolve",
]

_SPACES = ("observation_space", "action_space", "state_space")
_TEAM = ("possible_agents", "observation_spaces", "action_spaces", "state_spaces")
_GIVEN = ("scope", "num_envs", "device", *_SPACES, *_TEAM)
"""Arguments that an agent's class or function gets if it has a parameter of that name."""

_TEAMS = ("ippo", "mappo")
OURS = ("ppo", *_TEAMS)
"""Names of Lockstep's own agents, whose `cfg` has the fields of `PPOCfg`."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A prepared configuration: it has been checked, and no worker has been started.

    Attributes:
        config: The configuration, with all defaults filled in.
        env: The environments or their factory.
        agents: A factory for each simultaneous agent.
        orchestrator: The orchestrator.
    """

    config: RunConfig
    env: Any
    agents: Sequence[AgentFactory]
    orchestrator: Orchestrator

    def trainer(self, **changes: Any) -> StepTrainer[Any]:
        """Build the trainer.

        Args:
            changes: Arguments of `StepTrainer` that replace those of the configuration.
        """
        config = self.config
        module = importlib.import_module(f"trainer.{config.framework}")
        scopes = [agent.scope for agent in config.agents]
        arguments = {
            "env": self.env,
            "agents": list(self.agents),
            "scopes": None if None in scopes else scopes,
            "cfg": config.trainer,
            "orchestrator": self.orchestrator,
            "seed": config.seed,
        }
        try:
            trainer: StepTrainer[Any] = module.StepTrainer(**arguments | changes)
        except BaseException:
            self.close()
            raise
        return trainer

    @contextmanager
    def opened(self, **changes: Any) -> Iterator[StepTrainer[Any]]:
        """Build the trainer, and close it at the end; what it has done counts even if its environments raise then.

        Args:
            changes: See `trainer`.
        """
        trainer = self.trainer(**changes)
        try:
            yield trainer
        finally:
            close_or_log("the trainer", trainer.close)

    def close(self) -> None:
        """Close the environments, if no trainer was built to close them."""
        if not isinstance(self.env, EnvFactory):
            close_or_log("the environments", self.env.close)


def prepare(config: RunConfig, *, trust: bool = False, resumes: bool = False) -> Run:
    """Check a configuration and prepare a run.

    Args:
        config: The configuration.
        trust: Whether an agent may start from an ``agent.bin`` that this user did not write.
        resumes: Whether the agents go on from a checkpoint, whatever they started from.

    Raises:
        ConfigError: The configuration is invalid; the message names the key.
    """
    framework = load_framework(config.framework)
    orchestrator = build_orchestrator(config.orchestrator)
    threads = HeldThreads(framework, orchestrator.num_threads)
    config = resolve(config)
    agents = config.agents
    named = [None if resumes else agent.init for agent in agents]
    initial = [None if url is None else find_initial(url, index, trust=trust) for index, url in enumerate(named)]
    with threads, thread_variables(orchestrator.num_threads):
        env, spaces = _environment(config.env, config.framework, config.device)
    placed = [replace(agent, device=agent.device or config.device) for agent in agents]
    factories = [AgentFactory(agent, config.framework, spaces, one) for agent, one in zip(placed, initial, strict=True)]
    run = Run(config=config, env=env, agents=factories, orchestrator=orchestrator)
    try:
        for i, agent in enumerate(agents):
            check_spaces(agent, f"agents.{i}", spaces)
    except ConfigError:
        run.close()
        raise
    return run


def resolve(config: RunConfig) -> RunConfig:
    """Return the configuration with all defaults of its agents, checked.

    Raises:
        ConfigError: An agent's configuration is invalid; the message names the key.
    """
    _find_modules(config)
    load_framework(config.framework).silence()
    agents = [_resolved(agent, f"agents.{i}", config) for i, agent in enumerate(config.agents)]
    return replace(config, agents=agents)


def factory_takes(config: RunConfig, name: str) -> bool:
    """Return whether `env.factory` is set and its function has a parameter `name`.

    Raises:
        ConfigError: It cannot be imported.
    """
    _find_modules(config)
    factory = config.env.factory
    return factory is not None and name in _parameters(imported(factory, "env.factory"))


def find_spaces(config: RunConfig) -> dict[str, Any]:
    """Return what agents are built from, by argument name: an environment is built and closed for that.

    Raises:
        ConfigError: It cannot be built.
    """
    _find_modules(config)
    env, spaces = _environment(replace(config.env, num_envs=1), config.framework, config.device)
    if not isinstance(env, EnvFactory):
        close_or_log("the environment that was built to learn the spaces", env.close)
    return spaces


def _find_modules(config: RunConfig) -> None:
    """Let the modules be found that the environments and agents of a configuration name, if they name any.

    Where they name none, the current folder may be that of a stranger.
    """
    if code(config):
        find_modules()


@dataclass(frozen=True)
class AgentFactory:
    """Factory of the agent of one scope, called in the process where the agent will live.

    Attributes:
        config: The agent's configuration.
        framework: The run's framework.
        spaces: Spaces of one environment, by argument name.
        initial: The agent from which it starts, if there is one.
    """

    config: AgentConfig
    framework: str
    spaces: Mapping[str, Any]
    initial: InitialAgent | None = None

    def __call__(self, scope: Scope) -> Any:
        """Build the agent."""
        config = self.config
        if config.device:  # also of another library's agent, which may take another one without a word
            try:
                load_framework(self.framework).find_device(config.device)
            except AgentError as error:
                raise ConfigError(f"agents.{scope.index}.device: {error}") from error
        make = _agent_maker(config.agent, self.framework, "agent")
        device = {"device": config.device} if config.device else {}
        known = {"scope": scope, "num_envs": scope.num_envs, **device, **self.spaces}
        if config.agent in _TEAMS:
            spaces = {**self.spaces, "state_spaces": self.spaces["state_spaces"] if config.agent == "mappo" else None}
            member = partial(make, cfg=config.cfg, **device)
            return IndependentAgents(member, **spaces, num_envs=scope.num_envs, groups=config.groups)
        cfg = {"cfg": config.cfg} if config.agent == "ppo" else config.cfg
        return make(**{name: known[name] for name in known if name in _parameters(make)} | cfg)

    def after_init(self, agent: Any) -> None:
        """Load what the agent starts from."""
        if self.initial is not None:
            self.initial.load(agent, self.framework)


def _resolved(agent: AgentConfig, key: str, config: RunConfig) -> AgentConfig:
    """Return the agent's configuration, checked and with all defaults."""
    make = _agent_maker(agent.agent, config.framework, f"{key}.agent")
    if agent.groups and agent.agent not in _TEAMS:
        raise ConfigError(
            f"{key}.groups is {agent.groups!r}; expected none for {agent.agent!r}: only ippo and mappo have groups"
        )
    if agent.agent in OURS:
        cfg: PPOCfg = parse(PPOCfg, agent.cfg, f"{key}.cfg")
        with named(f"{key}.cfg"):
            cfg.validate()
        return replace(agent, cfg=dataclasses.asdict(cfg))
    device = agent.device or config.device
    given = [name for name in _GIVEN if name in _parameters(make) and (name != "device" or device)]
    if device and "device" not in given:
        raise ConfigError(f"{key} is for the device {device!r}, but {agent.agent} has no parameter 'device'; add one")
    try:
        inspect.signature(make).bind(**dict.fromkeys(given) | agent.cfg)
    except (TypeError, ValueError) as error:
        arguments = ", ".join([*given, *map(in_line, agent.cfg)]) or "nothing"
        raise ConfigError(
            f"{key}.cfg: {agent.agent} cannot be called with {arguments}: {error}; "
            f"it gets those of {', '.join(_GIVEN)} that are among its parameters, and the keys of cfg"
        ) from error
    return agent


def check_spaces(agent: AgentConfig, key: str, spaces: Mapping[str, Any]) -> None:
    """Check that one of Lockstep's own agents fits the kind of environment.

    Raises:
        ConfigError: It does not.
    """
    names = spaces.get("possible_agents")
    if agent.agent == "ppo" and names:
        raise ConfigError(
            f"{key}.agent is 'ppo'; expected 'ippo' or 'mappo' for an environment with the agents {names}"
        )
    if agent.agent not in _TEAMS:
        return
    if not names:
        raise ConfigError(f"{key}.agent is {agent.agent!r}; expected 'ppo' for an environment with a single agent")
    if agent.agent == "mappo" and None in spaces["state_spaces"].values():
        raise ConfigError(
            f"{key}.agent is 'mappo', but the environment has no states; set env.states to joint, or use 'ippo'"
        )
    try:
        resolve_groups(agent.groups, names)
    except AgentError as error:
        raise ConfigError(f"{key}.groups: {error}") from error


def _agent_maker(name: str, framework: str, key: str) -> Callable[..., Any]:
    if name in OURS:
        return load_ppo(framework)
    return imported(name, key, OURS)


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # some callables written in C have no signature
        return {}


def _environment(config: EnvConfig, framework: str, device: str | None) -> tuple[Any, dict[str, Any]]:
    """Return the environments (or their factory) and their spaces; a factory gets the device if it takes one."""
    key = "env.id" if config.factory is None else "env.factory"
    try:
        if config.factory is None:
            env = make_env(
                str(config.id),
                num_envs=config.num_envs,
                framework=framework,
                states=config.states,
                allow_nonfinite=config.allow_nonfinite,
                **config.kwargs,
            )
            return env, _spaces(env)
        build = imported(config.factory, key)
        given = {"device": device} if device and "device" in _parameters(build) else {}
        build = partial(build, **given | config.kwargs)
        if config.states != "own":
            build = partial(_with_states, build, framework, config.states)
        factory = EnvFactory(
            build, num_envs=config.num_envs, framework=framework, allow_nonfinite=config.allow_nonfinite
        )
        # a factory has no spaces: take those of its first environment
        env = build_rows(factory, 1, 0, framework=framework, seed=None)
        try:
            return factory, _spaces(env)
        finally:
            close_or_log("the environment that was built to learn the spaces", env.close)
    except ConfigError:
        raise
    except LockstepError as error:
        raise ConfigError(hide(f"{key}: {error}", secrets_in(config.kwargs))) from error
    except Exception as error:  # the user's environments may raise anything
        what = f"{key}: {config.id or config.factory} cannot be built with env.kwargs {redacted(config.kwargs)}"
        raise ConfigError(f"{what}: {told(error, secrets_in(config.kwargs))}") from error


def _with_states(build: Callable[[int, int], Any], framework: str, states: str, num_envs: int, first_env: int) -> Any:
    return wrap_env(build(num_envs, first_env), framework=framework, states=states)


def _spaces(env: Any) -> dict[str, Any]:
    """Return what agents are built from: the spaces and, in a multi-agent environment, the names of its agents."""
    if not is_multi_agent(env):
        return {name: getattr(env, name, None) for name in _SPACES}
    no_states = dict.fromkeys(env.possible_agents)
    return {name: getattr(env, name, no_states) for name in _TEAM}


def build_orchestrator(config: OrchestratorConfig) -> Orchestrator:
    """Build the orchestrator. Ray is imported only if it is used.

    Raises:
        ConfigError: An option is unknown or invalid.
    """
    kind: type[Any] = LocalOrchestrator
    if config.kind == "ray":
        from orchestrator.ray import RayOrchestrator

        kind = RayOrchestrator
    orchestrator: Orchestrator = parse(kind, config.options, "orchestrator.options")
    return orchestrator
