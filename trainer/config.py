"""StepTrainerCfg: the configuration of a step trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypedDict

from workers.errors import ConfigError

__all__ = ["StepTrainerCfg", "StepTrainerCfgDict", "resolve_cfg"]


@dataclass(kw_only=True)
class StepTrainerCfg:
    """Configuration of a step trainer."""

    timesteps: int = 100000
    """Number of timesteps to train/evaluate for."""

    headless: bool = False
    """When True, ``env.render()`` is never called."""

    render_interval: int = 1
    """Timesteps between renders; only effective when not headless."""

    disable_progressbar: bool | None = False
    """Whether to show no progress bar. None: disabled when the output is no terminal."""

    close_environment_at_exit: bool = True
    """Whether to close the environment on normal program termination."""

    environment_info: str = "episode"
    """Key of ``infos`` whose scalars are logged."""

    stochastic_evaluation: bool = False
    """Whether to evaluate with sampled actions rather than mean actions."""

    def validate(self) -> bool:
        """Check all values.

        Returns:
            True.

        Raises:
            ConfigError: A value is wrong; the message says which, what was given and what is expected.
        """
        self._check("timesteps", _is_integer(self.timesteps) and self.timesteps >= 0, "an integer of at least 0")
        self._check(
            "render_interval",
            _is_integer(self.render_interval) and self.render_interval >= 1,
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
        """Fill in what depends on other values; there is nothing of the kind."""

    def _check(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise ConfigError(f"cfg: {name} is {getattr(self, name)!r}; expected {expected}")


class StepTrainerCfgDict(TypedDict, total=False):
    """The same as a dictionary, for a type checker: any of the fields of `StepTrainerCfg`."""

    timesteps: int
    headless: bool
    render_interval: int
    disable_progressbar: bool | None
    close_environment_at_exit: bool
    environment_info: str
    stochastic_evaluation: bool


def resolve_cfg(cfg: StepTrainerCfg | StepTrainerCfgDict | Mapping[str, Any]) -> StepTrainerCfg:
    """The validated configuration out of what the user handed over.

    Raises:
        ConfigError: It is no configuration, has unknown keys, or wrong values.
    """
    if isinstance(cfg, Mapping):
        names = [field.name for field in fields(StepTrainerCfg)]
        if unknown := [key for key in cfg if key not in names]:
            raise ConfigError(f"cfg: unknown {', '.join(map(repr, unknown))}; expected any of {', '.join(names)}")
        cfg = StepTrainerCfg(**cfg)
    if not isinstance(cfg, StepTrainerCfg):
        raise ConfigError(f"cfg is a {type(cfg).__qualname__}; expected a StepTrainerCfg or a dictionary")
    cfg.validate()
    cfg.expand()
    return cfg


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
