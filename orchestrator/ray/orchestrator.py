"""RayOrchestrator: starts a trainer's scopes in Ray actors."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Literal, get_args

from ray import cloudpickle

from orchestrator.base import Plan, build_environments, check_num_threads, check_replay_limit, names_keys
from orchestrator.ray.actor_calls import ActorCalls
from orchestrator.ray.bundles import Amount, Amounts, Bundle, Selector, check_options, make_bundles
from orchestrator.ray.cluster import Cluster, connect
from orchestrator.ray.connection import Connections
from orchestrator.ray.crew import Crew
from orchestrator.ray.fitting import Strategy
from orchestrator.ray.head import HeadWatch
from orchestrator.ray.options import RecoveryOptions
from orchestrator.ray.patience import StepPatience
from orchestrator.ray.rebuilding import Team
from orchestrator.ray.recovery import Recovery
from orchestrator.ray.requests import Door
from orchestrator.ray.session import RaySession
from orchestrator.ray.snapshots import Snapshots
from orchestrator.ray.starting import StartTime, with_hint
from orchestrator.ray.transport import Streams
from workers.envs import EnvFactory
from workers.envs.base import recipe_of
from workers.errors import AgentError, ConfigError, EnvError, LockstepError, WorkerError, build_error, message_of
from workers.members import is_factory
from workers.remote.spec import WorkerSpec
from workers.threads import thread_variables
from workers.types import Scope

__all__ = ["RayOrchestrator"]

_logger = logging.getLogger("lockstep")

_ACTOR_CALLS = "steps go through plain actor calls instead of connections"


@names_keys
@dataclass(frozen=True, kw_only=True)
class RayOrchestrator(RecoveryOptions):
    """An orchestrator that runs each simultaneous agent in its own Ray actor, and rebuilds actors that are lost."""

    address: str | None = None
    """Address of the Ray cluster: ``"auto"``, ``"host:port"`` of the head node, or ``"ray://host:port"`` of its client
    server, for a program outside of the cluster. None uses the environment variable ``RAY_ADDRESS``, or starts Ray on
    this machine if it is not set. A process that is already connected to Ray keeps its connection; Lockstep warns if
    the address is another one."""

    strategy: Strategy = "PACK"
    """How Ray places the workers: ``"PACK"`` on as few nodes as possible, ``"SPREAD"`` over the nodes as evenly as
    possible, ``"STRICT_SPREAD"`` each on a node of its own."""

    num_cpus: Amount = 1
    """CPUs that Ray reserves for each worker. They decide where a worker runs, and never change results: how many
    threads it computes with is `num_threads`. Here and in the next three, give one value for all workers, or a sequence
    with one for each simultaneous agent."""

    num_gpus: Amount = 0
    """GPUs that Ray reserves for each worker: a part of one, or a whole number."""

    resources: Amounts = field(default_factory=dict)
    """Amounts of custom resources that Ray reserves for each worker, by name."""

    label_selector: Selector = field(default_factory=dict)
    """Labels that the worker's node must have, as Ray writes them: ``{"zone": "a"}``, ``{"zone": "!a"}``,
    ``{"zone": "in(a, b)"}``. ``{"ray.io/node-id": …}`` selects one node."""

    num_threads: int = 1
    """Compute threads of each worker, and of this process while the trainer works. One number for all."""

    transport: Literal["connection", "ray"] = "connection"
    """How requests reach the workers. ``"connection"`` uses an authenticated connection to each worker, and shared
    memory for large outputs on this machine. ``"ray"`` uses plain actor calls, which take a millisecond more. If
    workers cannot be connected to, Lockstep logs the reason and uses plain actor calls."""

    sign_arrays: bool = False
    """Whether the connections protect the values of arrays, too, from being changed on their way. Everything else is
    protected in any case. It takes a millisecond for each megabyte."""

    start_timeout: float = 600
    """Time to connect and to build all workers, in seconds. Workers that die, do not fit on the nodes, or do not answer
    for a minute fail earlier."""

    step_timeout: float = 300
    """Time for one iteration, updates included, in seconds."""

    replay_limit: int = 10_000
    """As `LocalOrchestrator.replay_limit`."""

    def __post_init__(self) -> None:
        check_num_threads(self.num_threads)
        check_replay_limit(self.replay_limit)
        check_options(**self._bundle_options)
        self.check()
        for name in ("start_timeout", "step_timeout"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"RayOrchestrator: {name} is {getattr(self, name)} s; expected more than 0")
        for name, choices in (("transport", ("connection", "ray")), ("strategy", get_args(Strategy))):
            if getattr(self, name) not in choices:
                expected = f"{', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}"
                raise ConfigError(f"RayOrchestrator: {name} is {getattr(self, name)!r}; expected {expected}")

    @property
    def _bundle_options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in Bundle._fields}

    def bundles(self, number: int) -> list[Bundle]:
        """Return what each of `number` workers asks of its node.

        Raises:
            ConfigError: An option has values for another number of workers.
        """
        return make_bundles(number, **self._bundle_options)

    def start(self, plan: Plan) -> RaySession:
        """Connect to Ray, reserve a bundle for each worker, and build all workers. On failure, release everything.

        Raises:
            ConfigError: An option has values for another number of simultaneous agents.
            ClusterError: Ray cannot be reached, or lacks the requested resources.
            AgentError: An agent cannot be pickled.
            EnvError: The environment factory cannot be pickled, or builds something other than requested.
            WorkerError: A worker or the shared environments could not be built.
        """
        time = StartTime(self.start_timeout)
        bundles = self.bundles(len(plan.scopes))
        if self.spares and any(bundle != bundles[0] for bundle in bundles):
            raise ConfigError(
                "RayOrchestrator: a spare replaces any worker, so spares need equal resources for all workers"
            )
        recipe = _recipe(plan.env)
        agents = [_pickled_agent(agent, scope) for agent, scope in zip(plan.agents, plan.scopes, strict=True)]
        env = None if recipe is None else _pickled_env(recipe)
        with ExitStack() as cleanup:
            shared = None
            if recipe is None:
                with thread_variables(self.num_threads):
                    shared = build_environments(plan, replay_limit=self.replay_limit)
            cluster = connect(self.address, timeout=time.left)
            cleanup.callback(cluster.disconnect)
            started = monotonic()
            connects = self._connects()
            crew = Crew(
                cluster,
                bundles,
                plan.scopes,
                strategy=self.strategy,
                num_threads=self.num_threads,
                spares=self.spares,
                connects=connects,
                time=time,
            )
            cleanup.callback(crew.close)
            doors = crew.start(time, tries=2 if self.recovers else 1)
            streams = self._streams(cluster, crew.actors, plan.scopes, doors, connects=connects)
            cleanup.callback(streams.close)
            streams.nodes = [door.address.host for door in doors]  # until the workers tell
            watch = HeadWatch()
            cleanup.callback(watch.close)
            streams.check = watch.check
            space = None if shared is None else cloudpickle.dumps(shared.observation_space)
            specs = [
                WorkerSpec(
                    scope=scope,
                    framework=plan.framework.name,
                    agent=agent,
                    env=env,
                    observation_space=space,
                    cfg=cloudpickle.dumps(plan.cfg),
                    seed=plan.seed,
                    num_threads=self.num_threads,
                    replay_limit=self.replay_limit,
                    modules=tuple(name for name in ("skrl",) if name in sys.modules),
                )
                for scope, agent in zip(plan.scopes, agents, strict=True)
            ]

            def patience() -> StepPatience:
                return StepPatience(self.step_timeout, hang_timeout=self.hang_timeout, nodes=streams.nodes)

            snapshots = Snapshots(self.snapshot_url, self.bytes_of_snapshots())
            cleanup.callback(snapshots.close)
            recovery = Recovery(Team(crew, streams, specs, plan.scopes, self, patience, snapshots))
            try:
                recovery.build(time)
            except WorkerError as error:
                raise build_error([with_hint(failure) for failure in error.failures]) from None
            are = "worker is" if len(specs) == 1 else "workers are"
            _logger.info("%d %s ready after %.1f s", len(specs), are, monotonic() - started)
            return RaySession(plan, shared, streams, recovery, patience=patience, release=cleanup.pop_all().close)
        raise AssertionError("unreachable")

    def _connects(self) -> bool:
        """Return whether this process should connect to the workers."""
        if self.transport == "ray":
            return False
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("0", "false", ""):
            return True
        _logger.warning("%s: RAY_USE_TLS is set, but connections are not encrypted", _ACTOR_CALLS)
        return False

    def _streams(
        self, cluster: Cluster, actors: list[Any], scopes: Sequence[Scope], doors: Sequence[Door], *, connects: bool
    ) -> Streams:
        """Return the request streams to the actors."""
        unreachable = ""
        if connects:
            try:
                return Connections(
                    cluster, actors, scopes, doors, sign_arrays=self.sign_arrays, node_timeout=self.node_timeout
                )
            except OSError as error:
                unreachable = f"{type(error).__name__}: {error}"
                _logger.warning("%s: %s", _ACTOR_CALLS, unreachable)
        calls = ActorCalls(cluster, actors, scopes, doors)
        calls.unreachable = unreachable
        return calls


def _recipe(env: Any) -> EnvFactory | None:
    """Return the recipe for the environments of each scope, or None if they can only be shared."""
    recipe = recipe_of(env)
    if recipe is None:
        _logger.warning(
            "the environments stay on the driver and are shared by all workers, because %s cannot be rebuilt per "
            "scope; use make_env(…) or EnvFactory(build, num_envs=…) to step them in the workers",
            type(env).__qualname__,
        )
    return recipe


def _pickled_agent(agent: Any, scope: Scope) -> bytes:
    def error_of(reason: str) -> AgentError:
        kind = type(agent).__qualname__
        what, remedy = f"agent of scope {scope.index}, {kind},", f"pass a factory: agents=[lambda scope: {kind}(…), …]"
        if is_factory(agent):
            what, remedy = f"factory of scope {scope.index}", _remedy(agent, "the factory")
        return AgentError(f"the {what} cannot be pickled for its worker ({reason}); {remedy}")

    return _pickled(agent, error_of)


def _pickled_env(recipe: EnvFactory) -> bytes:
    def error_of(reason: str) -> EnvError:
        remedy = _remedy(recipe.build, "build")
        return EnvError(f"the environment factory cannot be pickled for its workers ({reason}); {remedy}")

    return _pickled(recipe, error_of)


def _remedy(function: Any, name: str) -> str:
    """Say what to do about a function that cannot be pickled, with the variables from around it that are the reason."""
    used = inspect.getclosurevars(function) if inspect.isfunction(function) else None
    around = {} if used is None else {**used.globals, **used.nonlocals}
    reasons = [each for each, value in around.items() if not _can_be_pickled(value)]
    if not reasons:
        return f"create what it needs inside {name}"
    it = "it" if len(reasons) == 1 else "them"
    uses = f"it uses {', '.join(reasons)}: create {it} inside {name}"
    return f"{uses}, or take from {it} beforehand what is needed, such as its spaces"


def _can_be_pickled(value: Any) -> bool:
    try:
        cloudpickle.dumps(value)
    except Exception:
        return False
    return True


def _pickled(value: Any, error_of: Callable[[str], LockstepError]) -> bytes:
    try:
        data: bytes = cloudpickle.dumps(value)
    except Exception as error:
        raise error_of(f"{type(error).__name__}: {message_of(error)}") from error
    return data
