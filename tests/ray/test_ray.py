"""Behaviour specific to Ray: connecting, resources, pickling, bringing agents back, and cleanup."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.ray import RayOrchestrator
from tests.support.agents import DyingAgent, NullAgent, RecordingAgent
from tests.support.envs import CountingEnv, build_counting, counting_factory
from tests.support.parity import CFG, step_trainer
from tests.support.processes import python
from workers.envs import EnvFactory, make_env, wrap_env
from workers.errors import AgentError, ClusterError, ConfigError, EnvError, LifecycleError, WorkerError
from workers.frameworks import load_framework


def trainer_of(
    env: Any = None, agents: Any = NullAgent, orchestrator: Any = None, framework: str = "warp", **cfg: Any
) -> Any:
    return step_trainer(framework)(
        env=env or counting_factory(2),
        agents=agents,
        cfg={**CFG, "timesteps": 10, **cfg},
        orchestrator=orchestrator or RayOrchestrator(),
    )


def test_ray_that_was_there_stays(ray_cluster):
    import ray

    trainer_of().close()
    assert ray.is_initialized()


def test_more_than_the_cluster_has_is_refused_at_once(ray_cluster):
    """The cluster was started by this program, so that it does not grow."""
    text = r"(?s)2 workers with 3 CPU each were requested, .* has 4 CPU \([\d.]+ free\)\n.*missing: room for 1 of 2"
    with pytest.raises(ClusterError, match=text):
        trainer_of(agents=[NullAgent] * 2, orchestrator=RayOrchestrator(num_cpus=3))
    with pytest.raises(
        ClusterError, match=r"(?s)1 CPU, 1 GPU were requested, .* has 4 CPU \(.* free\), 0 GPU \(0 free\)"
    ):
        trainer_of(orchestrator=RayOrchestrator(num_gpus=1))
    trainer_of().close()  # the reservations are released


UNREACHABLE = """
import sys
from tests.ray.test_ray import *
for address in sys.argv[1:]:
    try:
        trainer_of(orchestrator=RayOrchestrator(address=address, start_timeout=2))
    except ClusterError as error:
        print(error)
"""


def test_ray_that_cannot_be_reached_is_refused_within_the_deadline():
    with socket.socket() as unused, socket.socket() as mute:
        unused.bind(("127.0.0.1", 0))
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        addresses = f"127.0.0.1:{unused.getsockname()[1]}", f"ray://127.0.0.1:{mute.getsockname()[1]}"
        done = python("-c", UNREACHABLE, *addresses, "somewhere")
    for address in addresses:
        assert f"Ray cannot be reached at '{address}'" in done.stdout, done.stderr
    assert "expected 'auto', 'host:port'" in done.stdout


def test_agent_that_holds_warps_arrays_cannot_be_pickled(ray_cluster):
    agent = NullAgent()
    agent.weights = load_framework("warp").from_numpy(np.ones(3))  # type: ignore[attr-defined]
    with pytest.raises(AgentError, match=r"scope 0, NullAgent, cannot be pickled .*pass a factory"):
        trainer_of(agents=agent, framework="warp")


def test_agent_that_cannot_be_pickled_is_refused_with_a_remedy(ray_cluster):
    agent = NullAgent()
    agent.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(AgentError, match=r"scope 0, NullAgent, cannot be pickled .*lock.*pass a factory"):
        trainer_of(agents=agent)
    lock = threading.Lock()
    with pytest.raises(EnvError, match=r"environment factory cannot be pickled .*lock"):
        trainer_of(EnvFactory(lambda n, first: build_counting(n, first) if lock else [], num_envs=2))


def test_errors_of_building_have_the_same_names_as_locally(ray_cluster):
    with pytest.raises(EnvError, match="built 2 environments, starting at row 1; expected 1"):
        trainer_of(EnvFactory(lambda n, first: build_counting(n + first, first), num_envs=2), [NullAgent] * 2)
    with pytest.raises(AgentError, match="scope 0, object, lacks init"):
        trainer_of(agents=lambda scope: object())


def test_options_are_checked():
    with pytest.raises(ConfigError, match="num_cpus is -1"):
        RayOrchestrator(num_cpus=-1)
    with pytest.raises(ConfigError, match="step_timeout is 0 s"):
        RayOrchestrator(step_timeout=0)


def test_instances_get_the_trained_state_by_agents_and_by_close(ray_cluster):
    agents = [RecordingAgent(), RecordingAgent()]
    trainer = trainer_of(agents=agents)
    trainer.train()
    assert [len(agent.records()) for agent in agents] == [0, 0]
    assert all(one is other for one, other in zip(trainer.agents, agents, strict=True))
    assert [len(agent.records()) for agent in agents] == [1, 1]
    trainer.train()
    trainer.close()
    assert [len(agent.records()) for agent in agents] == [2, 2]
    assert all(one is other for one, other in zip(trainer.agents, agents, strict=True))


class ModuleAgent(NullAgent):
    """Cannot be pickled, but has modules with random initial weights."""

    def __init__(self, scope: Any = None) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.net = torch.nn.Linear(1, 1)
        self.checkpoint_modules = {"net": self.net}

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        with torch.no_grad():
            self.net.weight.fill_(timestep)


class FileAgent(ModuleAgent):
    """Cannot be pickled and has no modules, but can save and load."""

    def __init__(self, scope: Any = None) -> None:
        super().__init__()
        del self.checkpoint_modules

    def save(self, path: str) -> None:
        torch.save(self.net.state_dict(), path)

    def load(self, path: str) -> None:
        self.net.load_state_dict(torch.load(path))


class LostAgent(FileAgent):
    save = load = None  # type: ignore[assignment]


@pytest.mark.parametrize("kind", [ModuleAgent, FileAgent])
def test_factories_products_come_back_by_their_modules_or_by_a_file(ray_cluster, kind):
    with trainer_of(agents=kind) as trainer:
        trainer.train(timestep=7)
        assert trainer.agents[0].net.weight.item() == 7
    with pytest.raises(LifecycleError, match="read agents before"):
        _ = trainer.agents


def test_agent_that_cannot_come_back_is_named(ray_cluster):
    with (
        trainer_of(agents=LostAgent) as trainer,
        pytest.raises(AgentError, match="cannot be brought back: it cannot be pickled, and none of"),
    ):
        _ = trainer.agents


def test_sharing_says_why_and_the_drivers_environment_is_closed_only_if_asked(ray_cluster, caplog):
    class Env(CountingEnv):
        closed = 0

        def close(self) -> None:
            Env.closed += 1

    for close in (False, True):
        env = wrap_env([Env(0), Env(1)], framework="warp")
        with caplog.at_level(logging.WARNING, "lockstep"):
            trainer_of(env, close_environment_at_exit=close).close()
        assert Env.closed == 2 * close
    assert "cannot be rebuilt per scope; use make_env" in caplog.text


def test_text_says_where_each_agent_lives(ray_cluster):
    with trainer_of(make_env("CartPole-v1", num_envs=2, framework="warp"), NullAgent) as trainer:
        text = str(trainer)
    assert "NullAgent" in text
    assert f"pid {os.getpid()}" not in text
    assert text.endswith("), 1 compute thread")


def test_nothing_stays_reserved(ray_cluster):
    from ray.util import placement_group_table

    trainer_of().close()
    with pytest.raises(AgentError):
        trainer_of(agents=lambda scope: object())
    states = {group["state"] for group in placement_group_table().values()}
    assert states <= {"REMOVED"}


@pytest.mark.parametrize("transport", ["connection", "ray"])
def test_survivors_of_a_death_bring_their_state_back_and_close(ray_cluster, caplog, transport):
    agents = [RecordingAgent(), DyingAgent(signal.SIGKILL)]
    trainer = trainer_of(agents=agents, orchestrator=RayOrchestrator(transport=transport, snapshot_every=0))
    trainer.train()
    trainer.train()
    with pytest.raises(WorkerError):
        trainer.train()
    trainer.close()
    assert [record["timestep"] for record in agents[0].records()] == [1, 2, 3]  # type: ignore[attr-defined]
    assert "the trained state of the agent of scope 1 is lost" in caplog.text
    assert "scope 0" not in caplog.text


class StepsAgent(NullAgent):
    """Counts its steps."""

    steps = 0

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        self.steps += 1


class LockedEnv(CountingEnv):
    """An environment whose infos cannot be pickled from its second step on."""

    def step(self, action: Any) -> Any:
        *outputs, _ = super().step(action)
        return *outputs, {"lock": threading.Lock()} if self.step_count > 1 else {}


@pytest.mark.parametrize("transport", ["connection", "ray"])
@pytest.mark.parametrize("shared", [False, True])
def test_infos_that_cannot_travel_lose_no_agent(ray_cluster, shared, transport):
    agents = [StepsAgent(), StepsAgent()]
    env: Any = EnvFactory(lambda n, first: [LockedEnv(first + i) for i in range(n)], num_envs=2)
    if shared:
        env = wrap_env(env.build(2, 0), framework="warp")
    trainer = trainer_of(env, agents, RayOrchestrator(transport=transport))
    trainer.train()
    with pytest.raises(WorkerError, match=r"lock"):
        trainer.train()  # fails before the agents record it
    trainer.close()
    assert [agent.steps for agent in agents] == [1, 1]


@pytest.mark.parametrize("transport", ["connection", "ray"])
def test_interrupted_run_brings_its_agents_back(ray_cluster, transport, monkeypatch):
    """The interrupt comes after the request to the first worker is sent, and before that to the second."""
    agents = [RecordingAgent(), RecordingAgent()]
    trainer = trainer_of(agents=agents, orchestrator=RayOrchestrator(transport=transport))
    trainer.train()
    streams = trainer._session._streams
    send = streams._send

    def interrupt(index: int, *args: Any) -> None:
        if index == 1:
            raise KeyboardInterrupt
        send(index, *args)

    monkeypatch.setattr(streams, "_send", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    monkeypatch.undo()
    trainer.close()
    assert [len(agent.records()) for agent in agents] == [2, 1]


CONNECTED = """
import sys
from orchestrator.ray.cluster import connect
from tests.ray.test_ray import *
connect(sys.argv[1], timeout=30)  # may take longer than the start that is given up below
try:
    trainer_of(agents=[NullAgent] * 2, orchestrator=RayOrchestrator(num_cpus=3, start_timeout=1))
except ClusterError as error:
    print(error)
"""


def test_cluster_that_was_connected_to_may_grow(ray_cluster):
    import ray

    done = python("-c", CONNECTED, ray.get_runtime_context().gcs_address)
    assert "but Ray has no room for them (waited" in done.stdout, done.stderr
    assert " has 4 CPU (" in done.stdout
