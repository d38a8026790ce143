"""Time of a step with the checks of what environments give, and without them; the contestants take turns.

Without them, Gymnasium's own `SyncVectorEnv` steps the copies, so the outputs of single copies are neither checked nor
copied before a reset, and `EnvChecks` does not check kinds, shapes and finiteness of a step's arrays. Both have the
conversion to flat arrays, with its checks of shapes and categories, and the checks of the number of values and of the
type of infos. `make bench` runs this script, which writes its section of RESULTS.md.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NPROC", "1")

import argparse
import contextlib
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gymnasium
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from contestants import make_ours
from measuring import CFG, ratios, take_turns, timed
from no_op import NoOpAgent, NoOpEnv
from report import describe_machine, spread, table, write_section

from trainer.torch import StepTrainer
from workers.envs import copies, make_env
from workers.envs import gymnasium as gymnasium_wrapper
from workers.envs.outputs import EnvChecks
from workers.scope import env_slice
from workers.types import Outcome, Transition

NUM_ENVS = 64


class NoChecks(EnvChecks):
    """Only puts the true final observations in their place."""

    def check_reset(self, *_: Any) -> None:
        pass

    def transition(self, outcome: Outcome, states: Any, *, step_time: float = 0.0, **_: Any) -> Transition:
        observations, rewards, terminated, truncated, infos = outcome
        if "_final_obs" in infos:
            observations = self._framework.select(infos["_final_obs"], infos["final_obs"], observations)
        return Transition(rewards, observations, states, terminated, truncated, infos, step_time)


@contextlib.contextmanager
def without_checks() -> Iterator[None]:
    """Build environments and trainers without checks."""
    with contextlib.ExitStack() as patches:
        patches.enter_context(patch.object(env_slice, "EnvChecks", NoChecks))
        for module in (copies, gymnasium_wrapper):
            patches.enter_context(patch.object(module, "check_copies", lambda env: env))
        yield


def cartpole_agent(num_envs: int) -> Any:
    spaces = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32), gymnasium.spaces.Discrete(2)
    return make_ours("torch", *spaces, num_envs)


def cartpole() -> Callable[[], Any]:
    """Return ``train()`` with our environment and PPO."""
    env = make_env("CartPole-v1", num_envs=NUM_ENVS, framework="torch")
    return StepTrainer(env=env, agents=[cartpole_agent(NUM_ENVS)], cfg=CFG).train


def environments() -> Callable[[], Any]:
    """Return a step of the environments alone."""
    env = make_env("CartPole-v1", num_envs=NUM_ENVS, framework="torch")
    actions = torch.arange(NUM_ENVS)[:, None] % 2
    env.reset(seed=0)
    return lambda: env.step(actions)


def no_op() -> Callable[[], Any]:
    """Return ``train()`` with an environment and an agent that do nothing."""
    return StepTrainer(env=NoOpEnv(NUM_ENVS), agents=[NoOpAgent(NUM_ENVS)], cfg=CFG).train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=27)
    repetitions = parser.parse_args().repetitions
    torch.set_num_threads(1)
    rows = []
    for name, build, steps in (
        ("CartPole-v1 x 64, one agent, train()", cartpole, 128),
        ("CartPole-v1 x 64, the environments alone", environments, 512),
        ("no-op environment and agent, train()", no_op, 3000),
    ):
        checked = build()
        with without_checks():
            unchecked = build()
        times = take_turns({"with": timed(checked, steps), "without": timed(unchecked, steps)}, repetitions)
        medians = [statistics.median(values) for values in times.values()]
        ratio = spread(ratios(times["with"], times["without"]), 3)
        rows.append([name, *map(spread, times.values()), f"{medians[0] - medians[1]:.1f}", ratio])
        print(rows[-1], flush=True)
    text = table(["µs a step", "with the checks", "without", "difference", "ratio, turn by turn"], rows)
    machine = describe_machine("torch", "gymnasium")
    write_section("check-cost", f"{machine}; {repetitions} repetitions.\n\n{text}")


if __name__ == "__main__":
    main()
