"""Two simultaneous PPO agents on 64 CartPole-v1 environments, each in a Ray actor with its environments."""

from trainer.torch import StepTrainer
from workers.agents.torch import PPO
from workers.envs import make_env

TIMESTEPS = 500


def main() -> None:
    """Train, and print how many episodes of each agent ended."""
    env = make_env("CartPole-v1", num_envs=64, framework="torch")
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    trainer = StepTrainer(
        env=env,
        agents=[lambda scope: PPO(**spaces, num_envs=scope.num_envs) for _ in range(2)],
        scopes=[32, 32],
        cfg={"timesteps": TIMESTEPS, "headless": True},
        orchestrator="ray",
        seed=0,
    )
    with trainer:
        print(trainer)
        # like `train()` in a loop, but the workers do the next iteration while the loop body runs
        ended = 0
        for _, _, terminated, truncated, _ in trainer.iterate(TIMESTEPS, timestep=0):
            ended = ended + (terminated | truncated).int()
    for start, stop in trainer.scopes:
        print(f"environments {start}:{stop}: {int(ended[start:stop].sum())} episodes")


if __name__ == "__main__":
    main()
