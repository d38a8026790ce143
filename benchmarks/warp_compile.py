"""CPU time to compile everything that the Warp PPO runs on a GPU, for sm_90; no GPU is needed.

A Gaussian and a categorical agent learn on the CPU in the way that they do on a GPU. Each module of which they launch a
kernel is then compiled, for the number of threads in a block with which it is launched on a GPU. Prints a line for
each: CPU seconds (children included), threads in a block, kernels. Usage::

    python benchmarks/warp_compile.py [folder for what is compiled]
"""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import warp as wp
from gymnasium.spaces import Box, Discrete, Space

from workers.agents.warp import PPO, kernels

OBSERVATIONS = Box(-np.inf, np.inf, (5,))
ACTIONS: list[Space[Any]] = [Box(-1.0, 1.0, (2,)), Discrete(3)]
ENVS = 4


def watch(name: str, used: dict[tuple[str, int], wp.Module]) -> None:
    """Make a launch function of Warp note each module and its threads in a block, as on a GPU."""
    launch = getattr(wp, name)

    def launch_and_note(kernel: wp.Kernel, *arguments: Any, **options: Any) -> Any:
        used[kernel.module.name, options.get("block_dim", 256)] = kernel.module
        return launch(kernel, *arguments, **options)

    setattr(wp, name, launch_and_note)


def learn(actions: Space[Any]) -> None:
    """Do two rollouts and updates: the first call of everything, and the graphs of the second."""
    cfg = {"rollouts": 4, "mini_batches": 2, "hidden_sizes": (8,), "kl_threshold": 0.01}
    agent = PPO(observation_space=OBSERVATIONS, action_space=actions, num_envs=ENVS, cfg=cfg)
    agent.init()
    agent.enable_training_mode(True)
    observations, rewards = wp.ones((ENVS, 5), dtype=float), wp.ones((ENVS, 1), dtype=float)
    flags = wp.ones((ENVS, 1), dtype=wp.bool)
    for timestep in range(8):
        clock = {"timestep": timestep, "timesteps": 8}
        taken, _ = agent.act(observations, None, **clock)
        agent.record_transition(
            observations=observations,
            states=None,
            actions=taken,
            rewards=rewards,
            next_observations=observations,
            next_states=None,
            terminated=flags,
            truncated=flags,
            infos={},
            **clock,
        )
        agent.post_interaction(**clock)


def cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def compile_all(used: dict[tuple[str, int], wp.Module], folder: Path) -> None:
    """Compile the modules and print a line for each, and their sum."""
    total = 0.0
    for number, ((_, threads), module) in enumerate(used.items()):
        module.options["block_dim"] = threads
        module.mark_modified()
        start = cpu_seconds()
        wp.compile_aot_module(module, device=None, arch=90, module_dir=folder / str(number))
        seconds = cpu_seconds() - start
        total += seconds
        print(f"{seconds:6.2f} s  {threads:4}  {' '.join(module.kernels)}", flush=True)
    print(f"{total:6.2f} s  all {len(used)} modules")


def main() -> None:
    kernels.on_host = lambda device: False  # tiles and launches as on a GPU
    wp.config.log_level = wp.LOG_WARNING
    used: dict[tuple[str, int], wp.Module] = {}
    for name in ("launch", "launch_tiled"):
        watch(name, used)
    for actions in ACTIONS:
        learn(actions)
    with tempfile.TemporaryDirectory() as folder:
        compile_all(used, Path(sys.argv[1] if len(sys.argv) > 1 else folder))


if __name__ == "__main__":
    main()
