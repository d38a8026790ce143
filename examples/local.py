"""Two simultaneous PPO agents on 64 CartPole-v1 environments, in this process, with a loop of your own."""

from trainer.torch import StepTrainer
from workers.agents.torch import PPO
from workers.envs import make_env

TIMESTEPS = 500


def main() -> None:
    """Train, and print how many environments of each agent ended in the last step."""
    env = make_env("CartPole-v1", num_envs=64, framework="torch")
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    trainer = StepTrainer(
        env=env,
        agents=[lambda scope: PPO(**spaces, num_envs=scope.num_envs) for _ in range(2)],
        scopes=[32, 32],
        cfg={"timesteps": TIMESTEPS, "headless": True},
        seed=0,
    )
    with trainer:
        print(trainer)
        for timestep in range(TIMESTEPS):
            observations, rewards, terminated, truncated, infos = trainer.train(timestep=timestep)
        ended = terminated | truncated
    for start, stop in trainer.scopes:
        print(f"environments {start}:{stop}: {int(ended[start:stop].sum())} ended in the last step")


if __name__ == "__main__":
    main()
