"""Benchmark of the empty step over Ray, before and after a change: two source trees take turns.

    git worktree add /somewhere COMMIT
    python benchmarks/empty_step.py /somewhere

Each contestant is a process with the packages of its tree and a Ray of its own, whose trainer has no-op environments
and agents. The workers are reached over Unix sockets, or over TCP, as if they were on other machines.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("NPROC", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
ROWS = 16


def contestant(kind: str, agents: int, steps: int) -> None:
    """Answer each line of the standard input with microseconds per step."""
    import logging

    import ray

    sys.path.append(str(HERE))
    from no_op import NoOpAgent, NoOpEnv

    from orchestrator.ray import RayOrchestrator, connection, starting
    from trainer.torch import StepTrainer
    from workers.envs import EnvFactory

    logging.getLogger("lockstep").setLevel("ERROR")
    if kind == "TCP":
        starting.socket_domain = lambda: "another machine"
        dial = connection.dial
        connection.dial = lambda address, *args, **options: dial(address._replace(name=b""), *args, **options)
    ray.init(address="local", num_cpus=agents, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with StepTrainer(
        env=EnvFactory(lambda num_envs, first_env: NoOpEnv(num_envs), num_envs=ROWS * agents),
        agents=[lambda scope: NoOpAgent(scope.num_envs)] * agents,
        cfg={"headless": True, "disable_progressbar": True},
        orchestrator=RayOrchestrator(),
    ) as trainer:
        print("ready", flush=True)
        for _ in sys.stdin:
            start = time.perf_counter()
            for _ in range(steps):
                trainer.train()
            print((time.perf_counter() - start) / steps * 1e6, flush=True)
    ray.shutdown()


class Contestant:
    """A process that measures one tree."""

    def __init__(self, tree: Path, kind: str, agents: int, steps: int) -> None:
        command = [sys.executable, __file__, str(tree), "--contestant", kind, str(agents), str(steps)]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        self._process = subprocess.Popen(
            command, env=environment, cwd=tree, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        while self._process.stdout.readline().strip() != "ready":
            assert self._process.poll() is None, "a contestant failed"

    def measure(self) -> float:
        """Return microseconds per step."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def compare(before: Path, kind: str, agents: int, *, turns: int, steps: int) -> None:
    """Print the medians of both trees and of their differences within a turn."""
    both = [Contestant(tree, kind, agents, steps) for tree in (before, HERE.parent)]
    values: list[tuple[float, ...]] = []
    for turn in range(-1, turns):
        order = both if turn % 2 else both[::-1]
        measured = {one: one.measure() for one in order}
        if turn >= 0:
            values.append(tuple(measured[one] for one in both))
    for one in both:
        one.close()
    old, new = zip(*values, strict=True)
    more = [after - earlier for earlier, after in values]
    print(
        f"{kind}, {agents} agent(s): before {spread(old)}, after {spread(new)}, difference {spread(more)} µs "
        f"({turns} turns of {steps} steps)",
        flush=True,
    )


def spread(values: list[float] | tuple[float, ...]) -> str:
    """Return the median with minimum and maximum."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="the other source tree")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--contestant", nargs=3, metavar=("KIND", "AGENTS", "STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        kind, agents, steps = options.contestant
        contestant(kind, int(agents), int(steps))
        return
    for kind in ("Unix", "TCP"):
        for agents in (1, 2):
            compare(options.before, kind, agents, turns=options.turns, steps=options.steps)


if __name__ == "__main__":
    main()
