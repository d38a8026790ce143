"""Environments on a framework's device: agents and the user receive their arrays unchanged."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from orchestrator.ray import RayOrchestrator
from tests.support.agents import RecordingAgent, framework_of
from tests.support.device_envs import ENVS
from tests.support.parity import CFG, assert_same, run, step_trainer
from tests.support.schedule import FRAMEWORKS, full_or_short
from workers.envs import EnvFactory
from workers.frameworks import Reading, load_framework
from workers.types import Scope

NUM_ENVS, SCOPES, STEPS = 5, [2, 3], 20


class DeviceAgent(RecordingAgent):
    """Acts with arrays made at construction, and keeps the array objects it receives."""

    def __init__(self, framework: str, scope: Scope) -> None:
        super().__init__(scope)
        rows = np.arange(scope.start, scope.stop, dtype=np.float32)[:, None]
        self.actions = load_framework(framework).from_numpy(10 * rows)
        self.given: dict[str, Any] = {}

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        return self.actions, {}

    def record_transition(self, **arguments: Any) -> None:
        self.given = arguments

    def _note(self, name: str, **arguments: Any) -> None:
        pass


@pytest.fixture
def no_host(framework: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that forbids the adapter to copy arrays to or from the host."""

    def forbidden(*_: Any) -> Any:
        raise AssertionError("an array went through the host")

    def forbid() -> None:
        adapter = load_framework(framework)
        read = adapter.to_numpy
        reading = lambda arrays: Reading([read(array).copy() for array in arrays])  # noqa: E731 - what is read later
        monkeypatch.setattr(adapter, "read_later", reading, raising=False)
        for method in ("to_numpy", "from_numpy"):
            monkeypatch.setattr(load_framework(framework), method, forbidden, raising=False)

    return forbid


@pytest.mark.parametrize("scopes", [[5], [2, 3]], ids=["one", "two"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_arrays_stay_where_they_are(framework, scopes, mode, no_host, monkeypatch):
    env = ENVS[framework](NUM_ENVS, 0)
    agents: list[Any] = [lambda scope: DeviceAgent(framework, scope)] * len(scopes)
    with step_trainer(framework)(env=env, agents=agents, scopes=scopes, cfg=CFG, seed=1) as trainer:
        monkeypatch.setattr(load_framework(framework), "is_on_host", lambda array: False, raising=False)
        trainer.run(32)  # compiles everything; in these steps the run looks for draws from global generators
        no_host()
        for _ in range(2 * STEPS):  # long enough for the first bad step to be read
            outputs = getattr(trainer, mode)()
            assert all(output is given for output, given in zip(outputs[:4], env.given[:4], strict=True))
            assert all(outputs[4][key] is value for key, value in env.given[4].items())
        for agent in trainer.agents:
            arrays = [value for value in agent.given.values() if hasattr(value, "shape")]
            assert len(arrays) == 6
            assert all(framework_of(array).name == framework for array in arrays)


def device_run(framework: str, *, split: bool, orchestrator: Any = "local") -> Any:
    env: Any = EnvFactory(ENVS[framework], num_envs=NUM_ENVS) if split else ENVS[framework](NUM_ENVS, 0)
    agents = [RecordingAgent] * 2
    outputs, trained = run(
        STEPS, framework=framework, env=env, agents=agents, scopes=SCOPES, seed=1, orchestrator=orchestrator
    )
    return outputs, [agent.calls for agent in trained]


def test_rows_and_true_transitions(framework):
    """The expected trace is computed from the environment's definition."""
    outputs, calls = device_run(framework, split=True)
    records = [[arguments for name, arguments in agent if name == "record"] for agent in calls]
    for timestep in range(1, STEPS + 1):
        observations, rewards, terminated, truncated, _ = outputs[timestep - 1]
        for row in range(NUM_ENVS):
            length = 3 + row % 4
            step = (timestep - 1) % length + 1
            action, ended = 100.0 * row + timestep, step == length
            assert observations[row].tolist() == ([row, 0, -1] if ended else [row, step, action])
            assert rewards[row].tolist() == [100 * row + step]
            assert (terminated[row].tolist(), truncated[row].tolist()) == ([False], [ended])
            scope, local_row = (0, row) if row < 2 else (1, row - 2)
            assert records[scope][timestep - 1]["next_observations"][local_row].tolist() == [row, step, action]


@pytest.mark.parametrize(
    ("kind", "framework"),
    full_or_short(
        list(product(["sharded", "shared"], FRAMEWORKS)), [("sharded", "torch"), ("shared", "jax"), ("shared", "warp")]
    ),
)
def test_local_is_sharded_is_shared(kind, framework, ray_cluster):
    local = device_run(framework, split=True)
    assert_same(device_run(framework, split=kind == "sharded", orchestrator=RayOrchestrator()), local)
