"""Population-based training against the same agents without it: ``python benchmarks/population.py [--seeds 5]``.

Eight PPO agents on CartPole-v1, six of them with badly chosen learning rates. Writes a section of RESULTS.md and
population.png.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from report import describe_machine, spread, table, write_section

from trainer.callbacks import Callback, Evaluator, Loop, Population
from trainer.evaluation import Evaluated
from trainer.torch import StepTrainer
from workers.agents.torch import PPO
from workers.envs import make_env
from workers.types import Scope

matplotlib.use("Agg")

import matplotlib.pyplot as plt

RATES = (1e-6, 3e-6, 1e-5, 3e-5, 1e-1, 3e-2, 1e-3, 3e-4)
ENVS, TIMESTEPS, EVERY, EVALUATED = 8, 6400, 640, 320
BOUNDS = {"learning_rate": (1e-6, 1e-1)}
PICTURE = Path(__file__).with_name("population.png")


class Curve(Callback):
    """Callback that keeps the mean return of each agent in every evaluation."""

    def __init__(self) -> None:
        self.means: list[list[float]] = []

    def on_evaluation(self, loop: Loop, evaluation: Evaluated) -> None:
        self.means.append([result.mean for result in evaluation.results])


class Factory:
    """Factory of PPO with the learning rate of its scope."""

    def __init__(self, env: object) -> None:
        self.spaces = {"observation_space": env.observation_space, "action_space": env.action_space}

    def __call__(self, scope: Scope) -> PPO:
        return PPO(**self.spaces, num_envs=ENVS, cfg={"rollouts": 64, "learning_rate": RATES[scope.index]})


def curve(seed: int, callbacks: Sequence[Callback]) -> np.ndarray:
    """Train, and return the mean returns by evaluation and agent."""
    env = make_env("CartPole-v1", num_envs=ENVS * len(RATES), framework="torch")
    kept = Curve()
    cfg = {"timesteps": TIMESTEPS, "headless": True, "disable_progressbar": True}
    with StepTrainer(env=env, agents=[Factory(env)] * len(RATES), cfg=cfg, seed=seed) as trainer:
        Loop(trainer, [Evaluator(EVALUATED, episodes=8), kept, *callbacks], metrics_every=64).run()
    return np.array(kept.means)


def plot(curves: dict[str, list[np.ndarray]]) -> None:
    """Plot the mean over the agents: medians over the seeds, with ranges."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    timesteps = np.arange(1, TIMESTEPS // EVALUATED + 1) * EVALUATED
    for name, each in curves.items():
        means = np.array([one.mean(1) for one in each])
        (line,) = axes.plot(timesteps, np.median(means, 0), label=f"{name}, mean of the agents")
        axes.fill_between(timesteps, means.min(0), means.max(0), alpha=0.2, color=line.get_color())
        best = np.median([one.max(1) for one in each], 0)
        axes.plot(timesteps, best, ":", color=line.get_color(), label=f"{name}, best agent")
    axes.set(
        xlabel="timestep", ylabel="mean return in evaluations", title="CartPole-v1, 8 agents, 6 bad learning rates"
    )
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(PICTURE, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    curves: dict[str, list[np.ndarray]] = {"with": [], "without": []}
    for seed in seeds:
        for name, callbacks in (("with", [Population(EVERY, BOUNDS, seed=seed)]), ("without", [])):
            curves[name].append(curve(seed, callbacks))
            print(seed, name, np.round(curves[name][-1][-1], 1), flush=True)
    plot(curves)
    points = [index for index in range(TIMESTEPS // EVALUATED) if not (index + 1) * EVALUATED % (TIMESTEPS // 5)]
    rows = []
    for index in points:
        cells = [str((index + 1) * EVALUATED)]
        for each in curves.values():
            cells.append(spread([float(one[index].mean()) for one in each], 0))
            cells.append(spread([float(one[index].max()) for one in each], 0))
        rows.append(cells)
    head = ["timestep", "with: mean of the agents", "best agent", "without: mean of the agents", "best agent"]
    better = sum(one[-1].mean() > other[-1].mean() for one, other in zip(*curves.values(), strict=True))
    gain = statistics.median(one[-1].mean() / other[-1].mean() for one, other in zip(*curves.values(), strict=True))
    text = (
        f"{describe_machine('torch', 'gymnasium')}; seeds 0 to {len(seeds) - 1}. Cells are medians (minimum to "
        f"maximum) over the seeds. At the end, the mean of the agents is higher with it for {better} of {len(seeds)} "
        f"seeds, by a factor of {gain:.1f} (median).\n\n{table(head, rows)}\n\n"
        "![Returns with and without](population.png)"
    )
    write_section("population", text)


if __name__ == "__main__":
    main()
