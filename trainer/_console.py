"""Console output: of Lockstep's log messages, for programs that do not configure logging, and of the command."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Any

from trainer._redaction import escaped, hide

__all__ = ["conceal", "show_messages", "shown"]

_logger = logging.getLogger("lockstep")
_concealed: list[str] = []


def conceal(secrets: Iterable[str]) -> None:
    """Replace these secrets, and no others, in everything that is shown from now on."""
    _concealed[:] = set(secrets)


def shown(text: str) -> str:
    """Return a text, which may come from a file or an exception, in the form in which it is shown."""
    return escaped(hide(text, _concealed))


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


class _Console(logging.StreamHandler[Any]):
    """Handler that writes to the current standard error, unless another handler gets the same messages."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(_Formatter("lockstep: %(message)s"))

    @property
    def stream(self) -> Any:
        """The current standard error, which programs may replace."""
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None and not logging.getLogger().handlers and _logger.handlers == [self]:
            super().emit(record)


def show_messages() -> None:
    """Show the ``lockstep`` logger's messages from level INFO, unless the program has configured logging already."""
    if logging.getLogger().handlers or _logger.handlers or _logger.level != logging.NOTSET:
        return
    _logger.addHandler(_Console())
    _logger.setLevel(logging.INFO)
