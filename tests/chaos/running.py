"""Runs with the faults of a schedule, compared with runs in local mode that meet none."""

from __future__ import annotations

import gc
import os
import random
import tempfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import psutil
import ray
from ray.util import placement_group_table

from orchestrator.ray import RayOrchestrator
from tests.chaos.faults import Faults
from tests.chaos.schedules import STEPS, Schedule
from tests.support.parity import CFG, assert_same, copied_outputs, step_trainer
from tests.support.processes import descendants
from tests.support.resumed import CASES, SCOPES, make_agent, spaces_of
from workers.envs import EnvFactory
from workers.envs.making import build_rows
from workers.types import Scope

__all__ = ["Result", "run"]

_ENDING = 60.0
"""Seconds within which everything of a closed trainer is gone."""

_HANG_TIMEOUT = 3.0
"""Seconds for which a worker that is stopped is waited for."""

_OWN_FILES = 24
"""Files and sockets that Ray and other libraries may open for themselves, however many schedules there are."""


class Result(NamedTuple):
    """What a schedule did.

    Attributes:
        faults: Number of faults that happened.
        recoveries: Number of recoveries.
        causes: Their causes.
        seconds: How long each took.
        replayed: Number of iterations that were played back.
        files: Number of open files and sockets of this process afterwards.
        memory: Its resident memory afterwards, in MB.
    """

    faults: int
    recoveries: int
    causes: list[str]
    seconds: list[float]
    replayed: int
    files: int
    memory: int


class Troubled:
    """Factory of an agent that raises an exception when a file with the number of its scope appears."""

    def __init__(self, make: Any, folder: Path) -> None:
        self._make, self._folder = make, folder

    def __call__(self, scope: Scope) -> Any:
        agent = self._make(scope)
        record, sign = agent.record_transition, self._folder / str(scope.index)

        def record_transition(**transition: Any) -> None:
            if sign.exists():
                sign.unlink(missing_ok=True)
                raise OSError("a device of the user's failed for a moment")
            record(**transition)

        agent.record_transition = record_transition
        return agent


def _trainer(case: str, framework: str, mode: str, orchestrator: Any, folder: Path) -> Any:
    num_envs = sum(SCOPES)
    env = EnvFactory(partial(CASES[case].build, framework), num_envs=num_envs)
    spaces = spaces_of(build_rows(env, 1, 0, framework=framework, seed=None))
    return step_trainer(framework)(
        env=build_rows(env, num_envs, 0, framework=framework, seed=None) if mode == "shared" else env,
        agents=[Troubled(partial(make_agent, framework, spaces), folder)] * len(SCOPES),
        scopes=list(SCOPES),
        cfg={**CFG, "timesteps": STEPS},
        orchestrator=orchestrator,
        seed=3,
    )


@cache
def _undisturbed(case: str, framework: str) -> tuple[list[Any], list[tuple[str, bytes]], list[dict[str, float]]]:
    """Return outputs of all iterations, the agents' files and the metrics of a run in local mode."""
    with _trainer(case, framework, "local", "local", Path(os.devnull)) as trainer:
        trainer.collect_metrics()
        outputs = [copied_outputs(trainer.train(timestep=timestep)) for timestep in range(STEPS)]
        return outputs, trainer.agent_files(), _metrics(trainer)


def _metrics(trainer: Any) -> list[dict[str, float]]:
    """Return the metrics without times."""
    return [
        {tag: value for tag, value in each.items() if "time" not in tag and "Recovery" not in tag}
        for each in trainer.collect_metrics()
    ]


def _outputs(trainer: Any, schedule: Schedule, faults: Faults) -> Iterator[Any]:
    """Yield the outputs of every iteration, None for those that `run` does not return."""
    chance, coming, done = random.Random(schedule.seed), list(schedule.faults), 0
    while done < STEPS:
        way = chance.choice(["train", "run", "iterate"]) if schedule.way == "in turn" else schedule.way
        count = 1 if way == "train" else min(chance.randrange(1, 40), STEPS - done)
        while coming and coming[0].timestep < done + count:
            faults.arm(coming.pop(0))
        if way == "iterate":
            yield from map(copied_outputs, trainer.iterate(count, done, prefetch=chance.randrange(4)))
        else:
            yield from [None] * (count - 1)
            yield copied_outputs(trainer.run(count, done) if way == "run" else trainer.train(done))
        done += count


def run(schedule: Schedule, *, cluster: Any = None) -> Result:
    """Run a schedule.

    Args:
        schedule: The schedule.
        cluster: Ray's test cluster of several nodes; None if there is only one.

    Raises:
        AssertionError: Its numbers are not those of the run that met no faults, or something is left behind.
    """
    outputs, files, metrics = _undisturbed(schedule.case, schedule.framework)
    before = _files_at_first()
    with tempfile.TemporaryDirectory(prefix="lockstep-chaos-") as name:
        folder = Path(name)
        has_full_disk = any(fault.kind == "full disk" for fault in schedule.faults)
        orchestrator = RayOrchestrator(
            num_cpus=0.5,
            strategy="SPREAD",
            transport=schedule.transport,  # type: ignore[arg-type]
            spares=schedule.spares,
            hang_timeout=_HANG_TIMEOUT,
            retry_user_errors=any(fault.kind == "exception" for fault in schedule.faults),
            snapshot_url=str(folder / "snapshots") if has_full_disk else None,
        )
        trainer = _trainer(schedule.case, schedule.framework, schedule.mode, orchestrator, folder)
        faults = Faults(trainer, folder, cluster)
        with trainer:
            try:
                trainer.collect_metrics()
                given = list(_outputs(trainer, schedule, faults))
            finally:
                faults.end()
            assert trainer.agent_files() == files
            assert_same(_metrics(trainer), metrics)
            events = list(trainer.recoveries)
    shown = [output if other is not None else None for output, other in zip(outputs, given, strict=True)]
    assert_same(given, shown)
    _check_nothing_left(before)
    return Result(
        faults=len(faults.happened),
        recoveries=len(events),
        causes=[event.cause for event in events],
        seconds=[event.seconds for event in events],
        replayed=sum(event.replayed for event in events),
        files=_open_files(),
        memory=psutil.Process().memory_info().rss >> 20,
    )


@cache
def _files_at_first() -> int:
    return _open_files()


def _open_files() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def _check_nothing_left(before: int) -> None:
    """Check that no process, placement group, socket or shared memory of a closed trainer is left."""
    deadline = monotonic() + _ENDING
    _, alive = psutil.wait_procs(descendants("WorkerActor"), timeout=_ENDING)
    assert not alive, f"processes left behind: {alive}"
    states = [group["state"] for group in placement_group_table().values()]
    assert set(states) <= {"REMOVED"}, f"placement groups left behind: {states}"
    assert "memfd:lockstep" not in Path("/proc/self/maps").read_text()
    while (now := _open_files()) > before + _OWN_FILES:
        assert monotonic() < deadline, f"{now - before} files or sockets left behind since the first schedule"
    assert ray.is_initialized()
