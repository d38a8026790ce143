"""Scalars that agents track, read through skrl's members; episodes; and agents that must not write files."""

from __future__ import annotations

import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.agents import NullAgent, copied
from tests.support.envs import CountingEnv, RenderedEnv, build_counting, counting_factory
from tests.support.parity import CFG, assert_same, step_trainer
from trainer.torch import StepTrainer
from workers.envs import EnvFactory
from workers.errors import LifecycleError, WorkerError
from workers.frameworks import load_framework
from workers.scalars import Scalars
from workers.scope.episodes import Episodes
from workers.scope.tracking import ScalarWriter
from workers.types import Scope


def test_scalars_are_means_and_extremes_since_the_last_time():
    scalars = Scalars()
    for value in (1, 2.0, 6.0):
        for tag in ("a", "a (min)", "a (max)", "a (mean)"):
            scalars.add(tag, value)
    assert scalars.drain() == {"a": 3.0, "a (min)": 1.0, "a (max)": 6.0, "a (mean)": 3.0}
    assert scalars.drain() == {}
    scalars.add("a (max)", -1)
    assert scalars.drain() == {"a (max)": -1.0}


def test_episodes_by_hand(framework: str):
    arrays = load_framework(framework)

    def column(*values: Any) -> Any:
        return arrays.from_numpy(np.array(values).reshape(-1, 1))

    episodes = Episodes(2)
    for rewards, terminated, truncated, expected in [
        ((1.0, 10.0), (False, False), (False, False), ([], [], [])),
        ((2.0, 20.0), (True, False), (False, False), ([0], [3.0], [2])),
        ((4.0, 40.0), (True, False), (False, True), ([0, 1], [4.0, 70.0], [1, 3])),
        ((8.0, 80.0), (True, True), (True, False), ([0, 1], [8.0, 80.0], [1, 1])),
    ]:
        rows, returns, lengths = episodes.add(column(*rewards), column(*terminated), column(*truncated), arrays)[""]
        assert (rows.tolist(), returns.tolist(), lengths.tolist()) == expected
    episodes.add(column(1.0, 1.0), column(False, False), column(False, False), arrays)
    episodes.restart()
    _, returns, lengths = episodes.add(column(5.0, 6.0), column(True, True), column(False, False), arrays)[""]
    assert (returns.tolist(), lengths.tolist()) == ([5.0, 6.0], [1, 1])


def test_episodes_with_steps_of_two_kinds_are_left_out():
    arrays, episodes = load_framework("numpy"), Episodes(3)

    def step(*ended: int, episodes: Episodes = episodes) -> list[tuple[int, float, int]]:
        flags = np.array([[int(row in ended)] for row in range(3)])  # another library's flags may be numbers
        found = episodes.add(np.ones((3, 1)), flags, flags, arrays)[""]
        return list(zip(*(column.tolist() for column in found), strict=True))

    assert step(1) == [(1, 1.0, 1)]
    episodes.leave_out()  # row 1 has just been reset
    assert step(0, 1) == [(1, 1.0, 1)]
    assert step(0, 2) == [(0, 1.0, 1)]
    assert step(2) == [(2, 1.0, 1)]
    midway = Episodes(3, midway=True)
    assert step(0, 1, episodes=midway) == []
    assert step(0, 2, episodes=midway) == [(0, 1.0, 1)]
    midway.restart()
    assert step(1, 2, episodes=midway) == [(1, 1.0, 1), (2, 1.0, 1)]


def test_a_team_of_another_library_ends_with_its_last_agent():
    """Without `alive`, its agents may end in different steps."""
    arrays, episodes = load_framework("numpy"), Episodes(1)

    def step(rewards: tuple[float, float], *ended: str) -> dict[str, Any]:
        columns = [np.array([[reward]]) for reward in rewards]
        flags = {name: np.array([[name in ended]]) for name in ("a", "b")}
        never = {name: np.array([[False]]) for name in flags}
        return episodes.add(dict(zip("ab", columns, strict=True)), flags, never, arrays)

    for _ in range(2):
        assert step((1.0, 10.0))[""].rows.size == 0
        assert step((1.0, 10.0), "a")[""].rows.size == 0
        ended = step((0.0, 10.0), "b")
        assert (ended[""].returns.tolist(), ended[""].lengths.tolist()) == ([32.0], [3])
        assert ended["b"].returns.tolist() == [30.0]


class FileWriter:
    """Stand-in for the event files of skrl's agents."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.written: list[tuple[str, float, int]] = []

    def add_scalar(self, *, tag: str, value: float, timestep: int) -> None:
        self.written.append((tag, value, timestep))


class SkrlLikeAgent(NullAgent):
    """Tracks and writes like skrl's agents."""

    def __init__(self, folder: Path, write_interval: Any = "auto") -> None:
        super().__init__()
        self.folder = folder
        self.write_interval = write_interval
        self.checkpoint_interval: Any = "auto"
        self.tracking_data: Any = defaultdict(list)
        self.longest = 0

    def init(self, *, trainer_cfg: Any = None) -> None:
        for name in ("write_interval", "checkpoint_interval"):
            if getattr(self, name) == "auto":
                setattr(self, name, trainer_cfg.timesteps // 10)
        if self.write_interval > 0:
            self.writer = FileWriter(self.folder)
        if self.checkpoint_interval > 0:
            (self.folder / "checkpoints").mkdir()

    def track_data(self, tag: str, value: float) -> None:
        self.tracking_data[tag].append(value)
        self.longest = max(self.longest, len(self.tracking_data[tag]))

    def write_tracking_data(self, *, timestep: int, timesteps: int) -> None:
        for tag, values in self.tracking_data.items():
            self.writer.add_scalar(tag=tag, value=np.mean(values), timestep=timestep)
        self.tracking_data.clear()

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        self.track_data("Loss / Mine", timestep)
        if self.write_interval > 0:
            self.track_data("Reward / Mine", 100 + timestep)
        if self.checkpoint_interval > 0 and not (timestep + 1) % self.checkpoint_interval:
            (self.folder / "checkpoints" / f"{timestep}").touch()
        if self.write_interval > 0 and not (timestep + 1) % self.write_interval:
            self.write_tracking_data(timestep=timestep, timesteps=timesteps)


def run(agent: Any, timesteps: int, *, collect_every: int = 5, cfg: Any = CFG) -> tuple[list[dict[str, float]], Any]:
    cfg = {**cfg, "timesteps": timesteps}
    with StepTrainer(env=counting_factory(2), agents=agent, cfg=cfg) as trainer:
        collected = trainer.collect_metrics()
        for timestep in range(timesteps):
            trainer.train(timestep=timestep)
            if not (timestep + 1) % collect_every:
                collected += trainer.collect_metrics()
        return collected, trainer.agents[0]


def test_a_factory_s_agent_writes_nothing_and_is_read(tmp_path: Path):
    folder = tmp_path / "experiment"
    collected, agent = run(lambda scope: SkrlLikeAgent(folder), 20)
    assert not folder.exists()
    assert [scalars.get("Loss / Mine") for scalars in collected[1:]] == [2.0, 7.0, 12.0, 17.0]
    assert [scalars.get("Reward / Mine") for scalars in collected[1:]] == [102.0, 107.0, 112.0, 117.0]
    # the agent returns with its own attributes
    assert not hasattr(agent, "writer")
    assert (agent.write_interval, agent.checkpoint_interval) == ("auto", "auto")


def test_returns_are_not_tracked_where_writing_is_off(tmp_path: Path):
    collected, agent = run(lambda scope: SkrlLikeAgent(tmp_path / "e", write_interval=0), 10)
    assert "Loss / Mine" in collected[1]
    assert "Reward / Mine" not in collected[1]
    assert agent.write_interval == 0


def test_an_instance_in_this_process_keeps_its_files(tmp_path: Path):
    agent = SkrlLikeAgent(tmp_path / "experiment")
    collected, _ = run(agent, 20)
    assert (tmp_path / "experiment" / "checkpoints" / "9").exists()
    assert isinstance(agent.writer, FileWriter)
    assert [row for row in agent.writer.written if row[0] == "Loss / Mine"] == [
        ("Loss / Mine", 2 * i + 0.5, 2 * i + 1) for i in range(10)
    ]
    # what it writes itself, every second timestep, is collected: at 1 and 3, at 5, 7 and 9, …
    assert [scalars.get("Loss / Mine") for scalars in collected[1:]] == [1.5, 6.5, 11.5, 16.5]


def test_what_nobody_collects_does_not_grow(tmp_path: Path):
    agent = SkrlLikeAgent(tmp_path / "e", write_interval=0)
    agent.checkpoint_interval = 0
    with StepTrainer(env=counting_factory(2), agents=agent, cfg=CFG) as trainer:
        for _ in range(2500):
            trainer.train(timestep=0)
        assert agent.longest == 1000
        assert set(trainer.collect_metrics()[0]) >= {"Loss / Mine", "Stats / Inference time (ms)"}


def test_episodes_infos_and_phases_of_each_scope(framework: str):
    agents = [NullAgent] * 2
    with step_trainer(framework)(env=counting_factory(5), agents=agents, scopes=[2, 3], cfg=CFG) as trainer:
        trainer.collect_metrics()
        for _ in range(4):
            trainer.train()
        first, second = trainer.collect_metrics()
        # rows 0, 1, … end after 3, 4, 5, 6, 3 steps; the reward is 1000 row + 10 episode + step / 10
        assert first["Episode / Length (mean)"] == 3.5
        assert first["Episode / Return (min)"] == pytest.approx(0.6)
        assert first["Episode / Return (max)"] == pytest.approx(4000 + 1.0)
        assert first["Episode / Return (mean)"] == pytest.approx((0.6 + 4001.0) / 2)
        assert second["Episode / Return (mean)"] == pytest.approx(12000 + 0.6)
        assert (first["Info / r"], second["Info / r"]) == (0.5, 4.0)
        phases = {"Inference", "Env stepping", "Recording", "Post-interaction", "Resetting"}
        assert {f"Stats / {phase} time (ms)" for phase in phases} <= set(first)
        trainer.reset()
        for _ in range(3):
            trainer.train()
        # episodes cut off by the reset do not count
        assert trainer.collect_metrics()[1]["Episode / Length (mean)"] == 3.0


def test_rendering_is_timed():
    env = EnvFactory(lambda n, first: [RenderedEnv(first + i) for i in range(n)], num_envs=2)
    with StepTrainer(env=env, agents=NullAgent, cfg={**CFG, "headless": False}) as trainer:
        trainer.train()
        assert "Stats / Rendering time (ms)" in trainer.collect_metrics()[0]


class BrokenWriting(SkrlLikeAgent):
    def write_tracking_data(self, *, timestep: int, timesteps: int) -> None:
        raise RuntimeError("no space left")


@pytest.mark.parametrize("orchestrator", ["local", "ray"])
def test_a_failure_in_collecting_names_the_place(orchestrator: Any, request: pytest.FixtureRequest, tmp_path: Path):
    if orchestrator == "ray":
        request.getfixturevalue("ray_cluster")
    agents = [NullAgent, lambda scope: BrokenWriting(tmp_path / "e")]
    env = EnvFactory(build_counting, num_envs=4)
    with StepTrainer(env=env, agents=agents, cfg=CFG, orchestrator=orchestrator) as trainer:
        trainer.train(timestep=7)
        with pytest.raises(WorkerError) as caught:
            trainer.collect_metrics()
        (failure,) = caught.value.failures
        assert (failure.scope, failure.phase, failure.timestep, failure.message) == (1, "collect", 7, "no space left")
        assert 'RuntimeError("no space left")' in failure.traceback
    with pytest.raises(LifecycleError, match="collect_metrics"):
        trainer.collect_metrics()


def test_the_writer_travels_and_knows_scalars_only():
    writer = ScalarWriter()
    writer.add_scalar(tag="a", value=1.0, timestep=0)
    writer.flush()
    writer.close()
    assert pickle.loads(pickle.dumps(writer)).scalars.drain() == {"a": 1.0}
    with pytest.raises(AttributeError, match="'add_histogram'; it takes only scalars"):
        writer.add_histogram("h", [1])


class ImageAgent(NullAgent):
    """Requests unflattened observations."""

    unflatten_observations = True

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope)
        self.seen: list[Any] = []

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        self.seen.append(copied(observations))
        return super().act(observations, states, timestep=timestep, timesteps=timesteps)

    def record_transition(self, **arguments: Any) -> None:
        self.seen += [copied(arguments["observations"]), copied(arguments["next_observations"])]


class ImageEnv(CountingEnv):
    """Image observations whose pixels encode row, step and pixel."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        from gymnasium.spaces import Box

        self.observation_space: Any = Box(0, 255, (2, 3, 1), np.uint8)

    def observation(self, action: float) -> Any:
        return np.arange(6, dtype=np.uint8).reshape(2, 3, 1) + np.uint8(100 * self.row + 10 * self.step_count)


@pytest.mark.parametrize("orchestrator", ["local", "ray"])
def test_images_unflattened_where_the_agent_asks(orchestrator: Any, framework: str, request: pytest.FixtureRequest):
    if orchestrator == "ray":
        request.getfixturevalue("ray_cluster")
    env = EnvFactory(lambda n, first: [ImageEnv(first + i) for i in range(n)], num_envs=2)
    agents = [NullAgent, ImageAgent]
    with step_trainer(framework)(env=env, agents=agents, cfg=CFG, orchestrator=orchestrator) as trainer:
        observations = copied(trainer.train()[0])
        seen = trainer.agents[1].seen
    assert (observations.dtype, observations.shape) == (np.uint8, (2, 6))
    pixels = np.arange(6, dtype=np.uint8).reshape(1, 2, 3, 1)
    assert_same(seen, [pixels + np.uint8(100 + 10 * step) for step in (0, 0, 1)])


def test_only_a_box_can_be_unflattened():
    from gymnasium.spaces import Discrete

    from workers.errors import AgentError

    class OneHot(CountingEnv):
        def __init__(self, row: int) -> None:
            super().__init__(row)
            self.observation_space: Any = Discrete(3)

    env = EnvFactory(lambda n, first: [OneHot(first + i) for i in range(n)], num_envs=1)
    with pytest.raises(AgentError, match=r"unflattened observations.*Discrete\(3\); expected a Box"):
        StepTrainer(env=env, agents=ImageAgent, cfg=CFG)


def notes_of(agent: Any, caplog: pytest.LogCaptureFixture, orchestrator: Any = "local") -> list[str]:
    caplog.clear()
    env = counting_factory(4)
    agents = agent if isinstance(agent, list) else [agent] * 2
    with caplog.at_level("WARNING", "lockstep"):
        StepTrainer(env=env, agents=agents, cfg=CFG, orchestrator=orchestrator).close()
    return [record.getMessage() for record in caplog.records]


def test_unused_intervals_are_told_once(tmp_path: Path, ray_cluster: None, caplog: pytest.LogCaptureFixture):
    def silent(scope: Any) -> SkrlLikeAgent:
        agent = SkrlLikeAgent(tmp_path / "never", write_interval=0)
        agent.checkpoint_interval = 0
        return agent

    (note,) = notes_of(lambda scope: SkrlLikeAgent(tmp_path / "never"), caplog)
    assert note.startswith("write_interval and checkpoint_interval of SkrlLikeAgent are ignored: an agent that a")
    assert "use collect_metrics() for its scalars and agent_files() for its state" in note
    assert notes_of(silent, caplog) == []
    # instances in the user's process keep their files
    instances = [SkrlLikeAgent(tmp_path / "one"), SkrlLikeAgent(tmp_path / "two")]
    assert notes_of(instances, caplog) == []
    ignored, copied = notes_of(instances, caplog, "ray")
    assert ignored == note
    assert "is trained as a copy" in copied


def test_what_becomes_of_instances_in_ray_is_told_once(ray_cluster: None, caplog: pytest.LogCaptureFixture):
    agents = [NullAgent(), NullAgent()]
    (note,) = notes_of(agents, caplog, "ray")
    assert note == (
        "the NullAgent instance that you passed is trained as a copy in its worker; trainer.agents and close() copy "
        "the trained state back into it"
    )
    assert notes_of(NullAgent, caplog, "ray") == []
