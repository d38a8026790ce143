"""Runs schedules of faults one after the other, and writes what came of each.

    python -m tests.chaos [--faults 1000] [--seed 0] [--results build/chaos.csv]

goes on after the last seed in the results, until so many faults have happened. It says which schedules fail, and ends
with an error if any did. One that hangs ends the program. ``python -m tests.chaos --only SEED`` repeats one.
"""

from __future__ import annotations

import argparse
import csv
import faulthandler
import json
import logging
import signal
import sys
import time
import traceback
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from tests.chaos.drivers import run_command
from tests.chaos.running import run
from tests.chaos.schedules import schedule_of

_COMMANDS = 12
"""One seed in so many runs the command, and kills the program, too."""

DEADLINE = 600
"""Seconds that a schedule may take: after that, it hangs."""


def main() -> None:
    """Run schedules."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=1000, help="number of faults in the results at the end")
    parser.add_argument("--results", type=Path, default=Path("build/chaos.csv"), help="file with the outcomes")
    parser.add_argument("--seed", type=int, default=0, help="first seed, if there are no results yet")
    parser.add_argument("--only", type=int, help="run this seed alone, with its log, and write nothing")
    options = parser.parse_args()
    # a shell in the background lets its programs ignore the first
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if options.only is not None:
        logging.basicConfig(level=logging.INFO, format="%(relativeCreated)d ms: %(message)s")
    cluster = Cluster(shutdown_at_exit=False)  # else nodes cannot be added on a thread
    try:
        for num_cpus in (1, 1, 1):
            cluster.add_node(num_cpus=num_cpus, include_dashboard=False)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="warning")
        if options.only is not None:
            print(schedule_of(options.only), *schedule_of(options.only).faults, sep="\n")
            print(_timed(options.only, cluster))
            return
        options.results.parent.mkdir(parents=True, exist_ok=True)
        rows = _read(options.results)
        seed = max([int(row["seed"]) + 1 for row in rows], default=options.seed)
        total = sum(int(row["faults"]) for row in rows)
        failed = sum(row["outcome"] == "failed" for row in rows)
        while total < options.faults:
            row = _timed(seed, cluster)
            with options.results.open("a", newline="") as file:
                writer = csv.DictWriter(file, row)
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(row)
            total += int(row["faults"])  # type: ignore[call-overload]
            print(f"{schedule_of(seed)}: {row['outcome']}; {total} faults so far", flush=True)
            failed += row["outcome"] == "failed"
            seed += 1
        sys.exit(failed > 0)
    finally:
        ray.shutdown()
        cluster.shutdown()


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _timed(seed: int, cluster: Cluster) -> dict[str, object]:
    """Run a schedule; one that hangs ends the program."""
    schedule, start = schedule_of(seed), time.monotonic()
    faulthandler.dump_traceback_later(DEADLINE, exit=True)
    row: dict[str, object] = {
        "seed": seed,
        "case": schedule.case,
        "framework": schedule.framework,
        "mode": schedule.mode,
        "way": schedule.way,
        "transport": schedule.transport,
        "spares": schedule.spares,
    }
    try:
        result = run(schedule, cluster=cluster) if seed % _COMMANDS else run_command(seed)
        row |= {
            "outcome": "same numbers",
            "faults": result.faults,
            "recoveries": result.recoveries,
            "replayed": result.replayed,
            "files": result.files,
            "memory": result.memory,
            "seconds": json.dumps([round(each, 2) for each in result.seconds]),
            "causes": json.dumps(result.causes),
        }
    except Exception:
        traceback.print_exc()
        print(f"{schedule}: failed; repeat it with: python -m tests.chaos --only {seed}", file=sys.stderr, flush=True)
        row |= {"outcome": "failed", **dict.fromkeys(("faults", "recoveries", "replayed", "files", "memory"), 0)}
        row |= {"seconds": "[]", "causes": "[]"}
    finally:
        faulthandler.cancel_dump_traceback_later()
    return row | {"took": round(time.monotonic() - start, 1)}


if __name__ == "__main__":
    main()
