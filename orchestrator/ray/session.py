"""RaySession: the workers of one trainer in Ray actors, with environments of their own or sharing the driver's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import ray

from orchestrator.base import Plan
from orchestrator.merge import merge_outcomes, share_outcome
from orchestrator.ray.transport import ActorCalls
from workers.agent_checks import is_factory
from workers.agent_export import ExportedAgent, copy_state, import_agent
from workers.by_agent import map_arrays
from workers.env_slice import EnvSlice
from workers.errors import LifecycleError, WorkerError
from workers.infos import take_rows
from workers.seeding import RandomStream, skrl_key
from workers.service import Description
from workers.types import Arrays, Outcome, Phase, Scope, Tick, Transition
from workers.wire import from_wire, to_wire
from workers.worker import ScopeWorker

__all__ = ["RaySession"]

_logger = logging.getLogger("lockstep")

_CLOSE_TIMEOUT = 10.0


class RaySession:
    """See `orchestrator.base.Session`."""

    def __init__(
        self,
        plan: Plan,
        shared: EnvSlice | None,
        calls: ActorCalls,
        workers: Sequence[Description],
        *,
        step_timeout: float,
        release: Callable[[], None],
    ) -> None:
        self.env = plan.env if shared is None else shared.env
        self.workers = (
            workers if shared is None else [worker._replace(notes=shared.notes + worker.notes) for worker in workers]
        )
        self._plan = plan
        self._calls = calls
        self._step_timeout = step_timeout
        self._no_arguments: list[tuple[Any, ...]] = [()] * len(plan.scopes)
        self._release = release
        self._closed = False
        self._worker: ScopeWorker | None = None
        if shared is not None:
            agents = _RemoteAgents(calls, plan, step_timeout)
            scope = 0 if len(plan.scopes) == 1 else None
            self._worker = ScopeWorker(shared, agents, plan.framework, scope=scope)

    def step(self, tick: Tick) -> Outcome:
        """Do one iteration in all scopes."""
        framework, scopes = self._plan.framework, self._plan.scopes
        if self._worker is not None:
            outcome = share_outcome(self._worker.tick(tick), scopes, framework)
        else:
            payloads = self._request("tick", [(tick,)] * len(scopes), timestep=tick.timestep)
            outcome = merge_outcomes([from_wire(payload, framework) for payload in payloads], scopes, framework)
        return outcome

    def restart(self) -> None:
        """Make the next iteration reset the environments."""
        if self._worker is not None:
            self._worker.restart()
        else:
            self._request("restart", self._no_arguments)

    def collect(self) -> list[dict[str, float]]:
        """Scalars of each scope since the last call, by tag."""
        if self._worker is not None:
            return self._worker.collect()
        scalars: list[dict[str, float]] = self._request("collect", self._no_arguments)
        return scalars

    def agents(self) -> list[Any]:
        """Bring the trained agents back; what the user handed over as an instance gets the trained state."""
        plan = self._plan
        if self._closed:
            if any(is_factory(agent) for agent in plan.agents):
                raise LifecycleError("agents after close(): the workers that held them are gone; read agents before it")
            return list(plan.agents)
        exported = self._request("export", self._no_arguments)
        return [
            self._bring_back(given, scope, part)
            for given, scope, part in zip(plan.agents, plan.scopes, exported, strict=True)
        ]

    def agent_files(self) -> list[tuple[str, bytes]]:
        """Name and content of the file of each scope's agent."""
        files: list[tuple[str, bytes]] = self._request("store", self._no_arguments)
        return files

    def close(self, *, close_environment: bool) -> None:
        """Copy the trained state into the user's instances, then end the actors, and Ray if it was started for them."""
        try:
            if ray.is_initialized():
                self._bring_back_instances()
                self._calls.gather("close", self._no_arguments, timeout=_CLOSE_TIMEOUT, phase="close")
        finally:
            self._closed = True
            # before Ray is left: where its head is gone, leaving may end this process
            if close_environment and hasattr(self.env, "close"):
                self.env.close()
            self._release()

    def _bring_back_instances(self) -> None:
        """Copy the state of every worker that can still be asked, and say which are missing."""
        if all(is_factory(agent) for agent in self._plan.agents):
            return
        replies = self._calls.gather("export", self._no_arguments, timeout=self._step_timeout, phase="export")
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
            # a factory draws random numbers: none of the user's
            with RandomStream(scope.seed or 0, framework), skrl_key(framework.name, scope.seed):
                agent = given(scope)
                agent.init(trainer_cfg=self._plan.cfg)
            return agent

        return import_agent(exported, make)

    def _request(self, method: str, args: Sequence[tuple[Any, ...]], *, timestep: int | None = None) -> list[Any]:
        # where in a whole iteration a worker was that does not reply is not known
        phase = "unknown" if method == "tick" else method
        return self._calls.request(method, args, timeout=self._step_timeout, phase=phase, timestep=timestep)


class _RemoteAgents:
    """The agents of shared environments, each in an actor; see `workers.worker.Agents`."""

    def __init__(self, calls: ActorCalls, plan: Plan, step_timeout: float) -> None:
        self._calls = calls
        self._framework = plan.framework
        self._scopes = plan.scopes
        self._num_envs = plan.scopes[-1].stop
        self._timeout = step_timeout

    def act(
        self, tick: Tick, observations: Arrays, states: Arrays | None, infos: dict[str, Any] | None
    ) -> Sequence[Arrays]:
        infos_of_each = [None] * len(self._scopes) if infos is None else self._split_infos(infos)
        rows = zip(self._split(observations), self._split(states), infos_of_each, strict=True)
        payloads = self._calls.request(
            "act",
            [(tick, *parts) for parts in rows],
            timeout=self._timeout,
            phase=Phase.ACT.value,
            timestep=tick.timestep,
        )
        return [from_wire(payload, self._framework) for payload in payloads]

    def learn(self, tick: Tick, transition: Transition) -> None:
        arrays = [self._split(array) for array in transition[:5]]
        infos = self._split_infos(transition.infos)
        self._calls.request(
            "learn",
            [
                (tick, Transition._make([*rows, part, transition.step_time]))
                for part, *rows in zip(infos, *arrays, strict=True)
            ],
            timeout=self._timeout,
            phase=Phase.RECORD.value,
            timestep=tick.timestep,
        )

    def collect(self) -> list[dict[str, float]]:
        return self._each("collect")

    def restart(self) -> None:
        self._each("restart")

    def _each(self, method: str) -> list[Any]:
        return self._calls.request(method, [()] * len(self._scopes), timeout=self._timeout, phase=method)

    def _split(self, arrays: Arrays | None) -> list[Any]:
        """The rows of each scope, ready for the wire."""
        whole = to_wire(arrays, self._framework)
        return [map_arrays(partial(_rows, scope), whole) for scope in self._scopes]

    def _split_infos(self, infos: dict[str, Any]) -> list[Any]:
        """Those of each scope, ready for the wire."""
        return [
            to_wire(take_rows(infos, *scope.rows, self._num_envs, self._framework), self._framework)
            for scope in self._scopes
        ]


def _rows(scope: Scope, whole: Any) -> Any:
    """The rows of a scope of an array on the wire, or None."""
    return None if whole is None else type(whole)(whole.values[scope.start : scope.stop])
