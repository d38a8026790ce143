"""The import of what a configuration names, and the errors of code that is not Lockstep's."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from trainer._redaction import hide
from workers.errors import ConfigError, did_you_mean

__all__ = ["find_modules", "imported", "told"]

_NOT_THEIRS = ("importlib", "orchestrator", "trainer", "workers")
"""Packages whose places in a traceback tell a user nothing: Lockstep's own, and the import."""


def find_modules() -> None:
    """Let modules in the current folder be found: a console script lacks it."""
    if (folder := os.getcwd()) not in sys.path:
        sys.path.insert(0, folder)


def imported(path: str, key: str, known: Sequence[str] = ()) -> Callable[..., Any]:
    """Return the class or function at an import path.

    Args:
        path: The import path, such as ``"package.module:name"``.
        key: Where it was given, for the error.
        known: Names that may be given instead, for the error.

    Raises:
        ConfigError: It is no import path, cannot be imported, or is not callable.
    """
    name, _, attribute = path.partition(":")
    if not name or not attribute:
        others = f"one of {', '.join(map(repr, known))}, or " if known else ""
        hint = _hint(path, known)
        raise ConfigError(f"{key} is {path!r}; expected {others}an import path such as 'package.module:name'{hint}")
    value: Any = None
    part = ""
    try:
        value = importlib.import_module(name)
        for part in attribute.split("."):
            value = getattr(value, part)
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        hint = _hint(part, dir(value)) if isinstance(error, AttributeError) and part else ""
        raise ConfigError(f"{key} is {path!r}, which cannot be imported: {told(error)}{hint}") from error
    if not callable(value):
        raise ConfigError(f"{key} is {path!r}, which is a {type(value).__qualname__}; expected a class or a function")
    made: Callable[..., Any] = value
    return made


def _hint(given: str, known: Sequence[str]) -> str:
    hint = did_you_mean([given], known)
    return f"; {hint}" if hint else ""


def told(error: BaseException, secrets: Iterable[str] = ()) -> str:
    """Describe an error in the user's code in one line, without secrets: what and, if it is not in ours, where."""
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).partition(".")[0] not in _NOT_THEIRS
    ]
    where = f" (at {frames[-1][0]}:{frames[-1][1]})" if frames else ""
    if isinstance(error, ModuleNotFoundError):
        where = f"; the module search path includes {os.getcwd()}"
    text = hide(str(error), secrets).replace("\n", "\\n")
    return f"{type(error).__name__}: {text}{where}"
