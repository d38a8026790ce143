"""Time of one `train()` in local mode: ours against skrl's, in each framework; ratios of medians within one run.

What is compared takes turns, so that a slower moment of the machine meets all alike. Run it as `make bench`; it prints
Markdown tables for RESULTS.md.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NPROC", "1")

import argparse
import importlib
import logging
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import skrl
import torch
from skrl.envs.wrappers.torch import wrap_env as skrl_wrap_env
from skrl.trainers.torch import StepTrainer as SkrlStepTrainer

sys.path.insert(0, str(Path(__file__).parent))

from contestants import make_ours, make_skrl
from profile_ppo import PENDULUM, compare

from trainer.torch import StepTrainer, generate_equally_spaced_scopes
from workers.envs import make_env
from workers.frameworks import load_framework

NUM_ENVS = 64
CFG = {"headless": True, "disable_progressbar": True, "close_environment_at_exit": False}


class NoOpEnv:
    """Always the same arrays."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    state_space = None
    num_envs = NUM_ENVS

    def __init__(self) -> None:
        flags = torch.zeros(NUM_ENVS, 1, dtype=torch.bool)
        self.outputs = torch.zeros(NUM_ENVS, 4), torch.zeros(NUM_ENVS, 1), flags, flags, {}

    def reset(self) -> Any:
        return self.outputs[0], {}

    def step(self, actions: Any) -> Any:
        return self.outputs

    def state(self) -> None:
        return None

    def render(self) -> None:
        pass

    def close(self) -> None:
        pass


class NoOpAgent:
    """Always the same actions."""

    def __init__(self, num_envs: int) -> None:
        self.acted = torch.zeros(num_envs, 1, dtype=torch.int64), {}

    def init(self, *, trainer_cfg: Any = None) -> None:
        pass

    def enable_training_mode(self, enabled: bool = True) -> None:
        pass

    def pre_interaction(self, *, timestep: int, timesteps: int) -> None:
        pass

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> Any:
        return self.acted

    def record_transition(self, **arguments: Any) -> None:
        pass

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        pass

    def track_data(self, tag: str, value: float) -> None:
        pass


def build(
    trainer: type[Any], env: Any, make_agent: Callable[[int], Any], num_simultaneous_agents: int, **options: Any
) -> Any:
    scopes = generate_equally_spaced_scopes(num_envs=NUM_ENVS, num_simultaneous_agents=num_simultaneous_agents)
    agents = [make_agent(size) for size in scopes]
    return trainer(env=env, agents=agents, scopes=scopes, cfg=CFG, **options)


def measure(trainers: dict[str, Any], *, steps: int, repetitions: int) -> dict[str, list[float]]:
    """Microseconds per step of each trainer, in `repetitions` turns; the first turn is not counted."""
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for repetition in range(-1, repetitions):
        for name, trainer in trainers.items():
            start = time.perf_counter()
            for _ in range(steps):
                trainer.train()
            if repetition >= 0:
                times[name].append((time.perf_counter() - start) / steps * 1e6)
    return times


def row(*cells: Any) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def spread(times: list[float]) -> str:
    return f"{statistics.median(times):.1f} ({min(times):.1f} to {max(times):.1f})"


def head(title: str, columns: Iterable[str]) -> None:
    print(f"\n{title}\n")
    row(*columns)
    row(*("---" for _ in columns))


def no_op(repetitions: int) -> None:
    head(
        "No-op environment and agents, µs a step: median (spread)",
        ["agents", "skrl", "ours, no seed", "ours, with a seed", "ours / skrl (bar 1.1)", "seed, µs an agent (bar 15)"],
    )
    for count in (1, 2, 4):
        trainers = {
            "skrl": build(SkrlStepTrainer, NoOpEnv(), NoOpAgent, count),
            "ours": build(StepTrainer, NoOpEnv(), NoOpAgent, count),
            "seeded": build(StepTrainer, NoOpEnv(), NoOpAgent, count, seed=1),
        }
        times = measure(trainers, steps=3000, repetitions=repetitions)
        medians = {name: statistics.median(values) for name, values in times.items()}
        row(
            count,
            *(spread(values) for values in times.values()),
            f"{medians['ours'] / medians['skrl']:.2f}",
            f"{(medians['seeded'] - medians['ours']) / count:.1f}",
        )


def cartpole(repetitions: int) -> None:
    spaces = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32), gymnasium.spaces.Discrete(2)

    def skrl_env() -> Any:
        env = gymnasium.make_vec("CartPole-v1", num_envs=NUM_ENVS, vectorization_mode="sync")
        return skrl_wrap_env(env, wrapper="gymnasium", verbose=False)

    def skrl_agent(num_envs: int) -> Any:
        return make_skrl("torch", *spaces, num_envs)

    def our_agent(num_envs: int) -> Any:
        return make_ours("torch", *spaces, num_envs)

    def our_env() -> Any:
        return make_env("CartPole-v1", num_envs=NUM_ENVS, framework="torch")

    contestants = {
        "skrl's trainer, environment and PPO": (SkrlStepTrainer, skrl_env, skrl_agent),
        "our trainer, skrl's environment and PPO": (StepTrainer, skrl_env, skrl_agent),
        "our trainer and environment, skrl's PPO": (StepTrainer, our_env, skrl_agent),
        "our trainer, environment and PPO": (StepTrainer, our_env, our_agent),
    }
    for count in (1, 2):
        head(
            f"CartPole-v1 x {NUM_ENVS}, {count} simultaneous agent(s): rollouts 32, 4 epochs of 4 mini-batches",
            ["what", "µs a step: median (spread)", "env-steps/s", "time / skrl's"],
        )
        trainers = {name: build(kind, env(), agent, count) for name, (kind, env, agent) in contestants.items()}
        times = measure(trainers, steps=128, repetitions=3 * repetitions)
        medians = [statistics.median(values) for values in times.values()]
        for (name, values), median in zip(times.items(), medians, strict=True):
            row(name, spread(values), f"{NUM_ENVS / median * 1e6:,.0f}", f"{median / medians[0]:.2f}")
        print(f"\nOnly the trainer differs: {medians[1] / medians[0]:.2f} of skrl's time (bar 1.0).")
        print(f"Only the PPO differs: {medians[2] / medians[3]:.2f} times the env-steps/s (bar 1.3).")


def pendulum(framework: str, repetitions: int) -> None:
    """Our PPO and skrl's under our trainer, and under skrl's where it has one for the framework."""

    def skrl_env() -> Any:
        wrap_env = importlib.import_module(f"skrl.envs.wrappers.{framework}").wrap_env
        env = gymnasium.make_vec("Pendulum-v1", num_envs=NUM_ENVS, vectorization_mode="sync")
        return wrap_env(env, wrapper="gymnasium", verbose=False)

    def skrl_agent(num_envs: int) -> Any:
        return make_skrl(framework, *PENDULUM, num_envs)

    def our_agent(num_envs: int) -> Any:
        return make_ours(framework, *PENDULUM, num_envs)

    def our_env() -> Any:
        return make_env("Pendulum-v1", num_envs=NUM_ENVS, framework=framework)

    load_framework(framework).silence()
    ours = importlib.import_module(f"trainer.{framework}").StepTrainer
    contestants = {
        "our trainer, skrl's environment and PPO": (ours, skrl_env, skrl_agent),
        "our trainer and environment, skrl's PPO": (ours, our_env, skrl_agent),
        "our trainer, environment and PPO": (ours, our_env, our_agent),
    }
    if framework == "jax":
        skrls = importlib.import_module("skrl.trainers.jax.step").StepTrainer
        contestants = {"skrl's trainer, environment and PPO": (skrls, skrl_env, skrl_agent), **contestants}
    head(
        f"{framework}: Pendulum-v1 x {NUM_ENVS}, one agent: rollouts 32, 4 epochs of 4 mini-batches",
        ["what", "µs a step: median (spread)", "env-steps/s", "time / the first's"],
    )
    trainers = {name: build(kind, env(), agent, 1) for name, (kind, env, agent) in contestants.items()}
    times = measure(trainers, steps=128, repetitions=repetitions)
    medians = [statistics.median(values) for values in times.values()]
    for (name, values), median in zip(times.items(), medians, strict=True):
        row(name, spread(values), f"{NUM_ENVS / median * 1e6:,.0f}", f"{median / medians[0]:.2f}")
    bar = " (bar 2)" if framework == "jax" else ""
    print(f"\nOnly the PPO differs: {medians[-2] / medians[-1]:.2f} times the env-steps/s{bar}.")
    print(f"\nThe agent itself, without environments (bar {3 if framework == 'jax' else 1.5}):\n")
    compare(framework, PENDULUM, num_envs=NUM_ENVS, rollouts=4, repetitions=repetitions, skrl=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=9)
    repetitions = parser.parse_args().repetitions
    torch.set_num_threads(1)
    skrl.logger.setLevel("ERROR")
    logging.getLogger("lockstep").setLevel("ERROR")
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, gymnasium {gymnasium.__version__}"
    print(
        f"{platform.machine()}, {os.cpu_count()} cores; {versions}, skrl {skrl.__version__}; {repetitions} repetitions"
    )
    no_op(repetitions)
    cartpole(repetitions)
    for framework in ("jax", "warp"):
        pendulum(framework, repetitions)


if __name__ == "__main__":
    main()
