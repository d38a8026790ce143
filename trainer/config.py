"""StepTrainerCfg: the configuration of a step trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypedDict

from workers.errors import ConfigError, check_keys
from workers.types import is_integer

__all__ = ["StepTrainerCfg", "StepTrainerCfgDict", "resolve_cfg"]


@dataclass(kw_only=True)
class StepTrainerCfg:
    """Configuration of a step trainer."""

    timesteps: int = 100000
    """Number of timesteps to train or evaluate for."""

    headless: bool = False
    """Whether rendering is off: ``env.render()`` is never called."""

    render_interval: int = 1
    """Number of timesteps between renders; ignored if headless."""

    disable_progressbar: bool | None = False
    """Whether to hide the progress bar. None: hide it if the output is not a terminal."""

    close_environment_at_exit: bool = True
    """Whether to close the environment with the trainer, at the latest on normal program termination."""

    environment_info: str = "episode"
    """Key of ``infos`` whose scalars are logged: those of a dictionary, or a number itself."""

    stochastic_evaluation: bool = False
    """Whether to evaluate with sampled actions instead of mean actions."""

    def validate(self) -> bool:
        """Check all values.

        Returns:
            True.

        Raises:
            ConfigError: A value is invalid; the message names it, with what was given and what is expected.
        """
        self._check("timesteps", is_integer(self.timesteps) and self.timesteps >= 0, "an integer of at least 0")
        self._check(
            "render_interval",
            is_integer(self.render_interval) and self.render_interval >= 1,
            "an integer of at least 1",
        )
        for name in ("headless", "close_environment_at_exit", "stochastic_evaluation"):
            self._check(name, isinstance(getattr(self, name), bool), "True or False")
        self._check(
            "disable_progressbar",
            self.disable_progressbar is None or isinstance(self.disable_progressbar, bool),
            "True, False or None",
        )
        self._check("environment_info", isinstance(self.environment_info, str), "a string")
        return True

    def expand(self) -> None:
        """Derive values from other values. There are none."""

    def _check(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise ConfigError(f"cfg: {name} is {getattr(self, name)!r}; expected {expected}")


class StepTrainerCfgDict(TypedDict, total=False):
    """Dictionary with any of the fields of `StepTrainerCfg`, for type checkers."""

    timesteps: int
    headless: bool
    render_interval: int
    disable_progressbar: bool | None
    close_environment_at_exit: bool
    environment_info: str
    stochastic_evaluation: bool


def resolve_cfg(cfg: StepTrainerCfg | StepTrainerCfgDict | Mapping[str, Any]) -> StepTrainerCfg:
    """Return the validated configuration.

    Raises:
        ConfigError: `cfg` is not a configuration, has unknown keys, or has invalid values.
    """
    if isinstance(cfg, Mapping):
        check_keys(cfg, [field.name for field in fields(StepTrainerCfg)], "cfg")
        cfg = StepTrainerCfg(**cfg)
    if not isinstance(cfg, StepTrainerCfg):
        kind = f"{type(cfg).__module__}.{type(cfg).__qualname__}"
        raise ConfigError(f"cfg is of type {kind}; expected Lockstep's StepTrainerCfg or a dictionary")
    cfg.validate()
    cfg.expand()
    return cfg
