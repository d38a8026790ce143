"""Configuration of Proximal Policy Optimization."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from workers.errors import ConfigError

__all__ = ["PPOCfg", "resolve_cfg"]

ACTIVATIONS = ("tanh", "relu", "elu")


@dataclass(kw_only=True)
class PPOCfg:
    """Configuration of `PPO`. Names are skrl's where the meaning is equal."""

    rollouts: int = 32
    """Timesteps gathered between two updates."""

    learning_epochs: int = 4
    """Passes over the rollout in one update."""

    mini_batches: int = 4
    """Mini-batches in one pass; their sizes differ by at most one sample."""

    discount_factor: float = 0.99
    """Weight of future rewards, 0 to 1."""

    gae_lambda: float = 0.95
    """Lambda of Generalized Advantage Estimation, 0 to 1."""

    learning_rate: float = 3e-4
    """Adam's learning rate, the initial one where `kl_threshold` adapts it."""

    grad_norm_clip: float = 0.5
    """Largest norm of the gradient of all parameters together; 0 for no limit."""

    ratio_clip: float = 0.2
    """How far the probability ratio may move from 1 before its gradient is cut."""

    value_clip: float = 0.0
    """How far the critic's output may move from that at the rollout before its gradient is cut, as in OpenAI Baselines
    (the larger of the clipped and the unclipped loss counts); 0 for no limit. It is in the units of the critic's
    output: of normalised returns where `normalize_values`. Off by default: it tends to slow learning (Andrychowicz et
    al., https://arxiv.org/abs/2006.05990).
    """

    entropy_loss_scale: float = 0.0
    """Weight of the policy's entropy."""

    value_loss_scale: float = 1.0
    """Weight of the critic's mean squared error."""

    kl_threshold: float | None = 0.0
    """Target of the KL divergence per epoch, to which the learning rate adapts (see `adapt_learning_rate`); 0 or None
    keeps the learning rate.
    """

    hidden_sizes: tuple[int, ...] = (64, 64)
    """Units of each hidden layer, the same for policy and critic."""

    activation: str = "tanh"
    """``"tanh"``, ``"relu"`` or ``"elu"``."""

    initial_log_std: float = 0.0
    """Initial logarithm of a Gaussian policy's standard deviation."""

    normalize_observations: bool = True
    """Whether observations and states are normalised by their running mean and variance."""

    normalize_values: bool = True
    """Whether the critic predicts returns normalised by their running mean and variance."""

    def validate(self) -> bool:
        """True if every value is right; else a `ConfigError` that says what was given and what is expected."""
        for name in ("rollouts", "learning_epochs", "mini_batches"):
            _check(_is_int(getattr(self, name)) and getattr(self, name) >= 1, self, name, "an integer >= 1")
        for name in ("discount_factor", "gae_lambda"):
            _check(_is_number(getattr(self, name)) and 0 <= getattr(self, name) <= 1, self, name, "a number in [0, 1]")
        for name in ("learning_rate", "ratio_clip"):
            _check(_is_number(getattr(self, name)) and getattr(self, name) > 0, self, name, "a number > 0")
        for name in ("grad_norm_clip", "value_clip", "entropy_loss_scale", "value_loss_scale"):
            _check(_is_number(getattr(self, name)) and getattr(self, name) >= 0, self, name, "a number >= 0")
        threshold = self.kl_threshold
        _check(threshold is None or (_is_number(threshold) and threshold >= 0), self, "kl_threshold", "None or >= 0")
        _check(_is_number(self.initial_log_std), self, "initial_log_std", "a finite number")
        _check(self.activation in ACTIVATIONS, self, "activation", f"one of {', '.join(map(repr, ACTIVATIONS))}")
        sizes = self.hidden_sizes
        valid = isinstance(sizes, tuple | list) and all(_is_int(size) and size >= 1 for size in sizes)
        _check(valid, self, "hidden_sizes", "a tuple of integers >= 1")
        for name in ("normalize_observations", "normalize_values"):
            _check(isinstance(getattr(self, name), bool), self, name, "True or False")
        return True


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check(valid: bool, cfg: PPOCfg, name: str, expected: str) -> None:
    if not valid:
        raise ConfigError(f"PPOCfg.{name} must be {expected}, got {getattr(cfg, name)!r}")


def resolve_cfg(cfg: PPOCfg | Mapping[str, Any] | None) -> PPOCfg:
    """A validated copy of `cfg`, so that the caller's is never shared."""
    if isinstance(cfg, Mapping):
        names = [field.name for field in fields(PPOCfg)]
        unknown = [str(key) for key in cfg if key not in names]
        if unknown:
            raise ConfigError(f"unknown PPO options {', '.join(unknown)}; valid options are {', '.join(names)}")
        cfg = PPOCfg(**cfg)
    elif cfg is None:
        cfg = PPOCfg()
    elif not isinstance(cfg, PPOCfg):
        raise ConfigError(f"cfg must be a PPOCfg or a dict, got {type(cfg).__name__}")
    cfg.validate()
    return replace(cfg, hidden_sizes=tuple(cfg.hidden_sizes))
