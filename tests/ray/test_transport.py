"""Transports of requests to Ray actors: choice, fallback, lost connections and cleanup."""

from __future__ import annotations

import logging
import os
import signal
import socket
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from gymnasium.spaces import Box

from orchestrator.ray import RayOrchestrator, connection, starting
from orchestrator.ray.actor_calls import ActorCalls
from orchestrator.ray.connection import Connections
from tests.support.agents import DyingAgent, NullAgent, RecordingAgent, to_numpy
from tests.support.envs import CountingEnv, counting_factory
from tests.support.parity import CFG, step_trainer
from tests.support.recovering import pids_of
from workers.envs import EnvFactory
from workers.errors import ConfigError, WorkerError

WIDTH = 40_000


class WideEnv(CountingEnv):
    """Its observations are large, and every number encodes row and step."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.observation_space = Box(-np.inf, np.inf, (WIDTH,), np.float32)

    def observation(self, action: float) -> Any:
        return np.full(WIDTH, self.row * 1000 + self.step_count, np.float32)


def build_wide(num_envs: int, first_env: int) -> list[WideEnv]:
    return [WideEnv(first_env + i) for i in range(num_envs)]


def trainer_of(agents: Any = NullAgent, env: Any = None, *, framework: str = "warp", **options: Any) -> Any:
    env = env or counting_factory(4)
    cfg = {**CFG, "timesteps": 9}
    return step_trainer(framework)(env=env, agents=agents, cfg=cfg, orchestrator=RayOrchestrator(**options))


def streams_of(trainer: Any) -> Any:
    return trainer._session._streams


def links_of(trainer: Any) -> Any:
    return streams_of(trainer)._links


def test_the_transport_is_chosen(ray_cluster):
    for transport, kind in (("connection", Connections), ("ray", ActorCalls)):
        with trainer_of(transport=transport) as trainer:
            assert type(streams_of(trainer)) is kind
            trainer.train()
    with pytest.raises(ConfigError, match="transport is 'pigeon'; expected 'connection' or 'ray'"):
        RayOrchestrator(transport="pigeon")  # type: ignore[arg-type]


def test_workers_that_cannot_be_connected_to_are_asked_by_actor_calls(ray_cluster, monkeypatch, caplog):
    def no_way(address: Any, *_: Any, **__: Any) -> Any:
        raise TimeoutError(f"no way to {address.port}")

    monkeypatch.setattr(connection, "dial", no_way)
    with caplog.at_level(logging.WARNING, "lockstep"), trainer_of([RecordingAgent] * 2) as trainer:
        assert type(streams_of(trainer)) is ActorCalls
        outputs = trainer.train()
        assert to_numpy(outputs[0])[:, 0].tolist() == [0, 1, 2, 3]
        assert [len(agent.records()) for agent in trainer.agents] == [1, 1]
    assert "plain actor calls instead of connections: TimeoutError: no way to" in caplog.text


def test_one_of_two_that_cannot_be_connected_to_suffices(ray_cluster, monkeypatch, caplog):
    dial, calls = connection.dial, []

    def one_way(address: Any, *args: Any, **options: Any) -> Any:
        calls.append(address)
        if len(calls) == 2:
            raise ConnectionRefusedError("closed")
        return dial(address, *args, **options)

    monkeypatch.setattr(connection, "dial", one_way)
    with caplog.at_level(logging.WARNING, "lockstep"), trainer_of([NullAgent] * 2) as trainer:
        assert to_numpy(trainer.train()[0])[:, 0].tolist() == [0, 1, 2, 3]
    assert "ConnectionRefusedError: closed" in caplog.text


@pytest.mark.parametrize("value", ["1", "true"])
def test_nothing_goes_unencrypted_where_tls_is_asked_for(ray_cluster, monkeypatch, caplog, value):
    monkeypatch.setenv("RAY_USE_TLS", value)
    with caplog.at_level(logging.WARNING, "lockstep"), trainer_of() as trainer:
        assert type(streams_of(trainer)) is ActorCalls
    assert "RAY_USE_TLS is set" in caplog.text


@pytest.mark.parametrize(("num_cpus", "num_threads"), [(0.5, 1), (2, 1), (0.5, 2)])
def test_threads_are_those_asked_for_whatever_the_cpus(ray_cluster, num_cpus, num_threads):
    with trainer_of(framework="torch", num_cpus=num_cpus, num_threads=num_threads) as trainer:
        assert f", {num_threads} compute thread" in str(trainer)


def listeners(pid: int) -> int:
    """Return on how many TCP ports a process listens."""
    return sum(one.status == psutil.CONN_LISTEN for one in psutil.Process(pid).net_connections("tcp"))


def test_nothing_listens_on_the_network_if_driver_and_workers_share_a_machine(ray_cluster):
    before = listeners(os.getpid())
    with trainer_of([NullAgent] * 2) as trainer:
        trainer.train()
        assert [listeners(pid) for pid in pids_of(trainer)] == [1, 1]  # Ray's own
        assert [link._channel._sock.family for link in links_of(trainer)] == [socket.AF_UNIX] * 2
        assert listeners(os.getpid()) == before
    with step_trainer("warp")(env=counting_factory(4), agents=[NullAgent(), NullAgent()], cfg=CFG) as trainer:
        trainer.train()
        assert listeners(os.getpid()) == before


@pytest.mark.parametrize("sign_arrays", [False, True])
def test_a_driver_on_another_machine_uses_tcp(ray_cluster, monkeypatch, sign_arrays):
    dial = connection.dial
    monkeypatch.setattr(starting, "socket_domain", lambda: "another machine")
    monkeypatch.setattr(connection, "dial", lambda address, *a, **o: dial(address._replace(name=b""), *a, **o))
    with trainer_of([RecordingAgent] * 2, sign_arrays=sign_arrays) as trainer:
        assert to_numpy(trainer.train()[0])[:, 0].tolist() == [0, 1, 2, 3]
        assert [listeners(pid) for pid in pids_of(trainer)] == [2, 2]
        channels = [link._channel for link in links_of(trainer)]
        assert [channel._sock.family for channel in channels] == [socket.AF_INET] * 2
        assert [channel._signs_arrays for channel in channels] == [sign_arrays] * 2


def mapped(pid: int) -> int:
    return Path(f"/proc/{pid}/maps").read_text().count("memfd:lockstep")


def test_large_outputs_go_by_shared_memory_and_stay_as_they_are(ray_cluster):
    with trainer_of([NullAgent] * 2, EnvFactory(build_wide, num_envs=4), framework="torch") as trainer:
        assert mapped(os.getpid()) == 0
        kept = [trainer.train()[0] for _ in range(4)]
        assert mapped(os.getpid()) == 2
        kept += [outputs[0] for outputs in trainer.iterate(12, prefetch=2)]
        assert [mapped(pid) for pid in pids_of(trainer)] == [1, 1]
    for row in range(4):
        length = 3 + row % 4  # as in `CountingEnv`
        expected = [row * 1000 + (step % length) for step in range(1, 17)]
        assert [observations[row, 0].item() for observations in kept] == expected
        assert all((observations[row] == observations[row, 0]).all() for observations in kept)
    assert mapped(os.getpid()) == 0


def test_shared_memory_is_given_back_after_a_crash(ray_cluster):

    agents = [NullAgent, lambda scope: DyingAgent(signal.SIGKILL)]
    trainer = trainer_of(agents, EnvFactory(build_wide, num_envs=4), snapshot_every=0)
    trainer.train()
    trainer.train()
    with pytest.raises(WorkerError, match="process died"):
        trainer.train()
    trainer.close()
    assert mapped(os.getpid()) == 0


def test_a_lost_connection_is_made_again_and_loses_nothing(ray_cluster):
    with trainer_of([RecordingAgent] * 2) as trainer:
        trainer.train()
        for link in links_of(trainer):
            with socket.socket(fileno=os.dup(link._channel._sock.fileno())) as sock:
                sock.shutdown(socket.SHUT_RDWR)
        trainer.train()
        trainer.run(2)
        assert [[record["timestep"] for record in agent.records()] for agent in trainer.agents] == [[1, 2, 3, 4]] * 2


def test_nothing_stays_open(ray_cluster):
    for _ in range(2):
        with trainer_of([NullAgent] * 2, EnvFactory(build_wide, num_envs=4)) as trainer:
            trainer.run(3)
            trainer.train()
            sockets = [os.readlink(f"/proc/self/fd/{link._channel._sock.fileno()}") for link in links_of(trainer)]
        assert mapped(os.getpid()) == 0
        assert not [fd for fd in Path("/proc/self/fd").iterdir() if target(fd) in sockets]


def target(fd: Path) -> str:
    try:
        return os.readlink(fd)
    except OSError:  # closed meanwhile
        return ""
