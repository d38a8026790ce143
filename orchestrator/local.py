"""One process: one slice with all environments, and all agents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.base import Plan
from orchestrator.merge import infos_by_scope
from workers.agent_runner import AgentGroup, AgentRunner
from workers.env_slice import EnvSlice
from workers.node import node_name
from workers.service import Description
from workers.types import Outcome, Tick
from workers.worker import ScopeWorker

__all__ = ["LocalOrchestrator"]


class LocalOrchestrator:
    """Runs all scopes in this process; the default."""

    def start(self, plan: Plan) -> LocalSession:
        """Build environments and agents."""
        return LocalSession(plan)


class LocalSession:
    """Environments and agents in this process; see `orchestrator.base.Session`."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        framework = plan.framework
        self._env_slice = EnvSlice(plan.env, framework, cfg=plan.cfg, seed=plan.seed)
        self.env = self._env_slice.env
        try:
            self._runners = [
                AgentRunner(agent, scope, framework, cfg=plan.cfg, observation_space=self.env.observation_space)
                for agent, scope in zip(plan.agents, plan.scopes, strict=True)
            ]
        except BaseException:
            self.close(close_environment=False)
            raise
        self._worker = ScopeWorker(
            self._env_slice,
            AgentGroup(self._runners, framework),
            framework,
            scope=0 if len(plan.scopes) == 1 else None,
        )
        self.workers: Sequence[Description] = [
            Description(type(runner.agent).__qualname__, node_name(), framework.num_threads())
            for runner in self._runners
        ]

    def step(self, tick: Tick) -> Outcome:
        """Do one iteration in all scopes."""
        return infos_by_scope(self._worker.tick(tick), self._plan.scopes, self._plan.framework)

    def restart(self) -> None:
        """Make the next iteration reset the environments."""
        self._worker.restart()

    def agents(self) -> list[Any]:
        """The agent of each scope."""
        return [runner.agent for runner in self._runners]

    def close(self, *, close_environment: bool) -> None:
        """Close the environments that were built here; one that was handed over only if asked to."""
        if self._env_slice.built or close_environment:
            self._env_slice.close()
