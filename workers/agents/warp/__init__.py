"""Warp agents."""

from workers.agents.ppo import PPOCfg
from workers.agents.warp.ppo import PPO

__all__ = ["PPO", "PPOCfg"]
