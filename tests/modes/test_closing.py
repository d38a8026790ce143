"""Environments whose ``close`` raises: everything else is closed, and the error names its place in every mode."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ray import RayOrchestrator
from tests.support.agents import NullAgent
from tests.support.envs import CountingEnv
from tests.support.multi_agent_envs import CountingTeamEnv
from tests.support.parity import CFG
from tests.support.processes import python
from tests.support.schedule import full_or_short, only_long
from trainer.torch import StepTrainer
from workers.envs import EnvFactory, wrap_env
from workers.errors import LifecycleError, WorkerError
from workers.node import node_name
from workers.types import Scope

ROWS, SCOPES = 4, [2, 2]
LAST = (1, 3)
"""The last rows of the scopes."""


class Closing:
    """Environment that leaves a file when it is closed, and then raises in some rows."""

    def __init__(self, folder: Path, broken: Sequence[int], row: int) -> None:
        super().__init__(row)  # type: ignore[call-arg]
        self.row, self.folder, self.broken = row, folder, broken

    def close(self) -> None:
        (self.folder / f"closed {self.row}").touch(exist_ok=False)
        if self.row in self.broken:
            raise RuntimeError(f"row {self.row} stays open")


class ClosingEnv(Closing, CountingEnv):
    pass


class ClosingTeam(Closing, CountingTeamEnv):
    pass


def build(kind: type[Closing], folder: Path, broken: Sequence[int], num_envs: int, first_env: int) -> list[Closing]:
    return [kind(folder, broken, first_env + i) for i in range(num_envs)]


def trainer_of(
    mode: str, folder: Path, kind: type[Closing], broken: Sequence[int] = LAST, agents: Any = (NullAgent, NullAgent)
) -> Any:
    make = partial(build, kind, folder, broken)
    shared = mode.startswith("shared")
    env = wrap_env(make(ROWS, 0), framework="torch") if shared else EnvFactory(make, num_envs=ROWS)
    transport: Any = "ray" if mode.endswith("by ray") else "connection"
    orchestrator: Any = "local" if mode == "local" else RayOrchestrator(num_cpus=0.5, transport=transport)
    return StepTrainer(env=env, agents=agents, scopes=SCOPES, cfg=CFG, orchestrator=orchestrator)


@pytest.fixture(params=full_or_short(["local", "sharded", "sharded by ray", "shared"], ["local"]))
def mode(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name != "local":
        request.getfixturevalue("ray_cluster")
    return name


def closed(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("closed ")) for path in folder.iterdir())


KINDS = list(product(["local", "sharded", "sharded by ray", "shared"], [ClosingTeam, ClosingEnv]))
SHORT = [("local", ClosingTeam), ("local", ClosingEnv), ("sharded", ClosingTeam), ("shared", ClosingTeam)]


@pytest.mark.parametrize(("mode", "kind"), full_or_short(KINDS, SHORT), indirect=["mode"])
def test_everything_is_closed_and_every_error_names_its_place(mode: str, kind: type[Closing], tmp_path: Path):
    trainer = trainer_of(mode, tmp_path, kind)
    with pytest.raises(WorkerError) as caught:
        trainer.close()
    assert closed(tmp_path) == [0, 1, 2, 3]
    failures = caught.value.failures
    assert {(failure.phase, failure.timestep) for failure in failures} == {("close", None)}
    places = [(failure.scope, failure.rows) for failure in failures]
    if mode.startswith("sharded"):
        assert places == [(0, (0, 2)), (1, (2, 4))]
        assert not {failure.node for failure in failures} & {node_name(), "an unknown node"}
    else:  # one process closes the environments of all scopes
        assert places == [(None, (0, 4))]
        assert failures[0].node == node_name()
    text = "".join(failure.traceback for failure in failures)
    for row in LAST:
        assert f"RuntimeError: row {row} stays open" in text
    assert f"while closing copy {1 if mode.startswith('sharded') else 3} of " in text
    trainer.close()
    assert closed(tmp_path) == [0, 1, 2, 3]
    with pytest.raises(LifecycleError, match=r"after close\(\)"):
        trainer.train()


@only_long
@pytest.mark.parametrize("closes", [True, False])
def test_the_driver_s_copy_of_an_environment_counts_too(closes: bool, ray_cluster: None, tmp_path: Path):
    """In sharded mode, a wrapped environment is rebuilt in the workers, and closed here as well."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    env = wrap_env(build(ClosingTeam, here, LAST, ROWS, 0), framework="torch")
    env.recipe = EnvFactory(partial(build, ClosingTeam, there, LAST[:1]), num_envs=ROWS)
    cfg: Any = {**CFG, "close_environment_at_exit": closes}
    trainer = StepTrainer(env=env, agents=[NullAgent] * 2, scopes=SCOPES, cfg=cfg, orchestrator="ray")
    with pytest.raises(WorkerError) as caught:
        trainer.close()
    places = [(failure.scope, failure.rows) for failure in caught.value.failures]
    assert places == [(0, (0, 2)), *[(None, (0, 4))] * closes]
    assert (closed(here), closed(there)) == ([0, 1, 2, 3] * closes, [0, 1, 2, 3])


class RefusedAgent(NullAgent):
    def __init__(self, scope: Scope) -> None:
        if scope.index == 1:
            raise ValueError("an earlier error")


def test_an_earlier_error_is_not_hidden(mode: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with pytest.raises(ValueError, match="of the loop"), trainer_of(mode, tmp_path, ClosingTeam):
        raise ValueError("of the loop")
    assert closed(tmp_path) == [0, 1, 2, 3]
    assert "the trainer could not be closed: " in caplog.text
    assert "RuntimeError: row 3 stays open" in caplog.text


def test_a_failed_build_closes_what_was_built(mode: str, tmp_path: Path):
    with pytest.raises(WorkerError, match="ValueError: an earlier error") as caught:
        trainer_of(mode, tmp_path, ClosingTeam, agents=[RefusedAgent] * 2)
    assert [failure.phase for failure in caught.value.failures] == ["build"]
    # an environment that was handed over stays open; other workers are ended without a request
    assert closed(tmp_path)[-2:] == ([] if mode == "shared" else [2, 3])


def test_an_agent_that_cannot_be_given_back_does_not_keep_the_environments_open(tmp_path: Path):
    class Locked(NullAgent):
        write_interval = 10
        checkpoint_interval = 10
        locked = False

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "write_interval" and self.locked:
                raise AttributeError("locked")
            super().__setattr__(name, value)

    trainer = trainer_of("local", tmp_path, ClosingTeam, (), agents=[Locked, NullAgent])
    trainer.agents[0].locked = True
    with pytest.raises(WorkerError) as caught:
        trainer.close()
    (failure,) = caught.value.failures
    assert (failure.scope, failure.rows, failure.phase, failure.message) == (0, (0, 2), "close", "locked")
    assert closed(tmp_path) == [0, 1, 2, 3]


def test_the_end_of_the_program_tells_the_error_once(tmp_path: Path):
    program = f"""
from pathlib import Path
from tests.modes.test_closing import ClosingTeam, trainer_of
trainer = trainer_of("local", Path({str(tmp_path)!r}), ClosingTeam)
"""
    done = python("-c", program)
    assert done.returncode == 0
    assert done.stderr.count("the trainer could not be closed: ") == 1
    assert done.stderr.count('raise RuntimeError(f"row {self.row} stays open")') == len(LAST)
    assert "atexit" not in done.stderr
    assert closed(tmp_path) == [0, 1, 2, 3]
