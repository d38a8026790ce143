"""`run(n)` and `iterate(n)`: same results as `n` calls of `train()`, iterations under way, and what stops them."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from functools import partial
from typing import Any

import pytest

from orchestrator.ray import RayOrchestrator
from tests.support.agents import NullAgent, RecordingAgent
from tests.support.envs import CountingEnv, counting_factory
from tests.support.parity import CFG, assert_same, copied_outputs, step_trainer
from tests.support.processes import PATIENCE
from workers.envs import EnvFactory, wrap_env
from workers.errors import ConfigError, LifecycleError, WorkerError

SCOPES = [2, 3]
MODES = ["local", "sharded", "sharded by ray", "shared"]
REMOTE = ["sharded", "sharded by ray"]


def trainer_of(
    mode: str = "local", agents: Any = (RecordingAgent, RecordingAgent), env: Any = None, **options: Any
) -> Any:
    orchestrator: Any = "local"
    framework = "torch"
    if mode != "local":
        framework = "warp"  # the fastest to import
        transport: Any = "ray" if mode.endswith("by ray") else "connection"
        orchestrator = RayOrchestrator(num_cpus=0.5, transport=transport, **options)
    if env is None:
        env = counting_factory(5)
    if mode == "shared":
        env = wrap_env(env.build(5, 0), framework=framework)
    return step_trainer(framework)(
        env=env, agents=list(agents), scopes=SCOPES, cfg={**CFG, "timesteps": 50}, orchestrator=orchestrator, seed=3
    )


@pytest.fixture
def mode(request: pytest.FixtureRequest) -> str:
    if request.param != "local":
        request.getfixturevalue("ray_cluster")
    name: str = request.param
    return name


def timesteps_of(agent: Any) -> list[int]:
    return [call["timestep"] for name, call in agent.calls if name == "act"]


@pytest.mark.parametrize("mode", MODES, indirect=True)
def test_run_and_iterate_are_calls_of_train(mode: str):
    with trainer_of() as trainer:
        expected = [copied_outputs(trainer.train()) for _ in range(20)]
        calls = [agent.calls for agent in trainer.agents]
    with trainer_of(mode) as trainer:
        given = [copied_outputs(trainer.run(4))]
        given += map(copied_outputs, trainer.iterate(7))
        given.append(copied_outputs(trainer.train()))
        given += map(copied_outputs, trainer.iterate(3, prefetch=0))
        given.append(copied_outputs(trainer.run(1)))
        given += map(copied_outputs, trainer.iterate(4, prefetch=9))
        assert_same(given, expected[3:])
        assert_same([agent.calls for agent in trainer.agents], calls)


@pytest.mark.parametrize("mode", ["local", "sharded"], indirect=True)
def test_explicit_timesteps_count_on_from_the_first(mode: str):
    with trainer_of(mode) as trainer:
        trainer.run(3, timestep=10, timesteps=60)
        list(trainer.iterate(3, timestep=20, timesteps=70))
        trainer.train()
        (agent, _) = trainer.agents
    assert timesteps_of(agent) == [10, 11, 12, 20, 21, 22, 1]
    totals = [call["timesteps"] for name, call in agent.calls if name == "act"]
    assert totals == [60] * 3 + [70] * 3 + [50]


@pytest.mark.parametrize("mode", MODES, indirect=True)
def test_metrics_and_episodes_of_all_iterations_are_kept(mode: str):
    def collected(one_by_one: bool, mode: str) -> Any:
        with trainer_of(mode) as trainer:
            trainer.collect_metrics()
            if one_by_one:
                for _ in range(30):
                    trainer.train()
            else:
                trainer.run(20)
                list(trainer.iterate(10))
            metrics = trainer.collect_metrics()
        return [{tag: value for tag, value in one.items() if "time (ms)" not in tag} for one in metrics]

    expected = collected(True, "local")
    assert any("Episode" in tag for tag in expected[0])
    assert collected(False, mode) == expected


@pytest.mark.parametrize("mode", ["local", "sharded", "sharded by ray"], indirect=True)
def test_a_loop_that_is_left_early_leaves_the_trainer_after_what_was_under_way(mode: str):
    with trainer_of(mode) as trainer:
        for step, _ in enumerate(trainer.iterate(50, prefetch=2)):
            if step == 3:
                break
        trainer.train()
        # 4 were yielded, 2 more were under way
        assert all(timesteps_of(agent) == [1, 2, 3, 4, 5, 6, 7] for agent in trainer.agents)


@pytest.mark.parametrize("mode", ["local", "sharded"], indirect=True)
def test_inside_the_loop_the_trainer_can_be_asked_but_not_stepped(mode: str):
    with trainer_of(mode) as trainer:
        for step, _ in enumerate(trainer.iterate(6, prefetch=1), 1):
            steps = trainer.train, trainer.eval, trainer.reset, partial(trainer.run, 2), partial(trainer.iterate, 2)
            for call in steps:
                if step < 6:
                    with pytest.raises(LifecycleError, match="inside a loop over iterate"):
                        call()
            agents = trainer.agents
            assert len(trainer.collect_metrics()) == 2
            done = step if mode == "local" else min(6, step + 1)
            assert timesteps_of(agents[0]) == list(range(1, done + 1))
        trainer.run(2)


def test_closing_inside_the_loop_ends_it():
    trainer = trainer_of()
    loop = trainer.iterate(9)
    next(loop)
    trainer.close()
    with pytest.raises(LifecycleError, match=r"iterate\(\) after close"):
        next(loop)


def test_numbers_of_iterations_are_checked():
    with trainer_of() as trainer:
        for wrong in (0, -1, 2.5, "3", None):
            with pytest.raises(ConfigError, match="n is"):
                trainer.run(wrong)
        with pytest.raises(ConfigError, match="prefetch is -1; expected 0 or more"):
            trainer.iterate(3, prefetch=-1)
        with pytest.raises(ConfigError, match="n is -1"):
            trainer.iterate(-1)
        assert list(trainer.iterate(0)) == []
        trainer.train()
        assert timesteps_of(trainer.agents[0]) == [1]


class FailingAgent(RecordingAgent):
    """Agent that fails at timestep 5."""

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        if timestep == 5:
            raise ZeroDivisionError("update")
        super().post_interaction(timestep=timestep, timesteps=timesteps)


@pytest.mark.parametrize("mode", MODES, indirect=True)
@pytest.mark.parametrize("by", ["run", "iterate"])
def test_a_failure_names_the_timestep_and_stops_the_others(mode: str, by: str):
    agents = [RecordingAgent(), FailingAgent()]
    trainer = trainer_of(mode, agents)
    with pytest.raises(WorkerError) as caught:
        trainer.run(1_000_000) if by == "run" else list(trainer.iterate(1_000_000, prefetch=3))
    (failure,) = caught.value.failures
    assert (failure.scope, failure.timestep, failure.phase) == (1, 5, "post-interaction")
    with pytest.raises(LifecycleError, match="failed or was interrupted"):
        trainer.run(2)
    trainer.close()
    assert timesteps_of(agents[1]) == [1, 2, 3, 4, 5]
    assert timesteps_of(agents[0])[:5] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("mode", ["local", *REMOTE], indirect=True)
def test_run_can_be_interrupted(mode: str):
    agents = [RecordingAgent(), RecordingAgent()]
    trainer = trainer_of(mode, agents)
    trainer.run(10)
    gc.collect()  # an interrupt inside a __del__, such as one of an earlier test's actors, would be lost
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores the signal
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        trainer.run(200_000)
    timer.join(PATIENCE)
    signal.signal(signal.SIGINT, before)
    start = time.monotonic()
    trainer.close()
    assert time.monotonic() - start < PATIENCE  # it did not wait for all iterations
    for agent in agents:
        done = timesteps_of(agent)
        assert done == list(range(1, len(done) + 1))
        assert 10 <= len(done) < 200_000


class SlowEnv(CountingEnv):
    """Environment whose step takes a second."""

    def step(self, action: Any) -> Any:
        threading.Event().wait(1.0)
        return super().step(action)


@pytest.mark.parametrize("mode", REMOTE, indirect=True)
def test_the_deadline_is_for_each_iteration(mode: str):
    def build(num_envs: int, first_env: int) -> list[CountingEnv]:
        rows = range(first_env, first_env + num_envs)
        return [(SlowEnv if row == 4 else CountingEnv)(row) for row in rows]

    env = EnvFactory(build, num_envs=5)
    with trainer_of(mode, [NullAgent, NullAgent], env, step_timeout=3) as trainer:
        trainer.run(5)


class Deleted:
    """Ctrl-C comes while it is deleted, where Python discards what is raised."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("last", [3, 6])
def test_an_interrupt_within_a_deletion_is_not_lost(last: int):
    class Deleting(NullAgent):
        def post_interaction(self, *, timestep: int, timesteps: int) -> None:
            done.append(timestep)
            if timestep == last:
                Deleted()

    done: list[int] = []
    hook = sys.unraisablehook
    with trainer_of(agents=(NullAgent, lambda scope: Deleting())) as trainer:
        with pytest.raises(KeyboardInterrupt):
            trainer.run(6)
        assert done == list(range(1, last + 1))
    assert sys.unraisablehook is hook
