"""The callbacks that a run's configuration describes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from trainer.callbacks import Callback, EarlyStopping, Evaluator, MlflowLogger, Population, TrackioLogger, WandbLogger
from trainer.callbacks.loggers import Logger
from trainer.callbacks.loop import default_metrics_every
from trainer.command.importing import find_modules, imported, told
from trainer.command.run_config import CallbackConfig, RunConfig, in_line, named
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
    """Build the callbacks of a configuration; the evaluation is the last one. Loggers store the configuration.

    Raises:
        ConfigError: A callback cannot be built; the message names the key.
    """
    if any(":" in one.callback for one in config.callbacks):
        find_modules()
    stored, wanted = dataclasses.asdict(config), config.evaluation
    callbacks = [_built(one, f"callbacks.{index}", stored) for index, one in enumerate(config.callbacks)]
    interval = config.logging.interval or default_metrics_every(config.trainer.timesteps)
    for index, callback in enumerate(callbacks):  # before anything is written
        if isinstance(callback, EarlyStopping) and wanted.every is None:
            raise ConfigError(f"callbacks.{index} is early_stopping, which needs evaluation.every; set it")
        if isinstance(callback, Population):
            with named(f"callbacks.{index}"):
                callback.check(len(config.agents), interval)
    if wanted.every is None:
        return callbacks
    evaluator = Evaluator(wanted.every, episodes=wanted.episodes, seed=wanted.seed, max_timesteps=wanted.max_timesteps)
    return [*callbacks, evaluator]  # after those that change agents


def _built(config: CallbackConfig, key: str, stored: dict[str, Any]) -> Callback:
    name, given = config.callback, config.cfg
    make: Callable[..., Any]
    if name in _OURS:
        make = _OURS[name]
        if issubclass(_OURS[name], Logger):
            given = {"config": stored} | given
    else:
        make = imported(name, f"{key}.callback", list(_OURS))
    try:
        callback = make(**given)
    except ConfigError as error:
        raise ConfigError(f"{key}.cfg: {error}") from error
    except Exception as error:  # the user's class may raise anything
        arguments = ", ".join(map(in_line, config.cfg)) or "nothing"
        raise ConfigError(f"{key}.cfg: {in_line(name)} cannot be called with {arguments}: {told(error)}") from error
    if not isinstance(callback, Callback):
        raise ConfigError(f"{key}.callback: {name!r} returned a {type(callback).__name__}; expected a Callback")
    return callback
