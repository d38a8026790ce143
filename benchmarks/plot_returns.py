"""Plot the mean return of each scope of a run: ``python benchmarks/plot_returns.py RUN_DIR PICTURE.png``.

Also prints about ten points of the curves as a table.
"""

from __future__ import annotations

import sys

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from trainer.callbacks.view import RETURN
from trainer.command.run_reader import RunReader


def main() -> None:
    run_dir, picture = sys.argv[1:]
    run = RunReader(run_dir)
    curves = {
        scope: [(timestep * run.num_envs, value) for timestep, value in zip(*series, strict=True)]
        for scope, series in run.metrics[RETURN].items()
    }
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for scope, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=f"scope {scope}")
    axes.set(xlabel="environment steps of all scopes", ylabel="mean return of ended episodes", title=run.env)
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
