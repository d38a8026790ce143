"""RLlib's PPO on its new API stack, with two env runners and the learner in the main process."""

from __future__ import annotations

from typing import Any

import ray
import torch
from protocol import (
    ENV_ID,
    EPOCHS,
    GAMMA,
    GRAD_CLIP,
    LAMBDA,
    LEARNING_RATE,
    MINI_BATCHES,
    NUM_ENVS,
    RATIO_CLIP,
    ROLLOUTS,
    STEPS,
    WORKERS,
    serve,
)
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

BATCH = NUM_ENVS * STEPS


def make_config() -> PPOConfig:
    model = DefaultModelConfig(
        fcnet_hiddens=[64, 64], fcnet_activation="tanh", vf_share_layers=False, free_log_std=True
    )
    return (
        PPOConfig()
        .environment(ENV_ID)
        .env_runners(
            num_env_runners=WORKERS, num_envs_per_env_runner=NUM_ENVS // WORKERS, rollout_fragment_length=STEPS
        )
        .learners(num_learners=0)
        .training(
            train_batch_size_per_learner=BATCH,
            minibatch_size=BATCH // MINI_BATCHES,
            num_epochs=EPOCHS,
            lr=LEARNING_RATE,
            gamma=GAMMA,
            lambda_=LAMBDA,
            clip_param=RATIO_CLIP,
            grad_clip=GRAD_CLIP,
            vf_loss_coeff=1.0,
            entropy_coeff=0.0,
            use_kl_loss=False,
        )
        .rl_module(model_config=model)
        .debugging(log_level="ERROR")
    )


def checked(result: dict[str, Any]) -> int:
    """Check the size of an iteration, and return its environment steps.

    RLlib appends a masked row to every episode for its estimates, and trains until the last epoch is complete, so that
    it does one more mini-batch than the others.
    """
    env_steps = int(result["env_runners"]["num_env_steps_sampled"])
    trained = int(result["learners"]["default_policy"]["num_module_steps_trained"])
    updates = trained * MINI_BATCHES / BATCH
    assert env_steps == BATCH, env_steps
    assert EPOCHS * MINI_BATCHES <= updates <= EPOCHS * MINI_BATCHES + 1, updates
    return env_steps


def main() -> None:
    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=WORKERS, include_dashboard=False, logging_level="warning")
    algorithm = make_config().build_algo()
    try:
        serve(lambda: sum(checked(algorithm.train()) for _ in range(ROLLOUTS)), "ray", "torch", "gymnasium", "mujoco")
    finally:
        algorithm.stop()
        ray.shutdown()


if __name__ == "__main__":
    main()
