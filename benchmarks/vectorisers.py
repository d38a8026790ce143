"""Time of a step of 32 copies of MPE's simple_spread: our vectoriser, a plain loop over the copies, and SuperSuit's.

All take the same random actions in turns, so that a slow moment of the machine affects all of them. There are no
agents: the difference is the cost of stepping copies as one batch. `make bench` runs this script, which writes its
section of RESULTS.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mpe2 import simple_spread_v3

sys.path.insert(0, str(Path(__file__).parent))

from report import describe_machine, spread, table, write_section

from workers.envs import make_env

NUM_ENVS = 32
STEPS = 50  # two episodes
NAMES = ("agent_0", "agent_1", "agent_2")


def plain_loop(actions: np.ndarray) -> Callable[[], None]:
    """PettingZoo environments, stepped and reset as in PettingZoo's documentation."""
    envs = [simple_spread_v3.parallel_env() for _ in range(NUM_ENVS)]
    for i, env in enumerate(envs):
        env.reset(seed=i)

    def run() -> None:
        for step in actions:
            for env, taken in zip(envs, step, strict=True):
                env.step(dict(zip(NAMES, taken, strict=True)))
                if not env.agents:
                    env.reset()

    return run


def ours(actions: np.ndarray) -> Callable[[], None]:
    env = make_env("mpe2.simple_spread_v3", num_envs=NUM_ENVS, framework="torch")
    env.reset(seed=0)
    taken = [{name: torch.tensor(step[:, i : i + 1]) for i, name in enumerate(NAMES)} for step in actions]

    def run() -> None:
        for each in taken:
            env.step(each)

    return run


def supersuit(actions: np.ndarray) -> Callable[[], None]:
    """SuperSuit's vectoriser in this process. Its rows are all agents of the first copy, of the second, and so on."""
    from supersuit import concat_vec_envs_v1, pettingzoo_env_to_vec_env_v1

    env = pettingzoo_env_to_vec_env_v1(simple_spread_v3.parallel_env())
    env = concat_vec_envs_v1(env, NUM_ENVS, num_cpus=0, base_class="gymnasium")
    env.reset(seed=0)
    taken = [step.reshape(-1) for step in actions]

    def run() -> None:
        for each in taken:
            env.step(each)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=9)
    repetitions = parser.parse_args().repetitions
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # from the libraries, about their spaces
    actions = np.random.default_rng(0).integers(5, size=(STEPS, NUM_ENVS, len(NAMES)))
    makers: dict[str, Callable[[np.ndarray], Callable[[], Any]]] = {
        "a plain loop over the copies": plain_loop,
        "our vectoriser": ours,
        "SuperSuit's": supersuit,
    }
    runs: dict[str, Callable[[], None]] = {}
    for name, make in makers.items():
        try:
            runs[name] = make(actions)
        except ImportError as error:
            print(f"{name}: not compared ({error})")
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(-1, repetitions):  # the first turn is not counted
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repetition >= 0:
                times[name].append((time.perf_counter() - start) / STEPS * 1e6)
    medians = {name: statistics.median(values) for name, values in times.items()}
    first = next(iter(medians.values()))
    columns = ["what", "µs a step: median (spread)", "env-steps/s", "env-steps/s / the plain loop's (bar 0.9)"]
    rows = [
        [name, spread(times[name]), f"{NUM_ENVS / median * 1e6:,.0f}", f"{first / median:.2f}"]
        for name, median in medians.items()
    ]
    machine = describe_machine("mpe2", "pettingzoo", "supersuit", "torch")
    text = f"{machine}; {repetitions} repetitions.\n\n{table(columns, rows)}"
    print(text)
    write_section("vectorisers", text)


if __name__ == "__main__":
    main()
