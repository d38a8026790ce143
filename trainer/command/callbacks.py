"""The callbacks that a run's configuration describes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from trainer.callbacks import Callback, EarlyStopping, Evaluator, MlflowLogger, Population, TrackioLogger, WandbLogger
from trainer.callbacks.loggers import Logger
from trainer.command.run import imported
from trainer.command.run_config import CallbackConfig, RunConfig, in_line
from workers.errors import ConfigError

__all__ = ["build_callbacks"]

_OURS: dict[str, type[Callback]] = {
    "early_stopping": EarlyStopping,
    "population": Population,
    "wandb": WandbLogger,
    "mlflow": MlflowLogger,
    "trackio": TrackioLogger,
}
"""Names of Lockstep's own callbacks."""


def build_callbacks(config: RunConfig) -> list[Callback]:
    """Build the callbacks of a configuration; the evaluation is the first one. Loggers store the configuration.

    Raises:
        ConfigError: A callback cannot be built; the message names the key.
    """
    callbacks: list[Callback] = []
    if config.evaluation.every is not None:
        wanted = config.evaluation
        callbacks.append(
            Evaluator(
                config.evaluation.every,
                episodes=wanted.episodes,
                seed=wanted.seed,
                max_timesteps=wanted.max_timesteps,
            )
        )
    stored = dataclasses.asdict(config)
    return [*callbacks, *(_built(one, f"callbacks.{index}", stored) for index, one in enumerate(config.callbacks))]


def _built(config: CallbackConfig, key: str, stored: dict[str, Any]) -> Callback:
    name, given = config.callback, config.cfg
    make: Callable[..., Any]
    if name in _OURS:
        make = _OURS[name]
        if issubclass(_OURS[name], Logger):
            given = {"config": stored} | given
    elif ":" in name:
        make = imported(name, f"{key}.callback")
    else:
        known = ", ".join(map(repr, _OURS))
        raise ConfigError(
            f"{key}.callback is {name!r}; expected one of {known}, or an import path such as 'module:name'"
        )
    try:
        callback = make(**given)
    except ConfigError as error:
        raise ConfigError(f"{key}.cfg: {error}") from error
    except Exception as error:  # the user's class may raise anything
        arguments = ", ".join(map(in_line, config.cfg)) or "nothing"
        told = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{key}.cfg: {in_line(name)} cannot be called with {arguments}: {told}") from error
    if not isinstance(callback, Callback):
        raise ConfigError(f"{key}.callback: {name!r} returned a {type(callback).__name__}; expected a Callback")
    return callback
