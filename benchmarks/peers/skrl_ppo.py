"""Two of skrl's PPO agents as simultaneous agents, under skrl's StepTrainer or ParallelTrainer."""

from __future__ import annotations

import sys

import gymnasium
import skrl
import torch
from contestants import make_skrl
from protocol import ENV_ID, ENV_STEPS, NUM_ENVS, TIMESTEPS, WORKERS, serve
from skrl.envs.wrappers.torch import wrap_env
from skrl.trainers.torch import StepTrainer
from skrl_parallel import ParallelTrainerProcess

PACKAGES = "skrl", "torch", "gymnasium", "mujoco"


def make_step_trainer() -> StepTrainer:
    env = gymnasium.make_vec(ENV_ID, num_envs=NUM_ENVS, vectorization_mode="sync")
    env = wrap_env(env, wrapper="gymnasium", verbose=False)
    scopes = [NUM_ENVS // WORKERS] * WORKERS
    agents = [make_skrl("torch", env.observation_space, env.action_space, size) for size in scopes]
    return StepTrainer(env=env, agents=agents, scopes=scopes, cfg={"headless": True, "disable_progressbar": True})


def serve_step_trainer() -> None:
    trainer = make_step_trainer()

    def repeat() -> int:
        for _ in range(TIMESTEPS):
            trainer.train()
        return ENV_STEPS

    serve(repeat, *PACKAGES)


def serve_parallel_trainer() -> None:
    with ParallelTrainerProcess(ENV_ID, NUM_ENVS, TIMESTEPS) as process:

        def repeat() -> int:
            process.measure()
            return ENV_STEPS

        serve(repeat, *PACKAGES)


def main(trainer: str) -> None:
    torch.set_num_threads(1)
    skrl.logger.setLevel("ERROR")
    if trainer == "step":
        serve_step_trainer()
    else:
        serve_parallel_trainer()


if __name__ == "__main__":
    main(sys.argv[1])
