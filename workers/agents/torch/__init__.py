"""PyTorch agents. Imports PyTorch; imported by users, and by `workers.agents.load_ppo`."""

from workers.agents.ppo import PPOCfg
from workers.agents.torch.ppo import PPO

__all__ = ["PPO", "PPOCfg"]
