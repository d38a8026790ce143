"""Profile of a no-op `train()` on the driver, by function: in this process, or with workers in Ray.

`python benchmarks/profile_step.py [--orchestrator ray] [--agents 2]`. The profiler slows down every call: only the
shares are meaningful, not the times.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import cProfile
import pstats
from pathlib import Path

import torch
from no_op import NoOpAgent, NoOpEnv

from orchestrator.ray import RayOrchestrator
from trainer.torch import StepTrainer
from workers.envs import EnvFactory

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--orchestrator", choices=["local", "ray"], default="local")
    parser.add_argument("--agents", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trainer = StepTrainer(
        env=EnvFactory(lambda num_envs, _: NoOpEnv(num_envs), num_envs=64),
        agents=[lambda scope: NoOpAgent(scope.num_envs)] * arguments.agents,
        cfg={"headless": True, "disable_progressbar": True},
        orchestrator=RayOrchestrator(num_cpus=0.1) if arguments.orchestrator == "ray" else "local",
    )
    with trainer:
        trainer.run(100)
        profile = cProfile.Profile()
        profile.enable()
        for _ in range(arguments.steps):
            trainer.train()
        profile.disable()
    stats = pstats.Stats(profile)
    total = stats.total_tt  # type: ignore[attr-defined]
    print(f"{total / arguments.steps * 1e6:.1f} µs per step under the profiler; share of each function's own time:")
    rows = sorted(stats.stats.items(), key=lambda item: -item[1][2])  # type: ignore[attr-defined]
    for (file, line, name), (_, calls, own, *_rest) in rows[:25]:
        place = f"{Path(file).relative_to(ROOT)}:{line}" if Path(file).is_relative_to(ROOT) else Path(file).name
        print(f"  {own / total:6.1%}  {calls / arguments.steps:5.1f} calls  {name}  ({place})")


if __name__ == "__main__":
    main()
