"""The main job: two simultaneous PPO agents learn CartPole-v1, in one process or in Ray actors, with the same numbers.

Trains both on 64 environments (32 each), then evaluates them deterministically in this process on environments with
fresh seeds, and prints one line per agent: its mean return over 100 episodes, and the SHA-256 of its weights.
"""

import argparse
import hashlib
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one compute thread per worker, in every mode: before torch is imported

import torch

from trainer.torch import StepTrainer
from workers.agents.torch import PPO, PPOCfg
from workers.envs import make_env
from workers.types import Scope

SCOPES = [32, 32]
TIMESTEPS = 10_000
EPISODES = 100
EPISODE_LENGTH = 500
EVALUATION_SEED = 1_000_000  # far from the seeds of training: environment i has seed + i
CFG = PPOCfg(rollouts=256, mini_batches=8, learning_rate=1e-3, kl_threshold=0.008, normalize_observations=False)


def main() -> None:
    """Train, evaluate and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orchestrator", choices=["local", "ray"], default="local")
    parser.add_argument("--timesteps", type=int, default=TIMESTEPS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    env = make_env("CartPole-v1", num_envs=sum(SCOPES), framework="torch")

    def agent(scope: Scope) -> PPO:
        return PPO(
            observation_space=env.observation_space,
            action_space=env.action_space,
            num_envs=scope.num_envs,
            cfg=CFG,
        )

    trainer = StepTrainer(
        env=env,
        agents=[agent, agent],
        scopes=SCOPES,
        cfg={"timesteps": options.timesteps, "headless": True},
        orchestrator=options.orchestrator,
        seed=options.seed,
    )
    with trainer:
        for timestep in range(options.timesteps):
            trainer.train(timestep=timestep)
        agents = trainer.agents
    returns = evaluate(agents)
    for index, (trained, mean_return) in enumerate(zip(agents, returns, strict=True)):
        print(f"agent {index} return {mean_return:.2f} weights {digest(trained)}")


def evaluate(agents: list[PPO]) -> list[float]:
    """Mean return of each agent over its first episode in each of `EPISODES` environments of its own."""
    num_envs = EPISODES * len(agents)
    returns, running = torch.zeros(num_envs, 1), torch.ones(num_envs, 1, dtype=torch.bool)
    trainer = StepTrainer(
        env=make_env("CartPole-v1", num_envs=num_envs, framework="torch"),
        agents=agents,
        scopes=[EPISODES] * len(agents),
        cfg={"timesteps": EPISODE_LENGTH, "headless": True, "disable_progressbar": True},
        seed=EVALUATION_SEED,
    )
    with trainer:
        for timestep in range(EPISODE_LENGTH):
            _, rewards, terminated, truncated, _ = trainer.eval(timestep=timestep)
            returns += rewards * running
            running &= ~(terminated | truncated)
    return [part.mean().item() for part in returns.split(EPISODES)]


def digest(agent: PPO) -> str:
    """SHA-256 of an agent's weights and normalisers, in the order of their names."""
    tensors = agent.state_dict()["models"]
    return hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))).hexdigest()


if __name__ == "__main__":
    main()
