"""The signals that end a run, as a request to stop it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Stop", "ending_signals", "stop_on_signals"]

_logger = logging.getLogger("lockstep")


class Stop:
    """Request to stop the run, made by SIGINT (Ctrl-C), SIGTERM, or SIGHUP of a closed terminal.

    Attributes:
        signal: Number of the signal; 0 if there was none.
    """

    signal = 0

    def ask(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal: the first one stops the run after the iterations under way, the second one at once."""
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number
        _logger.warning("stopping after the iterations under way; repeat the signal to stop at once")


def ending_signals() -> Iterator[signal.Signals]:
    """Yield the signals that end a run: SIGTERM and, unless `nohup` has it ignored, that of a closed terminal."""
    yield signal.SIGTERM
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        yield hangup


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn the signals that end a run into a request to stop."""
    stop = Stop()
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGINT, *ending_signals())}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
