"""Benchmark of what one `train()` costs the driver, by number of workers and by bytes of each worker's outcome.

    python benchmarks/driver_cost.py TCP      # as between machines
    python benchmarks/driver_cost.py Unix     # as on one: Unix sockets and shared memory
    python benchmarks/driver_cost.py actors   # the same code with Ray's actors, to check the others
    python benchmarks/driver_cost.py profile  # the functions that take the time, with 64 workers

The cost is the CPU time of the driver's thread, not the time of a step: the workers do nothing, many of them share a
process (see `hosted.py`), and all of them share few cores. Each part writes its section of RESULTS.md. The constants
that it prints are those of `cost_model.py`.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("NPROC", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import argparse
import cProfile
import logging
import pstats
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch

sys.path.insert(0, str(Path(__file__).parent))

from cost_model import PARTS, Cost, fitted
from hosted import DEADLINE, HEAD, ROWS, Bare, Clock, Clocked, HostedOrchestrator, Hosts, build_wide, outcome_bytes
from measuring import actors, trainer
from no_op import no_op_agent
from report import describe_machine, spread, table, write_section

from orchestrator.ray import cluster, connection, shm, starting
from trainer.torch import StepTrainer
from workers.envs import EnvFactory

COUNTS = (1, 2, 4, 8, 16, 32, 64)
COLUMNS = (4, 16, 256, 4096)  # of 16 observations: 256 bytes, 1, 16 and 256 KB a worker
PAUSE = 0.01  # seconds of the workers' work in a step
STEPS = 15

Values = dict[str, list[float]]


def microseconds(clock: Clock, run: Callable[[], Any], steps: int) -> dict[str, float]:
    """CPU time per step of this thread, by part. The rest is the trainer's, around the parts."""
    clock.spent.clear()
    start = time.thread_time()
    for _ in range(steps):
        run()
    whole = (time.thread_time() - start) / steps * 1e6
    spent = {name: seconds / steps * 1e6 for name, seconds in clock.spent.items()}
    spent["receive"] -= spent["merge"]
    return {**spent, "rest": whole - sum(spent.values()), "train()": whole}


def bare_microseconds(clock: Clock, bare: Bare) -> dict[str, float]:
    """CPU time per step of the bounds, with the same pauses."""
    clock.spent.clear()
    send, receive, join = clock.of("send", bare.send), clock.of("receive", bare.receive), clock.of("join", bare.join)
    for _ in range(STEPS):
        send()
        time.sleep(clock.pause)
        receive()
        join()
    spent = {name: seconds / STEPS * 1e6 for name, seconds in clock.spent.items()}
    return {"bare sockets": spent["send"] + spent["receive"], "bare concatenate": spent["join"]}


def settled(ours: StepTrainer, clock: Clock) -> tuple[float, int]:
    """Return a pause in which all workers reply, and a number of steps that take some 0.1 s without it."""
    clock.pause = 0.0
    ours.train()
    start = time.perf_counter()
    for _ in range(3):
        ours.train()
    step = (time.perf_counter() - start) / 3
    return max(PAUSE, 2 * step), max(4, min(200, int(0.1 / step)))


def in_both_ways(ours: StepTrainer, clock: Clock, pause: float, steps: int) -> dict[str, float]:
    """CPU time per step, by part, with the pause; and of the whole step without one."""
    clock.pause = 0.0
    hot = microseconds(clock, ours.train, steps)["train()"]
    clock.pause = pause
    return {"back to back": hot, **microseconds(clock, ours.train, STEPS)}


def repeated(measure: Callable[[], dict[str, float]], repetitions: int) -> Values:
    """Return the values of all repetitions but the first, which is not counted."""
    rows = [measure() for _ in range(repetitions + 1)][1:]
    return {name: [row[name] for row in rows] for name in rows[0]}


def environments(count: int, columns: int) -> EnvFactory:
    return EnvFactory(partial(build_wide, columns), num_envs=ROWS * count)


def hosted(hosts: Hosts, ray_here: Any, count: int, columns: int, repetitions: int) -> Values:
    """Measure hosted workers and the bounds, in turns."""
    size = outcome_bytes(columns)
    reply = HEAD if hosts.kind == "Unix" and size >= shm.THRESHOLD else HEAD + size
    clock, places = Clock(), hosts.open(count, reply)
    with ExitStack() as cleanup:
        orchestrator = Clocked(HostedOrchestrator(places, ray_here), clock)
        ours = cleanup.enter_context(
            trainer(environments(count, columns), [no_op_agent] * count, orchestrator=orchestrator)
        )
        bare = Bare(places, columns, reply)
        cleanup.callback(bare.close)
        pause, steps = settled(ours, clock)
        return repeated(
            lambda: {**in_both_ways(ours, clock, pause, steps), **bare_microseconds(clock, bare)}, repetitions
        )


def by_workers_and_bytes(kind: str, ray_here: Any, repetitions: int) -> str:
    """Measure all numbers of workers and bytes over one kind of connection, and fit the costs."""
    shown = ("back to back", "train()", "send", "receive", "merge", "bare sockets", "bare concatenate")
    found: dict[tuple[int, int], Values] = {}
    hosts = Hosts(kind)
    try:
        for columns in COLUMNS:
            for count in COUNTS:
                values = found[count, outcome_bytes(columns)] = hosted(hosts, ray_here, count, columns, repetitions)
                print(count, columns, *(f"{name} {spread(values[name], 0)}" for name in shown), flush=True)
    finally:
        hosts.close()
    medians = {
        name: {case: statistics.median(values[name]) for case, values in found.items()}
        for name in (*PARTS, "train()", "back to back")
    }
    cost = Cost(**{part: fitted(medians[part]) for part in PARTS})
    hot = fitted(medians["back to back"])
    lines = []
    for (count, size), values in found.items():
        model = cost.cpu(count, size)
        cells = [spread(values[name], 0) for name in shown]
        lines.append([f"{size:,}", count, *cells, f"{model / medians['train()'][count, size] - 1:+.0%}"])
    columns = ["bytes a worker", "workers", "back to back", "`train()`", *shown[2:], "formula"]
    where = "as between machines" if kind == "TCP" else f"and shared memory from {shm.THRESHOLD:,} bytes"
    return f"""### {kind} sockets, {where}

{table(columns, lines)}

With K workers and B bytes a worker, in µs: {cost}. Back to back: {hot}."""


def real(ray_here: Any, repetitions: int) -> str:
    """Compare Ray's actors with hosted workers."""
    lines = []
    dial = connection.dial
    for kind in ("Unix", "TCP"):
        if kind == "TCP":
            starting.socket_domain = lambda: "another machine"
            connection.dial = lambda address, *args, **more: dial(address._replace(name=b""), *args, **more)
        hosts = Hosts(kind)
        for count in (1, 2, 4, 8):
            places = hosts.open(count, HEAD)
            clock = Clock()
            with (
                trainer(
                    environments(count, 4), [no_op_agent] * count, orchestrator=Clocked(actors(), clock)
                ) as in_actors,
                trainer(
                    environments(count, 4),
                    [no_op_agent] * count,
                    orchestrator=Clocked(HostedOrchestrator(places, ray_here), clock),
                ) as in_hosts,
            ):
                pairs = [(ours, *settled(ours, clock)) for ours in (in_actors, in_hosts)]
                turns = [
                    [in_both_ways(ours, clock, pause, steps) for ours, pause, steps in pairs]
                    for _ in range(repetitions + 1)
                ][1:]
            cells = [
                spread([turn[which][name] for turn in turns], 0)
                for name in ("back to back", "train()")
                for which in (0, 1)
            ]
            lines.append([kind, count, *cells])
            print(*lines[-1], flush=True)
        hosts.close()
    ways = [f"{how}, {who}" for how in ("back to back", "with a pause") for who in ("Ray", "hosted")]
    return f"""### Ray's actors and hosted workers

The driver's CPU time of `train()` in µs, with {outcome_bytes(4)} bytes a worker.

{table(["sockets", "workers", *ways], lines)}"""


def profile(ray_here: Any, _repetitions: int) -> str:
    """Profile 64 workers over TCP. Profiling makes calls of Python cost more than they do."""
    texts = []
    hosts = Hosts("TCP")
    for columns in (4, 4096):
        clock, places = Clock(), hosts.open(64, HEAD)
        orchestrator = Clocked(HostedOrchestrator(places, ray_here), clock)
        with trainer(environments(64, columns), [no_op_agent] * 64, orchestrator=orchestrator) as ours:
            clock.pause, _ = settled(ours, clock)
            profiler = cProfile.Profile(time.thread_time)
            profiler.runcall(lambda: [ours.train() for _ in range(STEPS)])
        stats: Any = pstats.Stats(profiler)
        rows = [
            [f"{Path(file).name}: {name}", f"{calls / STEPS:.0f}", f"{own / stats.total_tt:.1%}"]
            for (file, _, name), (_, calls, own, _, _) in stats.stats.items()
        ]
        rows.sort(key=lambda row: -float(row[2][:-1]))
        texts.append(
            f"64 workers, {outcome_bytes(columns):,} bytes each\n\n"
            + table(["function", "calls a step", "share of the time"], rows[:25])
        )
    hosts.close()
    return "\n\n".join(texts)


PART: dict[str, Callable[[Any, int], str]] = {
    "TCP": partial(by_workers_and_bytes, "TCP"),
    "Unix": partial(by_workers_and_bytes, "Unix"),
    "actors": real,
    "profile": profile,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PART)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lockstep").setLevel("ERROR")
    machine = describe_machine("torch", "ray", "numpy")
    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level=logging.ERROR)
    try:
        text = PART[options.part](cluster.connect(None, timeout=DEADLINE), options.repetitions)
    finally:
        ray.shutdown()
    print(f"\n{text}")
    if options.part != "profile":
        write_section(f"driver-cost-{options.part}", f"{machine}; {options.repetitions} repetitions.\n\n{text}")


if __name__ == "__main__":
    main()
