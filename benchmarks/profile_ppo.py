"""Time per timestep of a PPO agent alone, ours against skrl's, with equal hyper-parameters.

The timed calls are `act`, `record_transition` and `post_interaction`. The environments' arrays are made beforehand, and
the actions are read on the host, as environments do. One repetition is a whole number of rollouts with their updates;
ours and skrl's alternate. Usage::

    python benchmarks/profile_ppo.py --framework jax --repetitions 7 --rollouts 10
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NPROC", "1")

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from contestants import STEPS, make_ours, make_skrl

from workers.frameworks import load_framework

BOX = gymnasium.spaces.Box
PENDULUM = BOX(-np.inf, np.inf, (3,), np.float32), BOX(-2.0, 2.0, (1,), np.float32)
TASKS: dict[str, tuple[Any, Any]] = {
    "3 observations, 1 Gaussian action": PENDULUM,
    "17 observations, 6 Gaussian actions": (BOX(-np.inf, np.inf, (17,), np.float32), BOX(-1.0, 1.0, (6,), np.float32)),
    "4 observations, 2 discrete actions": (BOX(-np.inf, np.inf, (4,), np.float32), gymnasium.spaces.Discrete(2)),
}


def make_loop(framework: str, agent: Any, observation_space: Any, num_envs: int) -> Callable[[int], dict[str, float]]:
    """Return a function that runs a number of timesteps and returns the milliseconds per timestep of each part."""
    adapter, rng = load_framework(framework), np.random.default_rng(0)
    flags = (
        np.bool_ if type(agent).__module__.startswith("workers.") or framework == "torch" else np.int8
    )  # skrl's dtype

    def arrays(count: int, draw: Callable[[], Any]) -> list[Any]:
        return [adapter.from_numpy(draw()) for _ in range(count)]

    shape = num_envs, observation_space.shape[0]
    observations = arrays(STEPS + 1, lambda: rng.standard_normal(shape).astype(np.float32))
    rewards = arrays(STEPS, lambda: rng.standard_normal((num_envs, 1)).astype(np.float32))
    terminated = arrays(STEPS, lambda: (rng.random((num_envs, 1)) < 0.01).astype(flags))
    truncated = arrays(STEPS, lambda: (rng.random((num_envs, 1)) < 0.0005).astype(flags))
    agent.init()
    agent.enable_training_mode(True)

    def run(timesteps: int) -> dict[str, float]:
        seconds = dict.fromkeys(("act", "record", "update"), 0.0)
        for timestep in range(timesteps):
            row = timestep % STEPS
            clock = {"timestep": timestep, "timesteps": timesteps}
            start = time.perf_counter()
            with adapter.no_grad():
                actions, _ = agent.act(observations[row], None, **clock)
                adapter.to_numpy(actions)
                acted = time.perf_counter()
                agent.record_transition(
                    observations=observations[row],
                    states=None,
                    actions=actions,
                    rewards=adapter.copy(rewards[row]),  # skrl's agents change them
                    next_observations=observations[row + 1],
                    next_states=None,
                    terminated=terminated[row],
                    truncated=truncated[row],
                    infos={},
                    **clock,
                )
            recorded = time.perf_counter()
            agent.post_interaction(**clock)
            seconds["act"] += acted - start
            seconds["record"] += recorded - acted
            seconds["update"] += time.perf_counter() - recorded
        return {part: 1e3 * value / timesteps for part, value in seconds.items()}

    return run


def describe(name: str, repetitions: list[dict[str, float]]) -> float:
    """Print the medians of the repetitions, and return the median of their sums."""
    totals = sorted(sum(repetition.values()) for repetition in repetitions)
    parts = "  ".join(f"{part} {statistics.median(r[part] for r in repetitions):.3f}" for part in repetitions[0])
    median = statistics.median(totals)
    print(f"  {name:5} {median:.3f} ms a timestep (from {totals[0]:.3f} to {totals[-1]:.3f}):  {parts}")
    return median


def compare(framework: str, spaces: Any, *, num_envs: int, rollouts: int, repetitions: int, skrl: bool) -> None:
    """Measure both agents in turns and print how the time is spent."""
    load_framework(framework).silence()
    makers = {"ours": make_ours, "skrl": make_skrl} if skrl else {"ours": make_ours}
    np.random.seed(0)
    loops = {
        name: make_loop(framework, make(framework, *spaces, num_envs), spaces[0], num_envs)
        for name, make in makers.items()
    }
    results: dict[str, list[dict[str, float]]] = {name: [] for name in loops}
    for repetition, (name, loop) in itertools.product(range(-1, repetitions), loops.items()):
        timings = loop(STEPS * (2 if repetition < 0 else rollouts))
        if repetition >= 0:  # the first one is a warm-up
            results[name].append(timings)
    medians = {name: describe(name, timings) for name, timings in results.items()}
    if skrl:
        print(f"  skrl / ours: {medians['skrl'] / medians['ours']:.2f}", flush=True)


def main() -> None:
    """Measure both agents on all tasks that both support."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--framework", choices=("torch", "jax", "warp"), default="torch")
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--rollouts", type=int, default=10, help="rollouts in one repetition")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--ours-only", action="store_true", help="do not import skrl")
    options = parser.parse_args()
    for task, spaces in TASKS.items():
        skrl = not options.ours_only
        if skrl and options.framework != "torch" and isinstance(spaces[1], gymnasium.spaces.Discrete):
            continue  # compared in torch only: skrl has no categorical model for Warp
        print(f"{options.framework}: {task}, {options.num_envs} environments")
        compare(
            options.framework,
            spaces,
            num_envs=options.num_envs,
            rollouts=options.rollouts,
            repetitions=options.repetitions,
            skrl=skrl,
        )


if __name__ == "__main__":
    main()
