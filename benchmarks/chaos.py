"""A table of what `make chaos` has done, for RESULTS.md.

    python benchmarks/chaos.py build/chaos.csv ...

Each row of these files is a schedule of faults; see `tests.chaos`.
"""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))

from report import describe_machine, table, write_section


def main() -> None:
    """Sum up the files."""
    rows = [row for path in sys.argv[1:] for row in csv.DictReader(Path(path).read_text().splitlines())]
    lines = []
    for framework in ("torch", "jax", "warp"):
        for mode in ("sharded", "shared"):
            some = [row for row in rows if (row["framework"], row["mode"]) == (framework, mode)]
            seconds = [each for row in some for each in json.loads(row["seconds"])]
            lines.append(
                [
                    framework,
                    mode,
                    len(some),
                    sum(int(row["faults"]) for row in some),
                    sum(int(row["recoveries"]) for row in some),
                    f"{sum(int(row['replayed']) for row in some):,}",
                    f"{median(seconds):.1f} ({max(seconds):.1f})" if seconds else "",
                    sum(row["outcome"] != "same numbers" for row in some),
                ]
            )
    total = sum(int(row["faults"]) for row in rows)
    causes = Counter(cause for row in rows for cause in json.loads(row["causes"]))
    seeds = sorted(int(row["seed"]) for row in rows)
    failed = [row["seed"] for row in rows if row["outcome"] != "same numbers"]
    header = ["framework", "mode", "schedules", "faults", "recoveries", "replayed", "seconds, median (worst)", "failed"]
    text = (
        f"{describe_machine('torch', 'jax', 'warp-lang', 'ray')}; {total:,} faults in {len(rows)} schedules.\n\n"
        f"{table(header, lines)}\n\n"
        f"Recoveries by cause: {', '.join(f'{cause} {count}' for cause, count in causes.most_common())}. "
        f"Seeds: {_ranges(seeds)}. Failed: {', '.join(failed) or 'none'}."
    )
    print(text)
    write_section("chaos", text)


def _ranges(numbers: list[int]) -> str:
    """Return numbers with ranges."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{first} to {last}" if last > first else f"{first}" for first, last in parts)


if __name__ == "__main__":
    main()
