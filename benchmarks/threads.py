"""The cost of holding compute threads, alone and in the README's first example.

    python benchmarks/threads.py

The example runs in fresh processes that take turns. "All cores" is what the trainer would do without holding threads.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from measuring import judge, ratios, take_turns
from report import describe_machine, spread, table, write_section
from threadpoolctl import threadpool_limits

from workers.frameworks import load_framework
from workers.threads import THREAD_VARIABLES, HeldThreads

ROOT = Path(__file__).parents[1]
CALLS = 2000


def hold(threads: int) -> Callable[[], float]:
    """Measure a call that holds one thread in a program that has `threads` threads, in microseconds."""

    def measure() -> float:
        torch.set_num_threads(threads)
        with threadpool_limits(threads):
            held = HeldThreads(load_framework("torch"), 1)
            start = time.perf_counter()
            for _ in range(CALLS):
                with held:
                    pass
            return (time.perf_counter() - start) / CALLS * 1e6

    return measure


def example(program: str, **variables: str) -> Callable[[], float]:
    """Measure a program in a fresh process, in seconds."""
    environment = {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES} | variables

    def measure() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True, capture_output=True)
        return time.perf_counter() - start

    return measure


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    repetitions = parser.parse_args().repetitions
    cores = os.cpu_count() or 1
    (program, *_) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    unheld = f"from orchestrator import LocalOrchestrator\n{program}".replace(
        "    seed=0,", f"    seed=0,\n    orchestrator=LocalOrchestrator(num_threads={cores}),"
    )
    calls = take_turns({name: hold(count) for name, count in (("the same", 1), ("another", 2))}, repetitions)
    times = take_turns(
        {
            "one thread from the start": example(program, **dict.fromkeys(THREAD_VARIABLES, "1")),
            "plain shell": example(program),
            f"all cores ({cores} threads)": example(unheld),
        },
        repetitions,
    )
    first, plain, *_ = times
    rows = [[name, spread(values, 2), spread(ratios(values, times[first]), 2)] for name, values in times.items()]
    text = "\n\n".join(
        [
            f"{describe_machine('torch', 'threadpoolctl', 'numpy')}; {repetitions} repetitions.",
            table(
                ["user's number of threads", "µs a call", "bar", "met"],
                [[name, *judge(values, most=10)] for name, values in calls.items()],
            ),
            table(
                ["the README's first example", "seconds, with start and imports", "/ one thread from the start"], rows
            ),
            table(["ratio", "value", "bar", "met"], [[plain, *judge(ratios(times[plain], times[first]), most=1.3)]]),
        ]
    )
    print(text)
    write_section("threads", text)


if __name__ == "__main__":
    main()
