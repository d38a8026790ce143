"""Ours: two simultaneous PPO agents in this process or in two Ray actors, with a call per step or per repetition."""

from __future__ import annotations

import sys
from typing import Any

import ray
import torch
from contestants import make_ours
from protocol import ENV_ID, ENV_STEPS, NUM_ENVS, TIMESTEPS, WORKERS, serve

from trainer.torch import StepTrainer
from workers.envs import make_env


def make_trainer(orchestrator: str) -> StepTrainer:
    env = make_env(ENV_ID, num_envs=NUM_ENVS, framework="torch")
    spaces = env.observation_space, env.action_space

    def make_agent(scope: Any) -> Any:
        return make_ours("torch", *spaces, scope.num_envs)

    return StepTrainer(
        env=env,
        agents=[make_agent] * WORKERS,
        scopes=[NUM_ENVS // WORKERS] * WORKERS,
        cfg={"headless": True, "disable_progressbar": True},
        orchestrator=orchestrator,
    )


def main(orchestrator: str, method: str) -> None:
    torch.set_num_threads(1)
    if orchestrator == "ray":
        ray.init(address="local", num_cpus=WORKERS, include_dashboard=False, logging_level="warning")
    with make_trainer(orchestrator) as trainer:

        def repeat() -> int:
            if method == "run":
                trainer.run(TIMESTEPS)
            else:
                for _ in range(TIMESTEPS):
                    trainer.train()
            return ENV_STEPS

        serve(repeat, "lockstep-rl", "ray", "torch", "gymnasium", "mujoco")
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
