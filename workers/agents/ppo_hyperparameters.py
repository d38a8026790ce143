"""The framework-independent hyper-parameters of PPO agents that may change during a run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from numbers import Real
from typing import Any

from workers.agents.plain_data import fitting
from workers.agents.ppo_saving import PPOSaving
from workers.errors import AgentError

__all__ = ["HYPERPARAMETERS", "PPOHyperparameters"]

HYPERPARAMETERS = (
    "learning_rate",
    "discount_factor",
    "gae_lambda",
    "grad_norm_clip",
    "ratio_clip",
    "value_clip",
    "entropy_loss_scale",
    "value_loss_scale",
    "kl_threshold",
)
"""The numbers of `PPOCfg` on which neither the networks nor the shape of a rollout depend."""


class PPOHyperparameters(PPOSaving):
    """The part of `workers.agents.ppo.PPO` that changes hyper-parameters during a run.

    The learning rate is a part of `state_dict`; a snapshot holds what else has been changed.
    """

    def __init__(self, **spaces: Any) -> None:
        super().__init__(**spaces)
        self._initial: dict[str, float | None] = {}  # the values of `cfg` that were replaced

    def hyperparameters(self) -> dict[str, float]:
        """Return the numbers of `PPOCfg` that `set_hyperparameters` changes, by name.

        ``"learning_rate"`` is the current one. A ``"kl_threshold"`` of 0 keeps it constant.
        """
        values = {name: float(getattr(self.cfg, name) or 0.0) for name in HYPERPARAMETERS}
        return values | {"learning_rate": float(self.learning_rate)}

    def set_hyperparameters(self, values: Mapping[str, float]) -> None:
        """Change some hyper-parameters between two iterations; the rollout in progress goes on.

        In JAX, the next calls compile for the new values, unless only the learning rate changes.

        Args:
            values: New values by name, of those that `hyperparameters` returns.

        Raises:
            AgentError: A name is unknown, or a value is no number. The agent remains unchanged.
            ConfigError: `PPOCfg` does not allow a value. The agent remains unchanged.
        """
        numbers = self._checked_numbers(values)
        self.learning_rate = numbers.pop("learning_rate", self.learning_rate)  # reads the last update, with `cfg` as is
        self._use_numbers(numbers)

    def snapshot(self) -> dict[str, Any]:
        """Return copies of the whole state between two iterations; see `PPOSaving`.

        Returns:
            Also ``"hyperparameters"``, where `set_hyperparameters` has changed values of ``cfg``: these.
        """
        now = {name: getattr(self.cfg, name) for name in self._initial}
        changed = {name: value for name, value in now.items() if value != self._initial[name]}
        return super().snapshot() | ({"hyperparameters": changed} if changed else {})

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a snapshot of an agent that was built alike; see `Learner`."""
        with fitting("snapshot"):
            given = {**state}
            numbers = self._checked_numbers(given.pop("hyperparameters", {}))
        super().restore(given)
        self._use_numbers(self._initial | numbers)

    def _checked_numbers(self, values: Mapping[str, float]) -> dict[str, Any]:
        """Return new values of `cfg` as floats.

        Raises:
            AgentError: See `set_hyperparameters`.
            ConfigError: See `set_hyperparameters`.
        """
        for name, value in dict(values).items():
            if name not in HYPERPARAMETERS:
                raise AgentError(f"{name!r} cannot be changed during a run; expected one of {list(HYPERPARAMETERS)}")
            if isinstance(value, bool) or not isinstance(value, Real):
                raise AgentError(f"the hyper-parameter {name!r} is {value!r}; expected a number")
        numbers: dict[str, Any] = {name: float(value) for name, value in values.items()}
        replace(self.cfg, **numbers).validate()
        return numbers

    def _use_numbers(self, numbers: Mapping[str, Any]) -> None:
        """Replace values of `cfg`, and what has been compiled for others."""
        before = {name: getattr(self.cfg, name) for name in numbers}
        if before == numbers:
            return
        self._initial = before | self._initial
        self.cfg = replace(self.cfg, **numbers)
        self._forget_compiled()

    @abstractmethod
    def _forget_compiled(self) -> None:
        """Compile or capture with the values of `cfg` again, when it is next needed."""
