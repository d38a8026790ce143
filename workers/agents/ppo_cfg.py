"""Configuration of Proximal Policy Optimization."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from workers.errors import ConfigError, check_keys
from workers.types import is_integer

__all__ = ["PPOCfg", "resolve_cfg"]

ACTIVATIONS = ("tanh", "relu", "elu")
ACTION_BOUNDS = ("none", "clip", "rescale")


@dataclass(kw_only=True)
class PPOCfg:
    """Configuration of `PPO`. Fields have skrl's names where the meaning is the same."""

    rollouts: int = 32
    """Number of timesteps collected before each update."""

    learning_epochs: int = 4
    """Number of passes over the rollout in each update."""

    mini_batches: int = 4
    """Number of mini-batches in each pass. Their sizes differ by at most one sample."""

    discount_factor: float = 0.99
    """Discount factor of future rewards, from 0 to 1."""

    gae_lambda: float = 0.95
    """Lambda of Generalized Advantage Estimation, from 0 to 1."""

    learning_rate: float = 3e-4
    """Adam's learning rate; only the initial value if `kl_threshold` is positive."""

    grad_norm_clip: float = 0.5
    """Maximum norm of the gradient of all parameters together; 0 disables clipping."""

    ratio_clip: float = 0.2
    """How far the probability ratio may move from 1; beyond that, the policy loss does not push it further."""

    value_clip: float = 0.0
    """Clipping range of the value loss: the change of the critic's output since the rollout is clipped to this range,
    and the larger of the clipped and the unclipped loss is used, as in OpenAI Baselines. 0 disables clipping. It is
    in units of the critic's output: of normalised returns if `normalize_values` is true. Off by default because it
    tends to slow learning (Andrychowicz et al., https://arxiv.org/abs/2006.05990).
    """

    entropy_loss_scale: float = 0.0
    """Weight of the policy's entropy bonus in the loss."""

    value_loss_scale: float = 1.0
    """Weight of the critic's mean squared error in the loss."""

    kl_threshold: float | None = 0.0
    """Target KL divergence of each epoch. The learning rate is lowered after epochs with more than twice this
    divergence and raised after epochs with less than half of it (see `adapt_learning_rate`). 0 or None keeps the
    learning rate constant.
    """

    hidden_sizes: tuple[int, ...] = (64, 64)
    """Number of units of each hidden layer, for both the policy and the critic."""

    activation: str = "tanh"
    """Activation of the hidden layers: ``"tanh"``, ``"relu"`` or ``"elu"``."""

    initial_log_std: float = 0.0
    """Initial logarithm of the standard deviation of a Gaussian policy."""

    action_bounds: str = "rescale"
    """What the environment gets if the action space is a Box. ``"none"``: the policy's actions. ``"clip"``: these,
    clipped to the bounds. ``"rescale"``: these, clipped to [-1, 1] and mapped affinely onto the bounds. Elements
    without bounds pass unchanged; ``"rescale"`` refuses a single bound. Mean actions are treated in the same way. The
    policy learns from its own actions in each case. A loaded state replaces this value. The default is ``"rescale"``
    because an initial standard deviation of 1 then suits bounds such as [10, 20] and [-0.01, 0.01], no action leaves
    the space, and for [-1, 1] it equals ``"clip"``.
    """

    normalize_observations: bool = True
    """Whether to normalise observations and states by their running mean and variance."""

    normalize_values: bool = True
    """Whether the critic predicts returns that are normalised by their running mean and variance."""

    def validate(self) -> bool:
        """Check every value.

        Returns:
            True if every value is valid.

        Raises:
            ConfigError: A value is invalid; the message names it and what is expected.
        """
        for name in ("rollouts", "learning_epochs", "mini_batches"):
            _check(is_integer(getattr(self, name)) and getattr(self, name) >= 1, self, name, "an integer >= 1")
        for name in ("discount_factor", "gae_lambda"):
            _check(_is_number(getattr(self, name)) and 0 <= getattr(self, name) <= 1, self, name, "a number in [0, 1]")
        for name in ("learning_rate", "ratio_clip"):
            _check(_is_number(getattr(self, name)) and getattr(self, name) > 0, self, name, "a number > 0")
        for name in ("grad_norm_clip", "value_clip", "entropy_loss_scale", "value_loss_scale"):
            _check(_is_number(getattr(self, name)) and getattr(self, name) >= 0, self, name, "a number >= 0")
        threshold = self.kl_threshold
        _check(threshold is None or (_is_number(threshold) and threshold >= 0), self, "kl_threshold", "None or >= 0")
        _check(_is_number(self.initial_log_std), self, "initial_log_std", "a finite number")
        for name, values in (("activation", ACTIVATIONS), ("action_bounds", ACTION_BOUNDS)):
            _check(getattr(self, name) in values, self, name, f"one of {', '.join(map(repr, values))}")
        sizes = self.hidden_sizes
        valid = isinstance(sizes, tuple | list) and all(is_integer(size) and size >= 1 for size in sizes)
        _check(valid, self, "hidden_sizes", "a tuple of integers >= 1")
        for name in ("normalize_observations", "normalize_values"):
            _check(isinstance(getattr(self, name), bool), self, name, "True or False")
        return True


def _is_number(value: Any) -> bool:
    return (is_integer(value) or isinstance(value, float)) and math.isfinite(value)


def _check(valid: bool, cfg: PPOCfg, name: str, expected: str) -> None:
    if not valid:
        raise ConfigError(f"PPOCfg.{name} is {getattr(cfg, name)!r}; expected {expected}")


def resolve_cfg(cfg: PPOCfg | Mapping[str, Any] | None) -> PPOCfg:
    """Return a validated copy of `cfg`, so that it is not shared with the caller."""
    if isinstance(cfg, Mapping):
        check_keys(cfg, [field.name for field in fields(PPOCfg)], "PPOCfg")
        cfg = PPOCfg(**cfg)
    elif cfg is None:
        cfg = PPOCfg()
    elif not isinstance(cfg, PPOCfg):
        raise ConfigError(f"cfg is a {type(cfg).__name__}; expected a PPOCfg or a dictionary")
    cfg.validate()
    return replace(cfg, hidden_sizes=tuple(cfg.hidden_sizes))
