"""Time of one `train()` in local mode: ours against skrl's, in each framework; ratios of medians within one run.

Contestants take turns, so that a slow moment of the machine affects all of them. `make bench` runs this script, which
writes its section of RESULTS.md.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NPROC", "1")

import argparse
import contextlib
import importlib
import io
import logging
import statistics
import sys
from collections.abc import Callable
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
from measuring import CFG, take_turns, timed
from no_op import NoOpAgent, NoOpEnv
from profile_ppo import PENDULUM, compare
from report import describe_machine, spread, table, write_section

from trainer.torch import StepTrainer, generate_equally_spaced_scopes
from workers.envs import make_env
from workers.frameworks import load_framework

NUM_ENVS = 64


def build(
    trainer: type[Any], env: Any, make_agent: Callable[[int], Any], num_simultaneous_agents: int, **options: Any
) -> Any:
    scopes = generate_equally_spaced_scopes(num_envs=NUM_ENVS, num_simultaneous_agents=num_simultaneous_agents)
    agents = [make_agent(size) for size in scopes]
    return trainer(env=env, agents=agents, scopes=scopes, cfg=CFG, **options)


def measure(trainers: dict[str, Any], *, steps: int, repetitions: int) -> dict[str, list[float]]:
    """Return microseconds per step of each trainer, for `repetitions` turns after a first one that is not counted."""
    return take_turns({name: timed(trainer.train, steps) for name, trainer in trainers.items()}, repetitions)


def show(text: str) -> str:
    """Print a paragraph at once, and return it."""
    print(f"\n{text}", flush=True)
    return text


def rows_of(times: dict[str, list[float]]) -> list[list[str]]:
    """Return a row for each contestant: its times, its rate, and its ratio to the first one."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    first = next(iter(medians.values()))
    return [
        [name, spread(times[name]), f"{NUM_ENVS / median * 1e6:,.0f}", f"{median / first:.2f}"]
        for name, median in medians.items()
    ]


def no_op(repetitions: int) -> list[str]:
    lines = []
    for count in (1, 2, 4):
        trainers = {
            "skrl": build(SkrlStepTrainer, NoOpEnv(NUM_ENVS), NoOpAgent, count),
            "ours": build(StepTrainer, NoOpEnv(NUM_ENVS), NoOpAgent, count),
            "seeded": build(StepTrainer, NoOpEnv(NUM_ENVS), NoOpAgent, count, seed=1),
        }
        times = measure(trainers, steps=3000, repetitions=repetitions)
        medians = {name: statistics.median(values) for name, values in times.items()}
        ratio, seed = medians["ours"] / medians["skrl"], (medians["seeded"] - medians["ours"]) / count
        lines.append([count, *(spread(values) for values in times.values()), f"{ratio:.2f}", f"{seed:.1f}"])
    columns = [
        "agents",
        "skrl",
        "ours, no seed",
        "ours, with a seed",
        "ours / skrl (bar 1.1)",
        "seed, µs an agent (bar 15)",
    ]
    return [show("No-op environment and agents, µs a step: median (spread)"), show(table(columns, lines))]


def cartpole(repetitions: int) -> list[str]:
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
    paragraphs = []
    for count in (1, 2):
        title = f"CartPole-v1 x {NUM_ENVS}, {count} simultaneous agent(s): rollouts 32, 4 epochs of 4 mini-batches"
        trainers = {name: build(kind, env(), agent, count) for name, (kind, env, agent) in contestants.items()}
        times = measure(trainers, steps=128, repetitions=3 * repetitions)
        medians = [statistics.median(values) for values in times.values()]
        paragraphs += [
            show(title),
            show(table(["what", "µs a step: median (spread)", "env-steps/s", "time / skrl's"], rows_of(times))),
            show(
                f"Only the trainer differs: {medians[1] / medians[0]:.2f} of skrl's time (bar 1.0).\n"
                f"Only the PPO differs: {medians[2] / medians[3]:.2f} times the env-steps/s (bar 1.3)."
            ),
        ]
    return paragraphs


def pendulum(framework: str, repetitions: int) -> list[str]:
    """Our PPO and skrl's under our trainer, and under skrl's if it has one for the framework."""

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
    trainers = {name: build(kind, env(), agent, 1) for name, (kind, env, agent) in contestants.items()}
    times = measure(trainers, steps=128, repetitions=repetitions)
    medians = [statistics.median(values) for values in times.values()]
    bars = (" (bar 2)", 3) if framework == "jax" else ("", 1.5)
    return [
        show(f"{framework}: Pendulum-v1 x {NUM_ENVS}, one agent: rollouts 32, 4 epochs of 4 mini-batches"),
        show(table(["what", "µs a step: median (spread)", "env-steps/s", "time / the first's"], rows_of(times))),
        show(f"Only the PPO differs: {medians[-2] / medians[-1]:.2f} times the env-steps/s{bars[0]}."),
        show(f"The agent alone, without environments (bar {bars[1]}):"),
        show(f"```\n{agents_alone(framework, repetitions)}```"),
    ]


def agents_alone(framework: str, repetitions: int) -> str:
    """Return what `profile_ppo.py` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        compare(framework, PENDULUM, num_envs=NUM_ENVS, rollouts=4, repetitions=repetitions, skrl=True)
    return printed.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=9)
    repetitions = parser.parse_args().repetitions
    torch.set_num_threads(1)
    skrl.logger.setLevel("ERROR")
    logging.getLogger("lockstep").setLevel("ERROR")
    machine = describe_machine("torch", "gymnasium", "skrl", "jax", "warp-lang")
    turns = f"{repetitions} repetitions, {3 * repetitions} of CartPole-v1"
    paragraphs = [show(f"{machine}; {turns}.")]
    paragraphs += no_op(repetitions) + cartpole(repetitions)
    for framework in ("jax", "warp"):
        paragraphs += pendulum(framework, repetitions)
    write_section("step-time", "\n\n".join(paragraphs))


if __name__ == "__main__":
    main()
