"""PyTorch agents."""

from workers.agents.ppo import PPOCfg
from workers.agents.torch.ppo import PPO

__all__ = ["PPO", "PPOCfg"]
