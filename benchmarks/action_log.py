"""Share of the log of actions in a step of CartPole-v1 x 64.

    python benchmarks/action_log.py [--repetitions N]

The log is timed in place, call by call, while the copies are stepped: an entry for each step, a note for each reset.
Steps are those of the copies alone, with random actions, which reset more copies than any trained agent does, and those
of a trainer with our PPO that has just begun to learn.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NPROC", "1")

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from measuring import timed
from report import describe_machine, spread, table, write_section
from snapshots import build

from workers.envs import make_env
from workers.envs.states.log import ActionLog

NUM_ENVS, STEPS = 64, 1024


class TimedLog(ActionLog):
    """A log that adds up the seconds that it takes, and counts resets."""

    seconds, resets = 0.0, 0

    def add(self, actions: Any, rewards: Any) -> None:
        start = perf_counter()
        super().add(actions, rewards)
        rewards.copy()  # the batch returns a copy, because the log keeps the array
        self.seconds += perf_counter() - start

    def reset(self, row: int, env: Any, seed: int | None) -> None:
        start = perf_counter()
        super().reset(row, env, seed)
        self.seconds += perf_counter() - start
        self.resets += 1


def measured(log: TimedLog, step: Callable[[], Any], repetitions: int) -> list[str]:
    """Return cells: microseconds of a step, of the log in it, its share, and resets in a step."""
    steps, logs, shares = [], [], []
    log.resets = 0
    for _ in range(repetitions):
        log.seconds = 0.0
        steps.append(timed(step, STEPS)())
        logs.append(log.seconds / STEPS * 1e6)
        shares.append(100 * logs[-1] / steps[-1])
    return [spread(steps), spread(logs), spread(shares, 2), f"{log.resets / STEPS / repetitions:.1f}"]


def main() -> None:
    """Measure both kinds of steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=9)
    repetitions = parser.parse_args().repetitions
    env, generator = make_env("CartPole-v1", num_envs=NUM_ENVS, framework="numpy"), np.random.default_rng(0)
    env._env.log = log = TimedLog(NUM_ENVS)
    env.reset(seed=0)

    def step() -> None:
        env.step(generator.integers(0, 2, (NUM_ENVS, 1)))

    rows = [["the copies", *measured(log, step, repetitions)]]
    trainer = build("CartPole-v1", NUM_ENVS)
    trainer.env._env.log = log = TimedLog(NUM_ENVS)
    trainer.train()
    rows.append(["the trainer, two PPO agents", *measured(log, trainer.train, repetitions)])
    header = ["a step of", "µs", "µs of the log", "share in %", "resets in a step"]
    text = f"{describe_machine('gymnasium', 'torch')}; {repetitions} repetitions.\n\n{table(header, rows)}"
    print(text)
    write_section("action-log", text)


if __name__ == "__main__":
    main()
