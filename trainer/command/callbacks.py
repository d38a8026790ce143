"""The callbacks that a run's configuration describes."""

from __future__ import annotations

import importlib

from trainer.callbacks.evaluator import Evaluator
from trainer.callbacks.loop import Callback
from trainer.command.run import imported
from trainer.command.run_config import CallbackConfig, RunConfig, in_line
from workers.errors import ConfigError

__all__ = ["build_callbacks"]

_OURS = {
    "early_stopping": "early_stopping:EarlyStopping",
    "population": "population:Population",
}
"""Names of Lockstep's own callbacks: module and class in `trainer.callbacks`."""


def build_callbacks(config: RunConfig) -> list[Callback]:
    """Build the callbacks of a configuration; the evaluation is the first one.

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
    return [*callbacks, *(_built(one, f"callbacks.{index}") for index, one in enumerate(config.callbacks))]


def _built(config: CallbackConfig, key: str) -> Callback:
    name = config.callback
    if name in _OURS:
        module, _, kind = _OURS[name].partition(":")
        make = getattr(importlib.import_module(f"trainer.callbacks.{module}"), kind)
    elif ":" in name:
        make = imported(name, f"{key}.callback")
    else:
        known = ", ".join(map(repr, _OURS))
        raise ConfigError(
            f"{key}.callback is {name!r}; expected one of {known}, or an import path such as 'module:name'"
        )
    try:
        callback = make(**config.cfg)
    except ConfigError as error:
        raise ConfigError(f"{key}.cfg: {error}") from error
    except Exception as error:  # the user's class may raise anything
        given = ", ".join(map(in_line, config.cfg)) or "nothing"
        told = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{key}.cfg: {in_line(name)} cannot be called with {given}: {told}") from error
    if not isinstance(callback, Callback):
        raise ConfigError(f"{key}.callback: {name!r} returned a {type(callback).__name__}; expected a Callback")
    return callback
