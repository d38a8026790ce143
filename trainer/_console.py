"""Console output of Lockstep's log messages, from level INFO, for programs that do not configure logging."""

from __future__ import annotations

import logging
import sys

__all__ = ["show_messages"]


class _Console(logging.Handler):
    """Handler that writes to standard error, unless the root logger has handlers: they get the same messages."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("lockstep: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()


def show_messages() -> None:
    """Show the messages of the ``lockstep`` logger. A level that is already set is kept."""
    logger = logging.getLogger("lockstep")
    if not any(isinstance(handler, _Console) for handler in logger.handlers):
        logger.addHandler(_Console())
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
