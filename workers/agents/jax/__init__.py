"""JAX agents."""

from workers.agents.jax.ppo import PPO
from workers.agents.ppo import PPOCfg

__all__ = ["PPO", "PPOCfg"]
