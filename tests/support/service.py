"""Requests to a `Service` as they arrive over a wire, and workers that fail in known places."""

from __future__ import annotations

import pickle
from typing import Any

from tests.support.agents import NullAgent, RecordingAgent
from tests.support.envs import CountingEnv, counting_factory
from trainer.config import StepTrainerCfg
from workers.errors import Failure
from workers.node import node_name
from workers.remote.replies import Reply
from workers.remote.service import Service
from workers.remote.spec import WorkerSpec
from workers.types import Mode, Scope, Tick

SCOPE = Scope(2, 5, 8, seed=11)


class LiveRecordingAgent(RecordingAgent):
    """Recording agent that also records, in this process, that it was built and for which scope."""

    made: list[LiveRecordingAgent] = []  # noqa: RUF012

    def __init__(self, scope: Scope | None = None) -> None:
        super().__init__(scope)
        self.scope = scope
        self.made.append(self)


class FailingAgent(NullAgent):
    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        if timestep == 3:
            raise KeyError("policy")
        return super().act(observations, states, timestep=timestep, timesteps=timesteps)

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        if timestep == 2:
            raise ZeroDivisionError("update")


class FailingEnv(CountingEnv):
    def step(self, action: Any) -> Any:
        if self.step_count == 1 and self.row == 6:
            raise ValueError("row 6 broke")
        return super().step(action)


def build_failing(num_envs: int, first_env: int) -> list[FailingEnv]:
    return [FailingEnv(first_env + i) for i in range(num_envs)]


def spec(agent: Any = LiveRecordingAgent, env: Any = counting_factory(9), **changes: Any) -> WorkerSpec:  # noqa: B008
    values: dict[str, Any] = {
        "scope": SCOPE,
        "framework": "torch",
        "agent": pickle.dumps(agent),
        "env": None if env is None else pickle.dumps(env),
        "observation_space": pickle.dumps(CountingEnv(0).observation_space) if env is None else None,
        "cfg": pickle.dumps(StepTrainerCfg(headless=True)),
        "seed": 3,
    }
    return WorkerSpec(**{**values, **changes})


def tick(timestep: int, mode: Mode = Mode.TRAIN) -> Tick:
    return Tick(mode, timestep, 10)


class Client:
    """Client that sends requests in order; everything passes through pickle in both directions."""

    def __init__(self, *first: Any) -> None:
        self.service = Service(pickle.dumps)
        self.seq = 0
        if first:
            self.ok("build", *first)

    def send(self, method: str, *args: Any, seq: int | None = None) -> Reply:
        if seq is None:
            seq = self.seq = self.seq + 1
        reply = self.service.handle(*pickle.loads(pickle.dumps((seq, method, args))))
        assert isinstance(reply, Reply)
        assert reply.seq == seq
        received: Reply = pickle.loads(pickle.dumps(reply))
        return received

    def ok(self, method: str, *args: Any) -> Any:
        reply = self.send(method, *args)
        assert reply.status == "ok", reply.payload
        return reply.payload

    def failure(self, method: str, *args: Any, seq: int | None = None) -> Failure:
        reply = self.send(method, *args, seq=seq)
        assert reply.status == "error"
        (failure,) = reply.payload
        assert isinstance(failure, Failure)
        assert failure.node == node_name()
        return failure
