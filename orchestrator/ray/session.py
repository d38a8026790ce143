"""RaySession: a trainer's workers in Ray actors, with their own environments or sharing the driver's."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from orchestrator.base import Plan, Recovered, Result, close_environments
from orchestrator.merge import merge_outcomes, share_outcome
from orchestrator.ray.beside import RayResult
from orchestrator.ray.patience import StepPatience
from orchestrator.ray.recovery import Recovery
from orchestrator.ray.remote_agents import RemoteAgents, failure_of, for_each
from orchestrator.ray.requests import Patience, payloads
from orchestrator.ray.transport import Streams
from workers.envs.statistics import Statistics, are_statistics
from workers.errors import LifecycleError, WorkerError, close_all
from workers.frameworks import load_framework
from workers.members import is_factory
from workers.remote.layout import DamagedError
from workers.remote.wire import Packed, from_wire, read_outcome
from workers.scope.env_slice import EnvSlice
from workers.scope.worker import ScopeWorker
from workers.seeding import RandomStream, skrl_key
from workers.storage.export import ExportedAgent, copy_state, import_agent
from workers.storage.snapshot import Snapshot
from workers.types import Description, Outcome, Phase, Scope, Tick

__all__ = ["RaySession"]

T = TypeVar("T")

_logger = logging.getLogger("lockstep")

_CLOSE_TIMEOUT = 10.0


class RaySession:
    """The workers of one trainer in Ray actors; see `orchestrator.base.Session`."""

    def __init__(
        self,
        plan: Plan,
        shared: EnvSlice | None,
        streams: Streams,
        recovery: Recovery,
        *,
        patience: Callable[[], Patience],
        release: Callable[[], None],
    ) -> None:
        self.env = plan.env if shared is None else shared.env
        self._notes = () if shared is None else shared.notes
        self._plan = plan
        self._streams = streams
        self._recovery = recovery
        self._patience = patience
        self._told = 0  # recoveries that `collect` has told
        self._submitted: deque[_Submission] = deque()
        self._release = release
        self._closed = False
        self._worker: ScopeWorker | None = None
        if shared is not None:
            agents = RemoteAgents(streams, plan, patience, self._request)
            self._worker = ScopeWorker(shared, agents, plan.framework, scopes=plan.scopes)

    @property
    def workers(self) -> Sequence[Description]:
        """Where and how the worker of each scope runs now."""
        return [worker._replace(notes=self._notes + worker.notes) for worker in self._recovery.workers]

    @property
    def recoveries(self) -> Sequence[Recovered]:
        """All recoveries from lost workers so far."""
        return self._recovery.events

    @property
    def transport(self) -> tuple[str, str]:
        """What carries the steps, and why no connections do if workers cannot be reached; see `Streams`."""
        return self._streams.transport, self._streams.unreachable

    def check(self) -> None:
        """Check that Ray's head node answers."""
        self._streams.check()

    def submit(self, tick: Tick, count: int = 1) -> None:
        """Send iterations to the workers; if they share environments, `result` steps those on the driver."""
        submission = _Submission(tick, count)
        if self._worker is None:
            self._send(submission)
        self._submitted.append(submission)

    def _send(self, submission: _Submission) -> None:
        """Send as many iterations as may run before the next snapshot, and a request for it if it is time."""
        tick, count = submission.tick, min(submission.count, self._recovery.until_next)
        seq = self._streams.send("tick", (tick, count))
        snapshot = self._recovery.begin_snapshot() if self._recovery.is_due(count) else None
        submission.sent.append((tick, count, seq, snapshot))
        submission.tick = tick._replace(timestep=tick.timestep + count)
        submission.count -= count

    def result(self) -> Outcome:
        """Return the outcome of the last iteration of the oldest submission."""
        submission = self._submitted.popleft()
        if self._worker is not None:
            return self._shared_result(self._worker, submission)
        while submission.sent:
            if submission.count:
                self._send(submission)  # before the results of those that are under way
            tick, count, seq, snapshot = submission.sent.popleft()
            # within an iteration, the phase of a worker that does not reply is unknown
            replies = self._streams.receive(seq, self._patience(), phase="unknown", timestep=tick.timestep, halts=True)
            parts = payloads(replies)
            if snapshot is not None:
                self._recovery.keep(snapshot)
        return self._merged(seq, parts, tick.timestep + count - 1)

    def _shared_result(self, worker: ScopeWorker, submission: _Submission) -> Outcome:
        """Run the iterations of a submission on the driver's environments."""
        tick = submission.tick
        for done in range(submission.count):  # each is a message to every worker in any case
            outcome = worker.run(tick._replace(timestep=tick.timestep + done), 1)
            if self._recovery.is_due(1):
                self._recovery.snapshot()
        return share_outcome(outcome, self._plan.scopes, self._plan.framework)

    def _merged(self, seq: int, parts: Sequence[Any], timestep: int) -> Outcome:
        """Read the outcomes of all workers, and merge them."""
        framework, scopes = self._plan.framework, self._plan.scopes

        def read(packed: Packed | None, scope: Scope) -> Outcome:
            return read_outcome(packed, framework, scope.num_envs)

        outcomes = for_each(scopes, read, parts, timestep, Phase.STEP)
        self._recovery.note_outcomes(seq, outcomes)
        try:
            return merge_outcomes(outcomes, scopes, framework)
        except Exception as error:  # of infos that clash, or of arrays that a worker should not have sent
            rows = (0, scopes[-1].stop)
            raise WorkerError([failure_of(error, None, rows, timestep, Phase.STEP)]) from error

    def restart(self) -> None:
        """Make the next iteration reset the environments."""
        if self._worker is not None:
            self._worker.restart()
        else:
            self._request("restart")

    def collect(self) -> list[dict[str, float]]:
        """Return the scalars of each scope since the last call, by tag."""
        scalars: list[dict[str, float]] = self._request("collect") if self._worker is None else self._worker.collect()
        for event in self._recovery.events[self._told :]:
            for scope in event.scopes:
                for tag, value in (("Count", 1.0), ("Time (s)", event.seconds), ("Iterations", float(event.replayed))):
                    tag = f"Recovery / {tag}"
                    scalars[scope][tag] = scalars[scope].get(tag, 0.0) + value
        self._told = len(self._recovery.events)
        return scalars

    def agents(self) -> list[Any]:
        """Return the trained agents; agents that the user passed as instances get the trained state."""
        plan = self._plan
        if self._closed:
            if any(is_factory(agent) for agent in plan.agents):
                raise LifecycleError(
                    "agents cannot be read after close(), which ends the workers; read agents before close()"
                )
            return list(plan.agents)
        exported = self._request("export")
        return [
            self._bring_back(given, scope, part)
            for given, scope, part in zip(plan.agents, plan.scopes, exported, strict=True)
        ]

    def agent_files(self, scopes: Collection[int]) -> dict[int, tuple[str, bytes]]:
        """Return the name and content of the agent files of some scopes."""
        files = self._request("store", each=[scope.index in scopes for scope in self._plan.scopes])
        return {index: file for index, file in enumerate(files) if file}

    def load_agent_files(self, files: Mapping[int, tuple[str, bytes]]) -> None:
        """Load agent files into the agents of some scopes."""
        self._request("load", each=[files.get(scope.index) for scope in self._plan.scopes])

    def hyperparameters(self) -> list[dict[str, float]]:
        """Return the hyper-parameters of each scope's agent."""
        return self._request("hyperparameters")

    def set_hyperparameters(self, scope: int, values: Mapping[str, float]) -> None:
        """Change hyper-parameters of the agent of one scope."""
        each = [values if one.index == scope else None for one in self._plan.scopes]
        self._request("set_hyperparameters", each=each)

    def statistics(self) -> list[Statistics]:
        """Return the running statistics of each row's wrappers."""
        if self._worker is not None:
            return self._worker.statistics()
        numpy = load_framework("numpy")

        def read(packed: Packed, scope: Scope) -> list[Statistics]:
            rows = list(from_wire(packed, numpy))
            if len(rows) != scope.num_envs or not are_statistics(rows):
                raise DamagedError(f"a worker has sent something else than the statistics of {scope.num_envs} rows")
            return rows

        of_each = for_each(self._plan.scopes, read, self._request("statistics"), None, Phase.STORE)
        return [row for rows in of_each for row in rows]

    def snapshot(self, *, allow_pickle: bool) -> Snapshot:
        """Return the whole state of all scopes."""
        if self._worker is not None:
            return self._worker.snapshot(allow_pickle=allow_pickle)
        parts: list[Snapshot] = self._request("snapshot", allow_pickle)
        envs = {rows: part for snapshot in parts for rows, part in snapshot.envs.items()}
        return Snapshot(tuple(agent for snapshot in parts for agent in snapshot.agents), envs)

    def stage(self, snapshot: Snapshot) -> None:
        """Check that a snapshot fits all scopes, and keep it for `restore`."""
        if self._worker is not None:
            self._worker.stage(snapshot)
            return
        each = [
            Snapshot((agent,), {rows: part for rows, part in snapshot.envs.items() if _overlap(rows, scope.rows)})
            for agent, scope in zip(snapshot.agents, self._plan.scopes, strict=True)
        ]
        self._request("stage", each=each)

    def restore(self) -> None:
        """Go on from the snapshot of `stage`."""
        if self._worker is not None:
            self._worker.restore()
        else:
            self._request("restore")
        self._recovery.snapshot()

    def beside(self, function: Callable[[], T]) -> Result[T]:
        """Compute a function in a task of Ray."""
        return RayResult(function, check=self._streams.check)

    def close(self, *, close_environment: bool) -> None:
        """Copy the trained state into the user's instances, then end the actors, and Ray if it was started for them."""
        closers: list[tuple[str, Callable[[], object]]] = [("the workers", self._close_workers)]
        # before disconnecting, which may end this process if Ray's head node is gone
        if close_environment and hasattr(self.env, "close"):
            closers.append(("the environments", partial(close_environments, self.env, self._plan)))
        close_all([*closers, ("the connection to Ray", self._release)])

    def _close_workers(self) -> None:
        """Bring back the trained agents, and close the environments of every worker that still replies."""
        try:
            self._recovery.stop()
            self._streams.abandon()
            if not self._streams.cluster.is_connected:
                return
            self._bring_back_instances()
            told = self._streams.lost
            patience = StepPatience(
                _CLOSE_TIMEOUT, remedy="its process is ended now; environments must close within this time"
            )
            replies = self._streams.receive(self._streams.send("close"), patience, phase="close")
        finally:
            self._closed = True
        for index in sorted(self._streams.lost - told):
            _logger.error("the environments of a worker may not be closed: %s", replies[index].payload[0])
        payloads([reply for index, reply in enumerate(replies) if index not in self._streams.lost])

    def _bring_back_instances(self) -> None:
        """Copy the state of every worker that still replies, and log which are missing."""
        if all(is_factory(agent) for agent in self._plan.agents):
            return
        replies = self._streams.receive(self._streams.send("export"), self._patience(), phase="export")
        for given, scope, reply in zip(self._plan.agents, self._plan.scopes, replies, strict=True):
            try:
                if reply.status == "error":
                    raise WorkerError(reply.payload)
                if not is_factory(given):
                    self._bring_back(given, scope, reply.payload)
            except Exception as error:
                _logger.error("the trained state of the agent of scope %d is lost: %s", scope.index, error)

    def _bring_back(self, given: Any, scope: Scope, exported: ExportedAgent) -> Any:
        if not is_factory(given):
            copy_state(import_agent(exported, lambda: given), given)
            return given
        framework = self._plan.framework

        def make() -> Any:
            # a factory may draw random numbers; the user's generators must not advance
            with RandomStream(scope.seed or 0, framework, given), skrl_key(framework.name, scope.seed):
                agent = given(scope)
                agent.init(trainer_cfg=self._plan.cfg)
            return agent

        return import_agent(exported, make)

    def _request(self, method: str, *common: Any, each: Sequence[Any] | None = None) -> list[Any]:
        """Return the replies of all workers to a request that is no iteration."""
        replies: list[Any] = self._streams.request(method, common, each, patience=self._patience(), phase=method)
        return replies


class _Submission:
    """Iterations that were submitted.

    Attributes:
        tick: The first one that was not sent yet.
        count: Number of those that were not sent yet.
        sent: What was sent: the first iteration, their number, the number of the request, and that of the request for a
            snapshot that follows it.
    """

    def __init__(self, tick: Tick, count: int) -> None:
        self.tick, self.count = tick, count
        self.sent: deque[tuple[Tick, int, int, int | None]] = deque()


def _overlap(rows: tuple[int, int], others: tuple[int, int]) -> bool:
    return rows[0] < others[1] and others[0] < rows[1]
