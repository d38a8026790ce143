"""Benchmarks of the fan-out: the costs and gains of doing an iteration's work in other processes.

Contestants take turns, so that a slow moment of the machine affects all of them. Ratios are taken turn by turn, and
their median is compared with a bar. Writes its section of RESULTS.md and its plots; with `--only` it only prints.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("NPROC", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import argparse
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ray
import torch

sys.path.insert(0, str(Path(__file__).parent))

from fan_out_overhead import no_op, payload, scaling
from fan_out_resources import idle, memory
from fan_out_training import cartpole, halfcheetah, phases
from measuring import Result
from report import describe_machine, write_section

# those without skrl first: once the driver has imported it, every worker imports it too, which takes time
PARTS: dict[str, Callable[[int], Result]] = {
    "no-op": no_op,
    "scaling": scaling,
    "payload": payload,
    "idle": idle,
    "memory": memory,
    "cartpole": cartpole,
    "phases": phases,
    "halfcheetah": halfcheetah,
}
ORDER = ("halfcheetah", "cartpole", "phases", "no-op", "payload", "scaling", "idle", "memory")  # in the report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="NAME", help=f"one or more of {', '.join(PARTS)}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lockstep").setLevel("ERROR")
    machine = describe_machine("torch", "ray", "gymnasium", "skrl", "numpy")
    intro = f"{machine}; {options.repetitions} repetitions. Cells are medians (minimum to maximum)."
    print(intro, flush=True)
    results: dict[str, Result] = {}
    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level=logging.WARNING)
    try:
        for name, part in PARTS.items():
            if not options.only or name in options.only:
                start = time.monotonic()
                print(f"\n{name}:", flush=True)
                results[name] = part(options.repetitions)
                print(f"\n{results[name].text}\n\n({name} took {time.monotonic() - start:.0f} s)", flush=True)
    finally:
        ray.shutdown()
    if not options.only:
        for result in results.values():
            result.draw()
        write_section("fan-out", "\n\n".join([intro, *(results[name].text for name in ORDER)]))


if __name__ == "__main__":
    main()
