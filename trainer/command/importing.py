"""The import of what a configuration names, and the errors of code that is not Lockstep's."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from trainer._redaction import hide
from workers.errors import ConfigError

__all__ = ["find_modules", "imported", "told"]


def find_modules() -> None:
    """Let modules in the current folder be found: a console script lacks it."""
    if (folder := os.getcwd()) not in sys.path:
        sys.path.insert(0, folder)


def imported(path: str, key: str) -> Callable[..., Any]:
    """Return the class or function at an import path.

    Raises:
        ConfigError: It cannot be imported, or is not callable.
    """
    name, _, attribute = path.partition(":")
    try:
        value: Any = importlib.import_module(name)
        for part in attribute.split("."):
            value = getattr(value, part)
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise ConfigError(f"{key} is {path!r}, which cannot be imported: {told(error)}") from error
    if not callable(value):
        raise ConfigError(f"{key} is {path!r}, which is a {type(value).__qualname__}; expected a class or a function")
    made: Callable[..., Any] = value
    return made


def told(error: BaseException, secrets: Iterable[str] = ()) -> str:
    """Describe an error in the user's code in one line, without secrets: what and where."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    where = f" (at {frames[-1].filename}:{frames[-1].lineno})"
    if isinstance(error, ModuleNotFoundError):
        where = f"; the module search path includes {os.getcwd()}"
    text = hide(str(error), secrets).replace("\n", "\\n")
    return f"{type(error).__name__}: {text}{where}"
