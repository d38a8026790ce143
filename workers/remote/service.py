"""Service: handles the requests to a remote worker, whatever transport carries them.

Requests form one ordered stream: a request is ``(seq, method, args)``, its reply ``("ok" | "error", seq, payload)``.
Everything that touches the state of a worker goes through it, on one thread. Any exception of user code becomes an
error reply, also one that would end a program, such as `SystemExit`; only Ray ends the process. Replies are kept until
the driver acknowledges them. A request with the number of a kept reply gets that reply, so a request can be sent again
without being handled twice.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from time import monotonic
from typing import Any

from workers.errors import CheckpointError, Failure, WorkerError, close_or_log, ends_process
from workers.frameworks import Framework, load_framework
from workers.node import node_name
from workers.pickling import loads
from workers.remote.log import LogCollector
from workers.remote.replies import PAYLOADS, Busy, Reply
from workers.remote.spec import WorkerSpec, check_spec
from workers.remote.wire import Packed, from_wire, to_wire
from workers.scope.agent_group import AgentGroup
from workers.scope.agent_runner import AgentRunner
from workers.scope.env_slice import EnvSlice
from workers.scope.worker import ScopeWorker
from workers.storage.export import export_agent
from workers.storage.snapshot import Snapshot
from workers.threads import HeldThreads
from workers.types import Description, Phase, Scope, Tick

__all__ = ["Service"]

_FARTHEST = 1000
"""How far the number of a request may lie ahead of the last one: after a damaged one, all others would be late."""

_BY_RUNNER = frozenset({"act", "learn", "collect", "store", "load", "hyperparameters", "set_hyperparameters"})
"""The methods whose phase the runner of the agent knows."""


class Service:
    """The handler of one remote worker's requests, in order."""

    def __init__(
        self,
        dumps: Callable[[Any], bytes],
        log: LogCollector | None = None,
        *,
        pickler: type[pickle.Pickler] = pickle.Pickler,
    ) -> None:
        """Prepare for the first request.

        Args:
            dumps: Pickles objects, including those whose class was sent here by value.
            log: What this process logs, to be sent with the replies.
            pickler: What snapshots are pickled with.
        """
        self._dumps = dumps
        self._pickler = pickler
        self._log = LogCollector() if log is None else log
        self._kept: dict[int, Reply] = {}
        self._last = 0
        self._halted = 0
        self._into: memoryview | None = None
        self._busy: int | None = None
        self._since = monotonic()
        self._doing = ""
        self._interruption: BaseException | None = None
        self._scope: Scope | None = None
        self._timestep: int | None = None
        self._framework: Framework | None = None
        self._runner: AgentRunner | None = None
        self._worker: ScopeWorker | None = None
        self._threads: AbstractContextManager[None] = nullcontext()
        self._has_failed = False
        self._is_cut = False  # the last request for iterations stopped early

    def handle(
        self, seq: int, method: str, args: tuple[Any, ...], *, ack: int | None = None, into: memoryview | None = None
    ) -> Reply:
        """Handle a request, or return the kept reply if it was handled before.

        Args:
            seq: Number of the request, higher than that of the last one. A small gap is requests that were never sent.
            method: One of `PAYLOADS`.
            args: Its arguments, as received.
            ack: Requests before this one will not be sent again; None means `seq`.
            into: Shared memory for the arrays of the reply, if they fit.
        """
        if seq <= self._last and (kept := self._kept.get(seq)) is not None:
            return kept
        if self._interruption is not None:
            error, self._interruption = self._interruption, None
            self._has_failed = self._has_failed or method == "tick"
            return self.refuse(seq, "between requests", error)
        if not self._comes_next(seq):
            error = RuntimeError(f"request {seq} ({method}) arrived after {self._last}; requests must be in order")
            return Reply("error", seq, (self._failure(error, "request"),))
        if method not in PAYLOADS:
            return self.refuse(seq, method, ValueError(f"no worker has the method {method!r}"))
        for old in [number for number in self._kept if number < (seq if ack is None else ack)]:
            del self._kept[old]
        self._into = into
        self._since = monotonic()
        self._last = self._busy = seq
        try:
            with self._threads:
                reply = Reply("ok", seq, getattr(self, f"_{method}")(*args))
        except WorkerError as error:
            reply = Reply("error", seq, error.failures)
        except BaseException as error:
            if ends_process(error):
                raise
            reply = Reply("error", seq, (self._failure(error, method),))
        finally:
            self._busy, self._since, self._doing = None, monotonic(), ""
        return self._keep(reply)

    def refuse(self, seq: int, what: str, error: BaseException) -> Reply:
        """Return an error reply to a request that cannot be read, or whose own reply cannot be sent."""
        if self._comes_next(seq):
            self._last = seq
        elif seq not in self._kept:
            return Reply("error", seq, (self._failure(error, what),))
        log = self._kept[seq].log if seq in self._kept else ()
        return self._keep(Reply("error", seq, (self._failure(error, what),), log))

    def _comes_next(self, seq: int) -> bool:
        return self._last < seq <= self._last + _FARTHEST

    def interrupt(self, error: BaseException) -> None:
        """Let the next request fail with an exception that came between requests, such as from a signal handler."""
        self._interruption = error

    def _keep(self, reply: Reply) -> Reply:
        """Keep a reply, with what was logged, until it is acknowledged."""
        log = self._log.drain()
        if log:
            reply = reply._replace(log=reply.log + log)
        self._kept[reply.seq] = reply
        return reply

    def halt(self, seq: int) -> None:
        """Stop requests up to `seq` after their current iteration.

        One that has not started yet does only its first, so that every scope that fails in an iteration is reported.
        Those after one that stopped early do none.

        May be called from another thread.
        """
        if seq <= self._last + _FARTHEST:
            self._halted = max(self._halted, seq)

    def busy(self) -> Busy:
        """Return what the worker is busy with. May be called from another thread than `handle`."""
        return Busy(self._busy, monotonic() - self._since, self._doing)

    def warm(self, spec: WorkerSpec) -> None:
        """Import what a worker needs, as far as it can be told before it is built."""
        _imported(spec)
        for pickled in (spec.cfg, spec.agent, spec.env):
            with suppress(Exception):  # the build tells
                loads(pickled or b"")

    def _build(self, spec: WorkerSpec) -> Description:
        check_spec(spec)
        self._scope = spec.scope
        self._doing = "importing what it needs"
        framework = self._framework = _imported(spec)
        framework.silence()  # Ray forwards the worker's output to the driver
        threads = self._threads = HeldThreads(framework, spec.num_threads)
        with threads:
            return self._build_scope(spec, framework)

    def _build_scope(self, spec: WorkerSpec, framework: Framework) -> Description:
        cfg, agent = loads(spec.cfg), loads(spec.agent)
        space = None if spec.observation_space is None else loads(spec.observation_space)
        action_space = None
        env_slice = None
        if spec.env is not None:
            self._doing = "building its environments"
            env_slice = EnvSlice(
                loads(spec.env),
                framework,
                cfg=cfg,
                seed=spec.seed,
                num_envs=spec.scope.num_envs,
                first_env=spec.scope.start,
                replay_limit=spec.replay_limit,
                pickler=self._pickler,
            )
            space, action_space = env_slice.observation_space, env_slice.action_space
        self._doing = "building its agent"
        try:
            runner = AgentRunner(
                agent,
                spec.scope,
                framework,
                cfg=cfg,
                observation_space=space,
                action_space=action_space,
                pickler=self._pickler,
            )
        except BaseException:
            if env_slice is not None:
                close_or_log("the environments", env_slice.close)
            raise
        self._runner = runner
        if env_slice is not None:
            self._worker = ScopeWorker(
                env_slice,
                # outputs are packed before the agent sees them
                AgentGroup([runner], framework, copies=not env_slice.gives_arrays_away),
                framework,
                scopes=[spec.scope],
                pack=lambda outcome: to_wire(outcome, framework, self._into, dumps=self._dumps),
            )
        return runner.describe(() if env_slice is None else env_slice.notes)

    def _tick(self, tick: Tick, count: int = 1) -> Any:
        if self._has_failed:  # sent before the driver knew about the failure
            raise RuntimeError("skipped, because the previous iteration failed")
        if self._is_cut and self._last <= self._halted:  # sent before the driver stopped this worker
            return None
        self._timestep = tick.timestep
        try:
            outcome = self._owned_worker.run(tick, count, goes_on=self._goes_on)
            self._is_cut = outcome is None
            return outcome
        except BaseException:
            self._has_failed = True
            raise

    def _goes_on(self) -> bool:
        self._since = monotonic()
        return self._last > self._halted

    def _act(self, tick: Tick, packed: Packed) -> Packed:
        self._timestep = tick.timestep
        framework, runner = self._built_framework, self._built_runner
        runner.phase = Phase.ACT
        actions = runner.act(tick, *from_wire(packed, framework))
        return to_wire(actions, framework, self._into, dumps=self._dumps)

    def _learn(self, tick: Tick, packed: Packed) -> None:
        runner = self._built_runner
        runner.phase = Phase.RECORD
        runner.learn(tick, *from_wire(packed, self._built_framework))

    def _collect(self) -> dict[str, float]:
        return self._built_runner.collect() if self._worker is None else self._worker.collect()[0]

    def _store(self, is_asked: bool = True) -> tuple[str, bytes] | None:
        return self._built_runner.agent_file() if is_asked else None

    def _load(self, file: tuple[str, bytes] | None = None) -> None:
        if file is not None:
            self._built_runner.load_agent_file(*file)

    def _hyperparameters(self) -> dict[str, float]:
        return self._built_runner.hyperparameters()

    def _set_hyperparameters(self, values: dict[str, float] | None = None) -> None:
        if values is not None:
            self._built_runner.set_hyperparameters(values)

    def _statistics(self) -> Packed:
        return to_wire(tuple(self._owned_worker.statistics()), load_framework("numpy"), self._into, dumps=self._dumps)

    def _restart(self) -> None:
        if self._worker is None:
            self._built_runner.restart()
        else:
            self._worker.restart()

    def _export(self) -> Any:
        with self._built_runner.as_handed_over() as agent:
            return export_agent(agent, self._dumps)

    def _snapshot(self, allow_pickle: bool, limit: int | None = None) -> Snapshot:
        if limit is not None and limit < 0:  # the driver has no use for it
            return Snapshot((), {})
        if self._worker is not None:
            snapshot = self._worker.snapshot(allow_pickle=allow_pickle)
        else:
            snapshot = Snapshot((self._built_runner.snapshot(allow_pickle=allow_pickle),), {})
        if limit is not None and snapshot.size > limit:  # before it is joined and sent
            raise CheckpointError(f"its snapshot has {snapshot.size:,} bytes; snapshot_bytes allows {limit:,} for all")
        return snapshot.joined()

    def _stage(self, snapshot: Snapshot) -> None:
        if self._worker is not None:
            self._worker.stage(snapshot)
        else:
            self._built_runner.stage(*snapshot.agents)

    def _restore(self, is_exact: bool = False) -> bool:
        try:
            if self._worker is not None:
                return self._worker.restore(is_exact=is_exact)
            self._built_runner.restore()
            return True
        except BaseException:
            self._has_failed = True
            raise

    def _lose(self) -> None:
        self._owned_worker.env_slice.lose()

    def _close(self) -> None:
        if self._worker is not None:
            self._worker.env_slice.close()

    @property
    def _owned_worker(self) -> ScopeWorker:
        assert self._worker is not None, "this worker was not built, or shares the driver's environments"
        return self._worker

    @property
    def _built_runner(self) -> AgentRunner:
        assert self._runner is not None, "this worker was not built"
        return self._runner

    @property
    def _built_framework(self) -> Framework:
        assert self._framework is not None, "this worker was not built"
        return self._framework

    def _failure(self, error: BaseException, method: str) -> Failure:
        scope = self._scope
        phase, timestep = self._place(method)
        return Failure.of(
            error,
            scope=scope.index if scope else None,
            rows=scope.rows if scope else (0, 0),
            phase=phase,
            timestep=timestep,
            node=node_name(),
        )

    def _place(self, method: str) -> tuple[str, int | None]:
        """Return phase and timestep of an exception in a request."""
        runner, worker = self._runner, self._worker
        if method == "build":
            return Phase.BUILD.value, None
        if method == "tick" and runner is not None and worker is not None:
            phase = worker.env_slice.phase
            return (runner.phase if phase in (Phase.ACT, Phase.RECORD) else phase).value, worker.timestep
        if method in _BY_RUNNER and runner is not None:
            return runner.phase.value, self._timestep
        return method, None


def _imported(spec: WorkerSpec) -> Framework:
    """Import the modules that a worker needs before anything else, and return its framework."""
    for name in spec.modules:
        importlib.import_module(name)
    return load_framework(spec.framework)
