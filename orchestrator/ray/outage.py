"""Outage: for how long a lost connection is made again, and what the log says about it."""

from __future__ import annotations

import logging
from time import monotonic
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError

from orchestrator.ray.deaths import death_of, uncoloured
from orchestrator.ray.requests import UnreachableError
from workers.remote.dialing import SilentMachineError, UnansweredError
from workers.remote.layout import DamagedError

__all__ = ["Outage"]

_logger = logging.getLogger("lockstep")

_PATIENCE = 10.0
"""Seconds for which a connection is made again, until something is received over it or it lasts."""

_LASTING = 1.0
"""Seconds after which a connection over which nothing was received counts as restored: the request takes long.

So does a connection whose handshake a busy worker does not answer: the patience of the request ends that wait."""

_PAUSE = 0.2
"""Seconds before another attempt, in which Ray may report a death."""


class Outage:
    """The time from the loss of a connection to a worker until something is received over another one.

    Attributes:
        pause: Seconds to wait before the next attempt to connect.
    """

    def __init__(self, name: str, node_timeout: float) -> None:
        """Prepare for the first outage.

        Args:
            name: What the log calls the worker.
            node_timeout: Seconds for which a connection is made again to a machine that does not answer at all: its
                cable may come back. Ray may tell earlier that it is dead.
        """
        self.pause = 0.0
        self._node_timeout = node_timeout
        self._name = name
        self._actor: Any = None
        self._call: Any = None  # of the actor, which ends when it dies
        self._since: float | None = None
        self._was_silent = self._is_refused = False
        self._is_told = False

    @property
    def is_silent(self) -> bool:
        """Whether nothing comes from the worker's machine."""
        return self._since is not None and self._was_silent

    def watch(self, actor: Any, serving: Any) -> None:
        """Take the worker's actor, and Ray's reference to its `serve` call."""
        self._actor, self._call = actor, serving

    def go_on(self, error: Exception, lasted: float) -> None:
        """Judge a lost connection, or an attempt that failed.

        Args:
            error: How it was lost, or failed.
            lasted: Seconds since the connection was made; 0 for an attempt.

        Raises:
            UnreachableError: The worker is gone, or nothing has been received for long.
        """
        now, is_silent, is_first = monotonic(), isinstance(error, SilentMachineError), self._since is None
        self._tell(error, is_silent=is_silent, is_first=is_first)
        self._is_refused = isinstance(error, ConnectionRefusedError)
        if not is_first:
            self.pause = _PAUSE
            self.ask_ray()
        if self._since is None or lasted >= _LASTING or isinstance(error, UnansweredError):
            self._since, self._was_silent = now, is_silent
            return
        self._was_silent |= is_silent
        patience = self._node_timeout if self._was_silent else _PATIENCE
        if now - self._since >= patience:
            reason = f"the connection was lost and cannot be restored: {error}; tried again for {patience:g} s"
            kind = "NodeUnreachable" if self._was_silent else "ConnectionLost"
            raise UnreachableError(kind, reason) from error

    def ask_ray(self) -> None:
        """Ask Ray about the worker if its connection is lost.

        Raises:
            UnreachableError: It is dead.
        """
        if self._since is None:
            return
        if not ray.is_initialized():
            raise UnreachableError("WorkerDied", "Ray was shut down")
        try:
            death = death_of(self._call)
        except ActorUnavailableError as error:
            if self._is_refused:
                reason = f"nothing listens there any more, and Ray has lost it, too: {uncoloured(error)}"
                raise UnreachableError("WorkerDied", f"the worker's process died: {reason}") from error
            self._call = self._actor.__ray_ready__.remote()  # waits behind `serve`, and tells what Ray learns later
            return
        if death is not None:
            raise death

    def connected(self) -> None:
        """Note that there is a connection again."""
        if self._is_told:
            self._is_told = False
            _logger.warning("%s is connected again", self._name)

    def end(self) -> None:
        """Note that something was received."""
        self._since = None
        self.pause = 0.0

    def _tell(self, error: Exception, *, is_silent: bool, is_first: bool) -> None:
        """Log, once, what the user should know about."""
        if is_silent and not self._is_told:
            self._is_told = True
            _logger.warning(
                "%s cannot be reached any more: %s; trying again until it answers or Ray says that it is dead, for up "
                "to %.0f s",
                *(self._name, error, self._node_timeout),
            )
        elif is_first and isinstance(error, DamagedError):
            _logger.warning("%s; connecting to %s again", error, self._name)
