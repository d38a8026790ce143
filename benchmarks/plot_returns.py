"""Plot the mean return of each scope of a run: ``python benchmarks/plot_returns.py RUN_DIR PICTURE.png``.

Also prints about ten points of the curves as a table.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import yaml

TAG = "Episode / Return (mean)"


def main() -> None:
    run_dir, picture = map(Path, sys.argv[1:])
    config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    num_envs = config["env"]["num_envs"]
    curves = defaultdict(list)
    with (run_dir / "metrics.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["tag"] == TAG:
                curves[row["scope"]].append((int(row["timestep"]) * num_envs, float(row["value"])))
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for scope, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=f"scope {scope}")
    axes.set(
        xlabel="environment steps of all scopes", ylabel="mean return of ended episodes", title=config["env"]["id"]
    )
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=120)
    print("| environment steps | " + " | ".join(f"scope {scope}" for scope in curves) + " |")
    print("| --- |" + " --- |" * len(curves))
    rows = list(zip(*curves.values(), strict=True))
    for row in rows[:: max(1, len(rows) // 10)]:
        print(f"| {row[0][0]:,} | " + " | ".join(f"{value:,.0f}" for _, value in row) + " |")


if __name__ == "__main__":
    main()
