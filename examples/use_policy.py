"""Act with a trained policy of a run directory, without a trainer.

Usage: ``python examples/use_policy.py RUN_DIR [ENV_ID]``; the environment is CartPole-v1 by default.
"""

import sys

import gymnasium

from trainer.policies import load_agent


def main(run_dir: str, env_id: str = "CartPole-v1") -> None:
    """Play one episode with the first simultaneous agent of a run, and print its return."""
    agent = load_agent(run_dir)
    env = gymnasium.make(env_id)
    observation, _ = env.reset(seed=0)
    episode_return, over = 0.0, False
    while not over:
        observation, reward, terminated, truncated, _ = env.step(agent.predict(observation))
        episode_return += float(reward)
        over = terminated or truncated
    print(f"return {episode_return}")


if __name__ == "__main__":
    main(*sys.argv[1:])
