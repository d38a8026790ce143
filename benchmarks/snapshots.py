"""Time and bytes of a snapshot and of a checkpoint: CartPole-v1 and HalfCheetah-v5, 64 copies, and a team.

    python benchmarks/snapshots.py [--repetitions N]

A snapshot is what `trainer.save` asks of the workers, encoded as bytes. A checkpoint is the whole call of
`trainer.save`, with the files forced to the disk; its time is also given in training steps of the same trainer. The
bound is beside it: as many bytes in as many plain files, forced to the disk in the same way. Then there is
`trainer.load`, in a trainer that has just been built.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NPROC", "1")

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from measuring import CFG, ratios
from report import describe_machine, spread, table, write_section

from trainer.torch import StepTrainer
from workers.agents.independent import IndependentAgents
from workers.agents.torch import PPO
from workers.envs import make_env
from workers.types import Scope

STEPS = 1_000  # before the snapshot, so that episodes are long
CASES = {"CartPole-v1": 64, "HalfCheetah-v5": 64, "mpe2.simple_spread_v3": 64}


def make_agent(env: Any, scope: Scope) -> Any:
    """Make our PPO, or a team of them."""
    if hasattr(env, "possible_agents"):
        names = ("possible_agents", "observation_spaces", "action_spaces")
        return IndependentAgents(PPO, **{name: getattr(env, name) for name in names}, num_envs=scope.num_envs)
    return PPO(observation_space=env.observation_space, action_space=env.action_space, num_envs=scope.num_envs)


def build(id: str, num_envs: int) -> StepTrainer:
    """Build a trainer with two simultaneous agents."""
    env = make_env(id, num_envs=num_envs, framework="torch")
    return StepTrainer(env=env, agents=[partial(make_agent, env)] * 2, cfg=CFG, seed=0)


def milliseconds(call: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def write_plainly(sizes: list[int], folder: Path) -> None:
    """Write files of these sizes and force them to the disk."""
    folder.mkdir()
    for index, size in enumerate(sizes):
        with open(folder / str(index), "wb") as file:
            file.write(bytes(size))
            file.flush()
            os.fsync(file.fileno())
    shutil.rmtree(folder)


def measure(id: str, num_envs: int, repetitions: int, folder: Path) -> list[str]:
    """Return the row of the table of one case."""
    trainer = build(id, num_envs)
    trainer.run(STEPS)
    path = folder / id
    trainer.save(path)
    times: dict[str, list[float]] = {name: [] for name in ("step", "snapshot", "save", "plain", "load")}
    for _ in range(repetitions):
        times["step"].append(milliseconds(partial(trainer.run, 32)) / 32)
        times["snapshot"].append(milliseconds(partial(trainer._session.snapshot, allow_pickle=False)))
        times["save"].append(milliseconds(partial(trainer.save, path)))
        sizes = [file.stat().st_size for file in path.rglob("*") if file.is_file()]
        times["plain"].append(milliseconds(partial(write_plainly, sizes, folder / "plain")))
        with build(id, num_envs) as other:
            times["load"].append(milliseconds(partial(other.load, path)))
    trainer.close()
    in_steps = ratios(times["save"], times["step"])
    cells = [spread(times[name], 1) for name in ("snapshot", "save", "plain", "load")]
    return [f"{id} x {num_envs}", f"{sum(sizes) / 1e3:,.0f}", *cells, spread(in_steps, 1)]


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=7)
    repetitions = parser.parse_args().repetitions
    with tempfile.TemporaryDirectory(dir=".") as folder:
        rows = [measure(id, number, repetitions, Path(folder)) for id, number in CASES.items()]
    header = ["case", "kB", "snapshot", "save", "plain files", "load", "save in steps"]
    text = f"{describe_machine()}; {repetitions} repetitions. Times in ms.\n\n{table(header, rows)}"
    print(text)
    write_section("snapshots", text)


if __name__ == "__main__":
    main()
