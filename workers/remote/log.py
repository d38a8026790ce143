"""LogCollector: what a worker logs, on its way to the driver."""

from __future__ import annotations

import logging
from typing import NamedTuple

__all__ = ["LogCollector", "LogEntry"]

_MOST = 1000
"""Maximum number of distinct messages of one worker."""

_LONGEST = 10_000
"""Maximum length of a message, in characters."""


class LogEntry(NamedTuple):
    """A logged message.

    Attributes:
        level: Its level, as in `logging`.
        message: Its text, with the traceback if it has one.
    """

    level: int
    message: str


class LogCollector(logging.Handler):
    """Handler that keeps warnings and errors of the ``lockstep`` logger for the driver, each distinct message once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._seen: set[str] = set()
        self._entries: list[LogEntry] = []

    def install(self) -> None:
        """Collect all messages of this process, and print none of them here."""
        logger = logging.getLogger("lockstep")
        logger.addHandler(self)
        logger.setLevel(logging.WARNING)
        logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message, unless it is known."""
        try:
            message = self.format(record)[:_LONGEST]
        except Exception:
            self.handleError(record)
            return
        if message in self._seen or len(self._seen) > _MOST:
            return
        if len(self._seen) == _MOST:
            message = f"further messages of a worker that logged {_MOST} different ones are dropped"
        self._seen.add(message)
        self._entries.append(LogEntry(record.levelno, message))

    def drain(self) -> tuple[LogEntry, ...]:
        """Return the messages since the last call. May be called from another thread than that which logs."""
        if not self._entries:
            return ()
        assert self.lock is not None
        with self.lock:
            entries, self._entries = tuple(self._entries), []
        return entries
