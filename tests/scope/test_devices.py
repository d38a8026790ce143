"""Agents on GPUs, with GPUs that only take notes: streams, and what travels to the host."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from tests.support.device_envs import ENVS
from tests.support.parity import assert_same
from workers.agents.torch import PPO
from workers.envs.outputs import EnvChecks
from workers.errors import EnvError, WorkerError
from workers.fetching import Fetch
from workers.frameworks import Reading, load_framework
from workers.frameworks import torch as torch_frameworks
from workers.frameworks.torch import TorchFramework
from workers.remote.wire import from_wire, to_wire
from workers.scope.agent_group import AgentGroup
from workers.scope.agent_log import AgentLog
from workers.scope.arrivals import Arrivals
from workers.types import Outcome, Phase

TORCH = load_framework("torch")
GPU = torch.device("cuda:0")


# Streams.


class Streams:
    """Streams of a GPU that note who waits for whom."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.count = 0
        self.current: Any = Stream(self, "main")


class Inside:
    """Context on a stream, as torch's: it may be entered again."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        self.outer, self.stream.streams.current = self.stream.streams.current, self.stream

    def __exit__(self, *_: object) -> None:
        self.stream.streams.current = self.outer


class Stream:
    def __init__(self, streams: Streams, name: str) -> None:
        self.streams, self.name = streams, name

    def wait_stream(self, other: Stream) -> None:
        self.streams.notes.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Iterator[Streams]:
    streams = Streams()

    def make(device: torch.device) -> Stream:
        assert device == GPU
        streams.count += 1
        return Stream(streams, f"stream {streams.count}")

    torch_frameworks._stream.cache_clear()
    monkeypatch.setattr(torch.cuda, "Stream", make)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams.current)
    monkeypatch.setattr(torch.cuda, "stream", Inside)
    yield streams
    torch_frameworks._stream.cache_clear()


class Runner:
    """A runner that notes on which stream it acts."""

    agents = ()
    phase, timestep = Phase.COLLECT, 1

    def __init__(self, index: int, device: Any, streams: Streams) -> None:
        self.agent, self.streams = self, streams
        self.device, self.index = device, index
        self.scope: Any = type(
            "", (), {"num_envs": 1, "start": index, "stop": index + 1, "index": index, "rows": (0, 1)}
        )

    def collect(self) -> int:
        self.streams.notes.append(f"agent {self.index} on {self.streams.current.name}")
        if self.index == 3:
            raise KeyError("a failure")
        return self.index


def group_of(devices: list[Any], streams: Streams) -> AgentGroup:
    runners: list[Any] = [Runner(index, device, streams) for index, device in enumerate(devices)]
    return AgentGroup(runners, TORCH)


def test_agents_on_one_gpu_overlap(streams):
    group = group_of([GPU, torch.device("cpu"), GPU], streams)
    assert group._each(Runner.collect) == [0, 1, 2]
    assert streams.notes == [
        "stream 1 waits for main",
        "agent 0 on stream 1",
        "agent 1 on main",
        "stream 2 waits for main",
        "agent 2 on stream 2",
        "main waits for stream 1",
        "main waits for stream 2",
    ]
    assert streams.current.name == "main"


def test_an_agent_alone_on_its_gpu_or_beside_an_unknown_device_needs_no_stream(streams):
    for devices in ([GPU, torch.device("cpu"), torch.device("cuda:1")], [GPU, GPU, None]):
        group = group_of(devices, streams)
        assert group._each(Runner.collect) == [0, 1, 2]
        assert not streams.count


def test_many_agents_share_eight_streams(streams):
    group = group_of([GPU] * 20, streams)
    assert streams.count == 8
    group.runners[3].index = 0  # type: ignore[attr-defined]
    group._each(Runner.collect)
    names = [note.split()[-1] for note in streams.notes if note.startswith("agent")]
    assert names[:8] == names[8:16]
    assert names[:4] == names[16:]
    assert len(set(names)) == 8


def test_streams_are_joined_after_a_failure(streams):
    group = group_of([GPU] * 2, streams)
    group.runners[1].index = 3  # type: ignore[attr-defined]
    with pytest.raises(WorkerError, match="a failure"):
        group._each(Runner.collect)
    assert streams.notes[-2:] == ["main waits for stream 1", "main waits for stream 2"]
    assert streams.current.name == "main"


# To the host.


class Journey(Reading):
    """Arrays that arrive when they are told to; who asks earlier waits."""

    def __init__(self, arrays: Any) -> None:
        super().__init__([array.clone().numpy() for array in arrays])
        self.has_arrived = False
        self.waits = 0

    def is_ready(self) -> bool:
        return self.has_arrived

    def result(self) -> Any:
        self.waits += not self.has_arrived
        return super().result()


@pytest.fixture
def journeys(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Journey]]:
    """Every tensor counts as one on a GPU."""
    made: list[Journey] = []

    def read_later(self: Any, arrays: Any) -> Journey:
        made.append(Journey(arrays))
        return made[-1]

    monkeypatch.setattr(TorchFramework, "is_on_host", lambda self, array: False)
    monkeypatch.setattr(TorchFramework, "has_devices", lambda self: True)
    monkeypatch.setattr(TorchFramework, "read_later", read_later)
    return made  # type: ignore[return-value]


def test_calls_wait_for_their_arrays_and_keep_their_order(journeys):
    arrivals = Arrivals(TORCH)
    made: list[Any] = []
    arrivals.call(made.append, 0)
    assert made == [0]
    arrivals.call(made.append, torch.tensor(1))
    arrivals.call(made.append, 2)  # its place is after that
    arrivals.call(made.append, {"a": torch.tensor(3)})
    assert made == [0]
    journeys[1].has_arrived = True
    arrivals.call(made.append, 4)
    assert made == [0], "an earlier one is still on its way"
    journeys[0].has_arrived = True
    arrivals.call(made.append, 5)
    assert made == [0, 1, 2, {"a": 3}, 4, 5]
    assert [journey.waits for journey in journeys] == [0, 0]
    arrivals.call(made.append, torch.tensor(6))
    arrivals.flush()
    assert made[-1] == 6
    assert journeys[2].waits == 1


def test_episodes_are_the_same_on_a_gpu(journeys, monkeypatch):
    logs = []
    for is_delayed in (True, False):
        if not is_delayed:
            monkeypatch.undo()
        log = AgentLog(None, TORCH, num_envs=3, agents=(), environment_info="episode")
        log.start(midway=False)
        for step in range(4):
            rewards, ended = torch.arange(3.0)[:, None] + step, torch.tensor([[step == 1], [step == 2], [False]])
            log.note_step(rewards, ended, ended & False, before={}, infos={})
            rewards += 100  # agents may write to what they get: the copy was started before
            if is_delayed:
                journeys[-1].has_arrived = step % 2 == 0
        logs.append(log.drain())
    assert logs[0] == logs[1]
    assert logs[0]["Episode / Return (mean)"] == pytest.approx((0 + 1 + 1 + 2 + 3) / 2)


def test_an_outcome_travels_in_one_go(journeys):
    flags = torch.tensor([[True], [False]])
    infos = {"final_obs": torch.ones(2, 3), "other": {"plain": np.arange(2)}}
    outcome = Outcome(torch.arange(6.0).reshape(2, 3), torch.ones(2, 1), flags, ~flags, infos)
    packed = to_wire(outcome, TORCH)
    assert len(journeys) == 1
    received = from_wire(packed, TORCH)
    assert type(received) is Outcome
    assert_same(received.infos["other"], infos["other"])
    for given, expected in zip(received[:4], outcome[:4], strict=True):
        assert torch.equal(given, expected)
    assert torch.equal(received.infos["final_obs"], torch.ones(2, 3))


def test_steps_that_are_undone_are_not_told(journeys):
    env = ENVS["torch"](3, 0)
    checks = EnvChecks(env, TORCH)
    good, bad = torch.zeros(3, 3), torch.full((3, 3), torch.nan)
    checks.check_reset(bad, None, {}, 4)
    checks.forget()
    checks.check_reset(good, None, {}, 5)
    checks.read()
    checks.check_reset(bad, None, {}, 6)
    for _ in range(2):
        with pytest.raises(EnvError, match="not finite since timestep 6"):
            checks.read()


def test_a_learning_rate_that_is_set_after_an_update_stays(monkeypatch):
    box = Box(-1, 1, (3,), np.float32)
    agent = PPO(observation_space=box, action_space=box, num_envs=2, cfg={"rollouts": 4, "kl_threshold": 0.01})
    monkeypatch.setattr(TorchFramework, "device_name", lambda self, device: "cuda:0")  # so it is read late
    agent.enable_training_mode(True)
    flags, rows = torch.zeros(2, 1, dtype=torch.bool), torch.ones(2, 3)
    clock: Any = {"timestep": 0, "timesteps": 9}
    for _ in range(4):
        actions, _ = agent.act(rows, None, **clock)
        agent.record_transition(observations=rows, states=None, actions=actions, rewards=rows[:, :1],
                                next_observations=rows, next_states=None, terminated=flags, truncated=flags,
                                infos={}, **clock)  # fmt: skip
        agent.post_interaction(**clock)
    assert not agent.tracked.state()["kept"]
    agent.learning_rate = 5e-5
    agent.pre_interaction(**clock)
    assert agent.learning_rate == 5e-5
    assert agent.tracked.drain()["Learning / Learning rate"] != 5e-5


def test_what_is_on_the_host_does_not_travel():
    tree: dict[str, Any] = {"a": (torch.ones(2), "text"), "b": Outcome(1, 2, 3, 4, {})}
    fetch = Fetch(tree, TORCH)
    assert fetch.is_ready()
    assert fetch.result()["a"][0] is tree["a"][0]


def test_an_agent_of_a_gpu_is_unpickled_without_one():
    box = Box(-1, 1, (3,), np.float32)
    agent = PPO(observation_space=box, action_space=box, num_envs=2, cfg={"rollouts": 4, "kl_threshold": 0.01})
    agent.enable_training_mode(True)
    agent.device = GPU  # as far as pickle is concerned
    copy = pickle.loads(pickle.dumps(agent))
    assert copy.device == torch.device("cpu")
    assert_same(copy.snapshot(), agent.snapshot())
    agent.device = torch.device("cpu")
    for each in (agent, copy):
        torch.manual_seed(0)
        for timestep in range(5):
            clock: Any = {"timestep": timestep, "timesteps": 9}
            rows = torch.full((2, 3), float(timestep))
            actions, _ = each.act(rows, None, **clock)
            flags, column = torch.zeros(2, 1, dtype=torch.bool), rows[:, :1]
            each.record_transition(observations=rows, states=None, actions=actions, rewards=column,
                                   next_observations=rows, next_states=None, terminated=flags, truncated=flags,
                                   infos={}, **clock)  # fmt: skip
            each.post_interaction(**clock)
    assert_same(copy.snapshot(), agent.snapshot())
