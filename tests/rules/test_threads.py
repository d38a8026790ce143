"""Compute threads: fixed during every call of the trainer, and restored afterwards."""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

import pytest
import torch
from threadpoolctl import ThreadpoolController

from orchestrator import LocalOrchestrator
from orchestrator.ray import RayOrchestrator
from tests.support.agents import NullAgent
from tests.support.envs import CountingEnv, counting_factory
from tests.support.parity import CFG, step_trainer
from tests.support.processes import PATIENCE, python
from trainer.torch import StepTrainer
from workers.envs import EnvFactory
from workers.errors import ConfigError, WorkerError
from workers.frameworks import load_framework
from workers.threads import THREAD_VARIABLES, HeldThreads

NOTED: list[tuple[str, set[int]]] = []


def counts() -> set[int]:
    """Return the numbers of threads of torch and of every BLAS and OpenMP library."""
    libraries = ThreadpoolController().lib_controllers
    assert {"openblas", "openmp"} <= {library.internal_api for library in libraries}
    return {torch.get_num_threads(), *(library.get_num_threads() for library in libraries)}


@pytest.fixture(autouse=True)
def _three_threads() -> Any:
    """Set the user's number, which is neither the trainer's nor that of the CPUs."""
    before = HeldThreads(load_framework("torch"), 3)
    with before:
        NOTED.clear()
        yield
        assert counts() == {3}


class NotingAgent(NullAgent):
    """Records the numbers of threads in each of its calls."""

    def __init__(self, scope: Any = None) -> None:
        super().__init__()
        self.note("factory")

    def note(self, name: str) -> None:
        NOTED.append((name, counts()))

    def init(self, *, trainer_cfg: Any = None) -> None:
        self.note("init")

    def enable_training_mode(self, enabled: bool = True) -> None:
        self.note("enable_training_mode")

    def pre_interaction(self, *, timestep: int, timesteps: int) -> None:
        self.note("pre_interaction")

    def act(self, *args: Any, **kwargs: Any) -> Any:
        self.note("act")
        return super().act(*args, **kwargs)

    def record_transition(self, **arguments: Any) -> None:
        self.note("record_transition")

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        self.note("post_interaction")

    def state_dict(self) -> dict[str, Any]:
        self.note("state_dict")
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def write_tracking_data(self, *, timestep: int, timesteps: int) -> None:
        self.note("write_tracking_data")


class NotingEnv(CountingEnv):
    def step(self, action: Any) -> Any:
        NOTED.append(("env.step", counts()))
        return super().step(action)

    def close(self) -> None:
        NOTED.append(("env.close", counts()))


def build_noting(num_envs: int, first_env: int) -> list[CountingEnv]:
    NOTED.append(("build", counts()))
    return [NotingEnv(first_env + i) for i in range(num_envs)]


@pytest.mark.parametrize("num_threads", [1, 2])
def test_held_in_every_call_and_given_back_after_it(num_threads: int):
    environment = dict(os.environ)
    trainer = StepTrainer(
        env=EnvFactory(build_noting, num_envs=2),
        agents=[NotingAgent, NotingAgent],
        cfg={"timesteps": 10, "headless": True, "disable_progressbar": True},
        orchestrator=LocalOrchestrator(num_threads=num_threads),
    )
    assert f", {num_threads} compute thread" in str(trainer)

    def steps() -> None:
        for _ in trainer.iterate(2):
            assert counts() == {3}

    calls = (
        trainer.train,
        trainer.eval,
        lambda: trainer.run(2),
        steps,
        trainer.collect_metrics,
        trainer.agent_files,
        trainer.reset,
        lambda: trainer.agents,
        trainer.close,
    )
    for call in calls:
        assert counts() == {3}
        call()
    assert {name for name, _ in NOTED} == {
        "build",
        "factory",
        "init",
        "enable_training_mode",
        "pre_interaction",
        "act",
        "env.step",
        "record_transition",
        "post_interaction",
        "write_tracking_data",
        "state_dict",
        "env.close",
    }
    assert [name for name, found in NOTED if found != {num_threads}] == []
    assert dict(os.environ) == environment


def test_given_back_after_errors():
    class Failing(NullAgent):
        def post_interaction(self, *, timestep: int, timesteps: int) -> None:
            raise RuntimeError("fails")

    def fails(scope: Any) -> Any:
        raise RuntimeError("fails")

    with pytest.raises(WorkerError):
        step_trainer("torch")(env=counting_factory(2), agents=fails, cfg=CFG)
    assert counts() == {3}
    with step_trainer("torch")(env=counting_factory(2), agents=Failing, cfg=CFG) as trainer:
        with pytest.raises(WorkerError):
            trainer.train()
        assert counts() == {3}


def test_the_user_may_change_them_between_calls():
    with step_trainer("torch")(env=counting_factory(2), agents=NotingAgent, cfg=CFG) as trainer:
        torch.set_num_threads(2)
        trainer.train()
        assert torch.get_num_threads() == 2
        torch.set_num_threads(3)
    assert {count for name, found in NOTED for count in found} == {1}


@pytest.mark.parametrize("kind", [LocalOrchestrator, RayOrchestrator])
@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "2", None])
def test_numbers_that_are_refused(kind: Any, wrong: Any):
    with pytest.raises(ConfigError, match=r"num_threads is .*; expected an integer of at least 1"):
        kind(num_threads=wrong)


def fresh(program: str, *args: str, **variables: str) -> Any:
    """Run a program in a process that sets no number of threads; return its last output as JSON, and stderr."""
    done = python("-c", program, *args, env=dict.fromkeys(THREAD_VARIABLES) | variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


XLA = """
import json, os, sys
from pathlib import Path
import jax  # sets its own variables, and does not start XLA
from orchestrator import LocalOrchestrator
from tests.support.agents import NullAgent
from tests.support.envs import counting_factory
from tests.support.parity import CFG
from trainer.jax import StepTrainer

def threads():
    return sum("XLAEigen" in task.joinpath("comm").read_text() for task in Path("/proc/self/task").iterdir())

first, asked, number = sys.argv[1:]
if first == "first":
    jax.numpy.zeros(3) + 1
before = dict(os.environ)
for _ in range(2):
    orchestrator = LocalOrchestrator(num_threads=int(asked))
    with StepTrainer(env=counting_factory(2), agents=NullAgent, cfg=CFG, orchestrator=orchestrator) as trainer:
        trainer.train()
        text = str(trainer)
print(json.dumps([threads(), f", {number} compute thread" in text, os.environ == before]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the threads from /proc")
@pytest.mark.parametrize(
    ("first", "asked", "variable", "expected"),
    [
        ("trainer", "1", None, 1),
        ("trainer", "3", "2", 3),  # the trainer's number overrides the environment
        ("first", "1", "1", 1),
        ("first", "1", "2", 2),
    ],
)
def test_xla_is_started_with_them_unless_it_has_been(first: str, asked: str, variable: str | None, expected: int):
    variables = {} if variable is None else {"NPROC": variable}
    found, errors = fresh(XLA, first, asked, str(expected), **variables)
    assert found == [expected, True, True]
    said = f"XLA's number of threads in this process is {expected} because JAX was used before the trainer was built"
    assert errors.count(said) == (expected != int(asked))


TWO_NUMBERS = """
from orchestrator import LocalOrchestrator
from tests.support.agents import NullAgent
from tests.support.envs import counting_factory
from tests.support.parity import CFG
from trainer.jax import StepTrainer
for num_threads in (1, 2, 2):
    orchestrator = LocalOrchestrator(num_threads=num_threads)
    StepTrainer(env=counting_factory(2), agents=NullAgent, cfg=CFG, orchestrator=orchestrator).close()
print("null")
"""


def test_a_second_number_for_xla_is_told_once():
    _, errors = fresh(TWO_NUMBERS)
    assert errors.count("is 1 because an earlier trainer had num_threads=1; expected 2") == 1


LOADED_LATER = """
import json, sys
from threadpoolctl import ThreadpoolController
from tests.support.agents import NullAgent
from tests.support.envs import counting_factory
from tests.support.parity import CFG
from trainer.torch import StepTrainer

def libraries():
    return {library.filepath: library.get_num_threads() for library in ThreadpoolController().lib_controllers}

found = []

class Agent(NullAgent):
    def __init__(self, scope):
        super().__init__()
        if sys.argv[1] == "factory":
            import scipy.linalg
        found.append(libraries())
    def post_interaction(self, *, timestep, timesteps):
        if timestep == 1:
            import scipy.linalg
        else:
            found.append(libraries())

with StepTrainer(env=counting_factory(2), agents=Agent, cfg=CFG) as trainer:
    before = libraries()
    trainer.run(1)
    trainer.run(1)
assert len(found[-1]) == 3
print(json.dumps([sorted({n for one in found for n in one.values()}), set(before.items()) <= set(libraries().items())]))
"""


@pytest.mark.parametrize("where", ["factory", "iteration"])
def test_libraries_that_are_loaded_later(where: str):
    found, _ = fresh(LOADED_LATER, where)
    assert found == [[1], True]


def test_held_in_any_python_thread():
    """OpenBLAS can be set by one Python thread at a time; `HeldThreads` leaves it to the next one."""
    with step_trainer("torch")(env=counting_factory(2), agents=NotingAgent, cfg=CFG) as trainer:
        trainer.train()
        NOTED.clear()
        for _ in range(2):
            thread = threading.Thread(target=trainer.train)
            thread.start()
            thread.join(PATIENCE)
    assert {name for name, _ in NOTED} >= {"act", "post_interaction"}
    assert [name for name, found in NOTED if found != {1}] == []


def test_held_until_the_outermost_call_ends():
    class Asking(NotingAgent):
        def pre_interaction(self, *, timestep: int, timesteps: int) -> None:
            trainer.collect_metrics()
            super().pre_interaction(timestep=timestep, timesteps=timesteps)

    with step_trainer("torch")(env=counting_factory(2), agents=Asking, cfg=CFG) as trainer:
        trainer.train()
        assert counts() == {3}
    assert [name for name, found in NOTED if found != {1}] == []


class Interrupted:
    """A library whose number of threads is interrupted when it is set for the n-th time."""

    def __init__(self, at: int) -> None:
        self.number, self.at = 3, at

    def set(self, number: int) -> None:
        self.at -= 1
        if self.at == 0:
            raise KeyboardInterrupt
        self.number = number


@pytest.mark.parametrize("at", [1, 2])
def test_given_back_after_an_interrupt(at: int):
    library = Interrupted(at)
    held = HeldThreads(load_framework("torch"), 1)
    with held:
        pass
    held._controls.append((lambda: library.number, library.set))
    with pytest.raises(KeyboardInterrupt), held:
        assert (at, library.number) == (2, 1)
    assert library.number == 3
    assert counts() == {3}


def test_a_number_that_another_python_thread_limits_is_told_once(caplog: pytest.LogCaptureFixture):
    held = HeldThreads(load_framework("torch"), 1)
    with held:
        pass
    held._controls.append((lambda: 2, lambda number: None))
    for _ in range(2):
        with held:
            pass
    (record,) = caplog.records
    assert "computes with 2 threads instead of 1" in record.getMessage()
