"""The time that a PPO agent itself takes per timestep, ours against skrl's, at equal hyper-parameters.

Counted are `act`, `record_transition` and `post_interaction`; the environments' arrays are drawn beforehand. One
repetition is a whole number of rollouts with their updates; ours and skrl's alternate. Run it as::

    python benchmarks/profile_ppo.py --repetitions 7 --rollouts 10
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch

from workers.agents.torch import PPO

STEPS, EPOCHS, MINI_BATCHES, LEARNING_RATE = 32, 4, 4, 3e-4
BOX = gymnasium.spaces.Box
TASKS: dict[str, tuple[Any, Any]] = {
    "4 observations, 2 discrete actions": (BOX(-np.inf, np.inf, (4,), np.float32), gymnasium.spaces.Discrete(2)),
    "17 observations, 6 Gaussian actions": (BOX(-np.inf, np.inf, (17,), np.float32), BOX(-1.0, 1.0, (6,), np.float32)),
}


def make_ours(observation_space: Any, action_space: Any, num_envs: int) -> Any:
    """Our agent, with the options that skrl's is given."""
    cfg = {
        "rollouts": STEPS,
        "learning_epochs": EPOCHS,
        "mini_batches": MINI_BATCHES,
        "learning_rate": LEARNING_RATE,
        "grad_norm_clip": 0.5,
        "value_clip": 0.2,
        "normalize_observations": False,
        "normalize_values": False,
    }
    agent = PPO(observation_space=observation_space, action_space=action_space, num_envs=num_envs, cfg=cfg)
    agent.init()
    agent.enable_training_mode(True)
    return agent


def make_skrl(observation_space: Any, action_space: Any, num_envs: int) -> Any:
    """The agent of skrl with the equivalent models; imported here only."""
    from skrl.agents.torch.ppo import PPO as SkrlPPO
    from skrl.agents.torch.ppo import PPO_CFG
    from skrl.memories.torch import RandomMemory
    from skrl.models.torch import CategoricalMixin, DeterministicMixin, GaussianMixin, Model

    discrete = isinstance(action_space, gymnasium.spaces.Discrete)
    mixin = CategoricalMixin if discrete else GaussianMixin

    def perceptron(inputs: int, outputs: int) -> torch.nn.Sequential:
        hidden = (torch.nn.Linear(inputs, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh())
        return torch.nn.Sequential(*hidden, torch.nn.Linear(64, outputs))

    class Policy(mixin, Model):
        def __init__(self) -> None:
            Model.__init__(self, observation_space=observation_space, action_space=action_space, device="cpu")
            mixin.__init__(self)
            self.net = perceptron(self.num_observations, self.num_actions)
            self.log_std = None if discrete else torch.nn.Parameter(torch.zeros(self.num_actions))

        def compute(self, inputs: dict[str, Any], role: str = "") -> tuple[Any, dict[str, Any]]:
            outputs = {} if self.log_std is None else {"log_std": self.log_std}
            return self.net(inputs["observations"]), outputs

    class Value(DeterministicMixin, Model):
        def __init__(self) -> None:
            Model.__init__(self, observation_space=observation_space, action_space=action_space, device="cpu")
            DeterministicMixin.__init__(self)
            self.net = perceptron(self.num_observations, 1)

        def compute(self, inputs: dict[str, Any], role: str = "") -> tuple[Any, dict[str, Any]]:
            return self.net(inputs["observations"]), {}

    cfg = PPO_CFG(
        rollouts=STEPS,
        learning_epochs=EPOCHS,
        mini_batches=MINI_BATCHES,
        learning_rate=LEARNING_RATE,
        grad_norm_clip=0.5,
        value_clip=0.2,
        value_loss_scale=1.0,
        time_limit_bootstrap=True,
    )
    cfg.experiment.write_interval = 0
    cfg.experiment.checkpoint_interval = 0
    agent = SkrlPPO(
        models={"policy": Policy(), "value": Value()},
        memory=RandomMemory(memory_size=STEPS, num_envs=num_envs, device="cpu"),
        observation_space=observation_space,
        action_space=action_space,
        device="cpu",
        cfg=cfg,
    )
    agent.init()
    agent.enable_training_mode(True)
    return agent


def make_loop(agent: Any, observation_space: Any, num_envs: int) -> Callable[[int], dict[str, float]]:
    """A function that runs a number of timesteps and returns the milliseconds per timestep of each part."""
    generator = torch.Generator().manual_seed(0)
    width = observation_space.shape[0]
    observations = torch.randn(STEPS + 1, num_envs, width, generator=generator)
    rewards = torch.randn(STEPS, num_envs, 1, generator=generator)
    terminated = torch.rand(STEPS, num_envs, 1, generator=generator) < 0.01
    truncated = torch.rand(STEPS, num_envs, 1, generator=generator) < 0.0005

    def run(timesteps: int) -> dict[str, float]:
        seconds = dict.fromkeys(("act", "record", "update"), 0.0)
        for timestep in range(timesteps):
            row = timestep % STEPS
            clock = {"timestep": timestep, "timesteps": timesteps}
            start = time.perf_counter()
            with torch.no_grad():
                actions, _ = agent.act(observations[row], None, **clock)
                acted = time.perf_counter()
                agent.record_transition(
                    observations=observations[row],
                    states=None,
                    actions=actions,
                    rewards=rewards[row],
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
    """Print the medians of the repetitions; the median of their sums is returned."""
    totals = sorted(sum(repetition.values()) for repetition in repetitions)
    parts = "  ".join(f"{part} {statistics.median(r[part] for r in repetitions):.3f}" for part in repetitions[0])
    median = statistics.median(totals)
    print(f"  {name:5} {median:.3f} ms a timestep (from {totals[0]:.3f} to {totals[-1]:.3f}):  {parts}")
    return median


def main() -> None:
    """Measure both agents on both tasks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--rollouts", type=int, default=10, help="rollouts in one repetition")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--ours-only", action="store_true", help="do not import skrl")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    makers = {"ours": make_ours} if arguments.ours_only else {"ours": make_ours, "skrl": make_skrl}
    for task, spaces in TASKS.items():
        print(f"{task}, {arguments.num_envs} environments")
        torch.manual_seed(0)
        loops = {
            name: make_loop(make(*spaces, arguments.num_envs), spaces[0], arguments.num_envs)
            for name, make in makers.items()
        }
        results: dict[str, list[dict[str, float]]] = {name: [] for name in loops}
        for repetition, (name, loop) in itertools.product(range(-1, arguments.repetitions), loops.items()):
            timings = loop(STEPS * (2 if repetition < 0 else arguments.rollouts))
            if repetition >= 0:  # the first one warms up
                results[name].append(timings)
        medians = {name: describe(name, repetitions) for name, repetitions in results.items()}
        if "skrl" in medians:
            print(f"  skrl / ours: {medians['skrl'] / medians['ours']:.2f}")


if __name__ == "__main__":
    main()
