"""Act with a trained policy of a run directory, without a trainer.

Usage: ``python examples/use_policy.py RUN_DIR``.
"""

import sys

import gymnasium
import torch
import yaml

from workers.agents.torch import PPO


def main(run_dir: str) -> None:
    """Play one episode with the first simultaneous agent of a run, and print its return."""
    with open(f"{run_dir}/config.yaml", encoding="utf-8") as file:
        config = yaml.safe_load(file)
    env = gymnasium.make(config["env"]["id"], **config["env"]["kwargs"])
    agent = PPO(
        observation_space=env.observation_space,
        action_space=env.action_space,
        num_envs=1,
        cfg=config["agents"][0]["cfg"],
    )
    agent.load(f"{run_dir}/agents/0/state.safetensors")
    agent.enable_training_mode(False)
    observation, _ = env.reset(seed=0)
    episode_return, over = 0.0, False
    while not over:
        rows = torch.tensor(observation, dtype=torch.float32).reshape(1, -1)
        _, outputs = agent.act(rows, None, timestep=0, timesteps=1)
        observation, reward, terminated, truncated, _ = env.step(int(outputs["mean_actions"]))  # a Discrete action
        episode_return += float(reward)
        over = terminated or truncated
    print(f"return {episode_return}")


if __name__ == "__main__":
    main(sys.argv[1])
