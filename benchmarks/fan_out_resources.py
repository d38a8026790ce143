"""CPU time of waiting, and growth of memory."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import psutil
from fan_out_overhead import build_no_op
from measuring import Result, actors, judge, trainer
from no_op import SleepingEnv, no_op_agent
from report import table

from workers.envs import EnvFactory

WAIT = 5  # seconds


def build_slow(num_envs: int, _first_env: int) -> SleepingEnv:
    return SleepingEnv(num_envs, WAIT)


def processes(ours: Any) -> dict[str, psutil.Process]:
    """The driver and the process of each worker."""
    pids = re.findall(r"\(pid (\d+)\)", str(ours))
    workers = {f"worker {index}": psutil.Process(int(pid)) for index, pid in enumerate(pids)}
    return {"driver": psutil.Process(), **workers}


def cpu_times(each: dict[str, psutil.Process]) -> dict[str, float]:
    """Seconds of CPU time, user and system."""
    times = {name: process.cpu_times() for name, process in each.items()}
    return {name: spent.user + spent.system for name, spent in times.items()}


def idle(repetitions: int) -> Result:
    """Percent of a core used while waiting for slow workers and for the next request."""
    used: dict[tuple[str, str], list[float]] = {}
    times = min(repetitions, 5)  # each takes 10 s

    def note(what: str, each: dict[str, psutil.Process], wait: Callable[[], Any]) -> None:
        before, start = cpu_times(each), time.perf_counter()
        wait()
        elapsed = time.perf_counter() - start
        for name, after in cpu_times(each).items():
            used.setdefault((what, name), []).append((after - before[name]) / elapsed * 100)

    env = EnvFactory(build_slow, num_envs=2)
    with trainer(env, [no_op_agent] * 2, orchestrator=actors()) as ours:
        each = processes(ours)
        ours.train()
        for _ in range(times):
            note(f"in `train()`, whose environments sleep {WAIT} s", each, ours.train)
            note(f"between two `train()`, {WAIT} s", each, lambda: time.sleep(WAIT))
    rows = [[what, name, *judge(values, most=2)] for (what, name), values in used.items()]
    text = f"""### Waiting

Two workers; percent of a core used by each process, {times} times {WAIT} s, as counted by the kernel (in 10 ms steps).

{table(["when", "process", "% of a core", "bar", "met"], rows)}"""
    return Result(text)


def memory(_repetitions: int) -> Result:
    """Memory after 1,000 and 100,000 steps."""
    first, last = 1_000, 100_000
    env = EnvFactory(build_no_op, num_envs=64)
    with trainer(env, [no_op_agent] * 2, orchestrator=actors()) as ours:
        each = processes(ours)

        def megabytes() -> dict[str, tuple[float, float]]:
            used = {name: process.memory_full_info() for name, process in each.items()}
            return {name: (info.rss / 2**20, info.uss / 2**20) for name, info in used.items()}

        for _ in range(first):
            ours.train()
        before = megabytes()
        for _ in range(last - first):
            ours.train()
        after = megabytes()
    rows = []
    for name in each:
        for kind, old, new in zip(("RSS", "USS"), before[name], after[name], strict=True):
            growth = (new / old - 1) * 100
            rows.append([name, kind, f"{old:.1f}", f"{new:.1f}", f"{growth:+.2f} %", "yes" if growth <= 2 else "no"])
    columns = ["process", "kind", f"MB after {first:,} steps", f"MB after {last:,}", "growth (bar 2 %)", "met"]
    text = f"""### Memory

Two workers that do nothing; {last:,} calls of `train()` in one run.

{table(columns, rows)}"""
    return Result(text)
