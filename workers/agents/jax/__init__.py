"""JAX agents. Imports JAX; imported by users, and by `workers.agents.load_ppo`."""

from workers.agents.jax.ppo import PPO
from workers.agents.ppo import PPOCfg

__all__ = ["PPO", "PPOCfg"]
