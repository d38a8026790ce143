"""Where Lockstep's messages are shown if the program does not configure logging: on the console, from INFO on."""

from __future__ import annotations

import logging
import sys

__all__ = ["show_messages"]


class _Console(logging.Handler):
    """Writes to the standard error, unless the root logger has handlers, which get the same messages."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("lockstep: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()


def show_messages() -> None:
    """Show messages of the logger ``lockstep``; a level that it has already is kept."""
    logger = logging.getLogger("lockstep")
    if not any(isinstance(handler, _Console) for handler in logger.handlers):
        logger.addHandler(_Console())
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
