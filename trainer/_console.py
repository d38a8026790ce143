"""Console output of Lockstep's log messages, from level INFO, for programs that do not configure logging."""

from __future__ import annotations

import logging
import sys
from typing import Any

__all__ = ["show_messages"]

_logger = logging.getLogger("lockstep")


class _Console(logging.StreamHandler[Any]):
    """Handler that writes to the current standard error, unless another handler gets the same messages."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("lockstep: %(message)s"))

    @property
    def stream(self) -> Any:
        """The current standard error, which programs may replace."""
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None and not logging.getLogger().handlers and _logger.handlers == [self]:
            super().emit(record)


def show_messages() -> None:
    """Show the messages of the ``lockstep`` logger, unless the program has configured logging already."""
    if logging.getLogger().handlers or _logger.handlers or _logger.level != logging.NOTSET:
        return
    _logger.addHandler(_Console())
    _logger.setLevel(logging.INFO)
