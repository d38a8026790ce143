"""What it costs to be recoverable, and how long a recovery takes.

    python benchmarks/recovery.py [--repetitions N] [--seconds S] [--faults N]

The cost: one trainer with two workers trains all the time; in windows that take turns, snapshots are taken as by
default, or not at all. The share is the time that the driver waits for snapshots. The bar is a loss of 2 %.

The time: a worker is killed (SIGKILL) while it trains. From then until the iteration is completed, against the start of
a bare Ray actor that imports the framework, which takes turns with it: at most 1.3 times that; with a spare process,
under 2 s. Snapshots are frequent, so that little is played back; its time is within the figure.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NPROC", "1")

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import ray
from measuring import CFG, ratios
from report import describe_machine, spread, table, write_section

from orchestrator.ray import RayOrchestrator
from trainer.torch import StepTrainer
from workers.agents.torch import PPO
from workers.envs import make_env

ROWS = 64
CASES = ("CartPole-v1", "HalfCheetah-v5")
FAR = 10**9


@contextmanager
def opened(id: str, **options: Any) -> Iterator[Any]:
    """Build a trainer of two PPO agents."""
    env = make_env(id, num_envs=ROWS, framework="torch")
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    with StepTrainer(
        env=env,
        agents=[lambda scope: PPO(**spaces, num_envs=scope.num_envs)] * 2,
        cfg={**CFG, "timesteps": FAR},
        orchestrator=RayOrchestrator(num_cpus=0.5, **options),
        seed=1,
    ) as trainer:
        trainer.run(200)
        yield trainer


def cost(id: str, repetitions: int, seconds: float) -> list[str]:
    """Return a row of the table of costs."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    shares, counts, size = [], [], 0
    with opened(id) as trainer:
        recovery = trainer._session._recovery
        schedule, spent = recovery._schedule, [0.0, 0.0]
        is_due, keep = schedule.is_due, recovery.keep

        def timed(seq: int) -> None:
            start = time.perf_counter()
            keep(seq)
            spent[0] += time.perf_counter() - start
            spent[1] += 1

        recovery.keep = timed
        for repetition in range(-1, repetitions):
            for is_on in (False, True):
                schedule.is_due = is_due if is_on else lambda count: False
                spent[:] = 0.0, 0.0
                done, start = 0, time.perf_counter()
                while time.perf_counter() - start < seconds:
                    trainer.train()
                    done += 1
                taken = time.perf_counter() - start
                if repetition >= 0:
                    rates[is_on].append(done / taken)
                    if is_on:
                        shares.append(100 * spent[0] / taken)
                        counts.append(int(spent[1]))
        size = sum(kept.size for kept in recovery._team.snapshots._kept.values())
    losses = [100 * (1 - ratio) for ratio in ratios(rates[True], rates[False])]
    cells = [spread(shares, 2), *(spread(rates[is_on], 0) for is_on in (False, True)), spread(losses, 2)]
    return [f"{id} x {ROWS}", f"{size / 1e6:,.1f}", f"{min(counts)} to {max(counts)}", *cells]


@ray.remote
class Bare:
    """An actor that imports the framework and nothing else."""

    def __init__(self) -> None:
        import torch

        torch.zeros(1)

    def here(self) -> bool:
        """Return when it is there."""
        return True


def start_of_a_bare_actor() -> float:
    """Return the seconds that it takes."""
    start = time.perf_counter()
    actor = Bare.options(num_cpus=0.5).remote()  # type: ignore[attr-defined]
    ray.get(actor.here.remote(), timeout=60)
    taken = time.perf_counter() - start
    ray.kill(actor)
    return taken


def times(id: str, faults: int, spares: int) -> list[str]:
    """Return a row of the table of times."""
    bare, ours, replayed = [], [], []
    with opened(id, spares=spares, snapshot_every=20) as trainer:
        crew = trainer._session._recovery._team.crew
        for number in range(-1, faults):
            bare_time = start_of_a_bare_actor()
            for spare in crew._spares:
                ray.wait([spare.ready], timeout=60)
            trainer.run(25)
            pid = int(trainer._session.workers[1].node.rpartition("pid ")[2].rstrip(")"))
            start = time.perf_counter()
            os.kill(pid, signal.SIGKILL)
            trainer.train()
            if number >= 0:
                bare.append(bare_time)
                ours.append(time.perf_counter() - start)
                replayed.append(trainer.recoveries[-1].replayed)
    over = ratios(ours, bare)
    name = f"{id} x {ROWS}" + (", one spare" if spares else "")
    return [name, str(faults), spread(bare, 2), spread(ours, 2), spread(over, 2), f"{max(replayed)}"]


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--faults", type=int, default=15)
    options = parser.parse_args()
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="warning")
    try:
        costs = [cost(id, options.repetitions, options.seconds) for id in CASES]
        taken = [times(id, options.faults, spares) for id in CASES for spares in (0, 1)]
    finally:
        ray.shutdown()
    told = f"{options.repetitions} repetitions of windows of {options.seconds:g} s"
    header = ["case", "MB", "snapshots", "share in %", "steps/s without", "steps/s with", "loss in %"]
    second = ["case", "faults", "bare actor in s", "recovery in s", "ratio", "most played back"]
    text = f"{describe_machine('torch', 'ray')}; {told}.\n\n{table(header, costs)}\n\n{table(second, taken)}"
    print(text)
    write_section("recovery", text)


if __name__ == "__main__":
    main()
