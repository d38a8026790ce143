"""A failure names its place: scope, phase, timestep, node and original traceback; and the trainer can be closed.

Every framework is tested, except where arrays do not matter: processes that die or do not answer, and interrupts.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from itertools import product
from typing import Any

import pytest

from orchestrator.ray import RayOrchestrator
from tests.support.agents import DyingAgent, NullAgent
from tests.support.envs import CountingEnv
from tests.support.parity import CFG, step_trainer
from tests.support.processes import descendants, still_alive
from tests.support.schedule import FRAMEWORKS, full_or_short, in_turn, only_long
from workers.envs import EnvFactory, wrap_env
from workers.errors import LifecycleError, WorkerError

NUM_ENVS = 5
SCOPES = [2, 3]


class UsersError(Exception):
    """Exception that cannot be unpickled: its constructor takes two arguments."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


class FailingAgent(NullAgent):
    """Agent that fails at timestep 3 in one method."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method

    def _fail_in(self, method: str, timestep: int) -> None:
        if method == self.method and timestep == 3:
            self.calls_the_function_that_fails()

    def calls_the_function_that_fails(self) -> None:
        raise UsersError("oh", "no")

    def pre_interaction(self, *, timestep: int, timesteps: int) -> None:
        self._fail_in("pre-interaction", timestep)

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        self._fail_in("act", timestep)
        return super().act(observations, states, timestep=timestep, timesteps=timesteps)

    def record_transition(self, **arguments: Any) -> None:
        self._fail_in("record", arguments["timestep"])

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        self._fail_in("post-interaction", timestep)


class FailingEnv(CountingEnv):
    def step(self, action: Any) -> Any:
        if self.step_count == 2:
            self.calls_the_function_that_fails()
        return super().step(action)

    def calls_the_function_that_fails(self) -> None:
        raise UsersError("oh", "no")


def environments(
    mode: str, framework: str = "warp", env: type[CountingEnv] = CountingEnv, failing_rows: Any = ()
) -> Any:
    def build(num_envs: int, first_env: int) -> list[CountingEnv]:
        rows = range(first_env, first_env + num_envs)
        return [(env if row in failing_rows else CountingEnv)(row) for row in rows]

    if mode.startswith("shared"):
        return wrap_env(build(NUM_ENVS, 0), framework=framework)
    return EnvFactory(build, num_envs=NUM_ENVS)


REMOTE_MODES = ["sharded", "shared", "sharded by ray", "shared by ray"]
"""Arrangement, and the transport if it is not a connection."""


PAIRS = [*product(["local"], FRAMEWORKS), *in_turn(REMOTE_MODES)]


@pytest.fixture
def mode(request):
    if request.param != "local":
        request.getfixturevalue("ray_cluster")
    return request.param


def trainer_of(mode: str, env: Any, agents: Any, framework: str = "warp", **options: Any) -> Any:
    return step_trainer(framework)(
        env=env,
        agents=agents,
        scopes=SCOPES,
        cfg={**CFG, "timesteps": 10},
        orchestrator="local" if mode == "local" else ray_orchestrator(mode, **options),
    )


def ray_orchestrator(mode: str, **options: Any) -> RayOrchestrator:
    return RayOrchestrator(num_cpus=0.5, transport="ray" if mode.endswith("by ray") else "connection", **options)


def fail(trainer: Any) -> WorkerError:
    """Run until the failure at timestep 3, check that the trainer can only be closed afterwards, and close it."""
    trainer.train()
    trainer.train()
    with pytest.raises(WorkerError) as caught:
        trainer.train()
    with pytest.raises(LifecycleError, match="failed or was interrupted"):
        trainer.train()
    assert "(failed)" in str(trainer)
    trainer.close()
    trainer.close()
    return caught.value


@pytest.fixture(autouse=True)
def _no_actor_is_left():
    """Wait for killed actors to end."""
    yield
    still_alive(descendants("ray::WorkerActor"))
    assert descendants("ray::WorkerActor") == []


HERE = [("local", phase) for phase in ("pre-interaction", "act", "record", "post-interaction")]
REMOTE = [
    ("sharded", "post-interaction"),
    ("shared", "act"),
    ("shared", "record"),
    ("sharded by ray", "act"),
    ("shared by ray", "record"),
]
PLACES = [(*place, framework) for place, framework in (*product(HERE, FRAMEWORKS), *in_turn(REMOTE))]


@pytest.mark.parametrize(("mode", "phase", "framework"), PLACES, indirect=["mode"])
def test_agents_exception_names_its_place_in_all_failed_scopes(mode, phase, framework):
    agents = [lambda scope: FailingAgent(phase)] * 2
    error = fail(trainer_of(mode, environments(mode, framework), agents, framework))
    assert [(failure.scope, failure.rows) for failure in error.failures] == [(0, (0, 2)), (1, (2, 5))]
    for failure in error.failures:
        assert (failure.phase, failure.timestep) == (phase, 3)
        assert failure.kind == "tests.modes.test_failures.UsersError"
        assert failure.message == "oh no"
        assert "calls_the_function_that_fails" in failure.traceback
        assert "pid" in failure.node
        assert (str(os.getpid()) in failure.node) == (mode == "local")
    # told once, with the traceback first and the headline last
    text = "".join(traceback.format_exception(error)) if mode == "local" else str(error)
    assert text.count('raise UsersError("oh", "no")') == error.report.count('raise UsersError("oh", "no")') == 1
    headline = error.report.splitlines()[-1]
    assert headline.startswith(f"scope 0 (environments 0:2) and scope 1 (environments 2:5), phase {phase}, timestep 3,")
    assert headline.endswith("UsersError: oh no")
    assert str(error).endswith(headline)


@pytest.mark.parametrize(("mode", "framework"), PAIRS, indirect=["mode"])
def test_only_the_failed_scope_is_reported(mode, framework):
    agents = [NullAgent, lambda scope: FailingAgent("act")]
    error = fail(trainer_of(mode, environments(mode, framework), agents, framework))
    assert [failure.scope for failure in error.failures] == [1]


@pytest.mark.parametrize(("mode", "framework"), PAIRS, indirect=["mode"])
def test_environments_exception_names_its_place(mode, framework):
    env = environments(mode, framework, FailingEnv, failing_rows=[1, 4])
    error = fail(trainer_of(mode, env, [NullAgent] * 2, framework))
    # the first copy that fails in the process that steps it
    expected = [(0, (1, 2)), (1, (4, 5))] if mode.startswith("sharded") else [(0, (1, 2))]
    assert [(failure.scope, failure.rows) for failure in error.failures] == expected
    for failure in error.failures:
        assert (failure.phase, failure.timestep, failure.message) == ("step", 3, "oh no")
        assert "calls_the_function_that_fails" in failure.traceback


@pytest.mark.parametrize(("mode", "framework"), PAIRS, indirect=["mode"])
def test_exception_while_building_names_its_place_and_leaves_nothing(mode, framework):
    def broken(scope: Any) -> Any:
        raise UsersError("cannot", "build")

    closed: list[bool] = []
    env = plain = environments(mode, framework)
    if mode == "local":
        env = EnvFactory(lambda n, first: closing(plain.build(n, first), framework, closed), num_envs=NUM_ENVS)
    with pytest.raises(WorkerError, match=r"scope 0 .* and scope 1 .*, phase build, .*: cannot build"):
        trainer_of(mode, env, [broken, broken], framework)
    assert closed == ([True] if mode == "local" else [])


def closing(envs: Any, framework: str, closed: list[bool]) -> Any:
    env = wrap_env(envs, framework=framework)
    close = env.close

    def note_and_close() -> None:
        closed.append(True)
        close()

    env.close = note_and_close
    return env


def test_user_can_catch_the_original_exception_in_local_mode(framework):
    agents = [lambda scope: FailingAgent("act")] * 2
    with trainer_of("local", environments("local"), agents, framework) as trainer:
        trainer.train(timestep=1)
        with pytest.raises(WorkerError) as caught:
            trainer.train(timestep=3)
    assert isinstance(caught.value.__cause__, UsersError)


def test_agents_can_be_had_after_a_failure(framework):
    agents = [lambda scope: FailingAgent("act")] * 2
    with trainer_of("local", environments("local"), agents, framework) as trainer:
        with pytest.raises(WorkerError):
            trainer.train(timestep=3)
        assert len(trainer.agents) == 2


@pytest.mark.parametrize("mode", REMOTE_MODES)
def test_death_of_a_worker_names_its_place(ray_cluster, mode):
    agents = [NullAgent, lambda scope: DyingAgent(signal.SIGKILL)]
    error = fail(trainer_of(mode, environments(mode), agents, snapshot_every=0))
    (failure,) = error.failures
    assert (failure.scope, failure.rows, failure.timestep, failure.kind) == (1, (2, 5), 3, "WorkerDied")
    assert "pid" in failure.node


@only_long
@pytest.mark.parametrize("mode", REMOTE_MODES[::2])
def test_worker_that_is_stopped_again_and_again_is_given_up(ray_cluster, mode):
    agents = [NullAgent, lambda scope: DyingAgent(signal.SIGSTOP)]
    error = fail(trainer_of(mode, environments(mode), agents, hang_timeout=1))
    (failure,) = error.failures
    assert (failure.scope, failure.kind) == (1, "WorkerHung")
    assert "it has not answered a ping for" in failure.message


class SlowAgent(NullAgent):
    """Agent that does not return from timestep 3 before its process is ended."""

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        if timestep == 3:
            threading.Event().wait(60)
        return super().act(observations, states, timestep=timestep, timesteps=timesteps)


@pytest.mark.parametrize("mode", full_or_short(REMOTE_MODES[::2], REMOTE_MODES[:1]))
def test_worker_that_is_slow_is_told_from_a_dead_one(ray_cluster, mode):
    error = fail(trainer_of(mode, environments(mode), [NullAgent, SlowAgent], step_timeout=3))
    (failure,) = error.failures
    assert "it answers a ping and has been busy for" in failure.message


def test_interrupted_iteration_can_only_be_closed():
    class Interrupting(NullAgent):
        def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
            raise KeyboardInterrupt

    with trainer_of("local", environments("local"), [NullAgent, lambda scope: Interrupting()]) as trainer:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        with pytest.raises(LifecycleError, match="interrupted"):
            trainer.eval()
