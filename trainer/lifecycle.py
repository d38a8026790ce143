"""The states of a trainer, and the calls that each state allows."""

from __future__ import annotations

from enum import Enum

from workers.errors import LifecycleError

__all__ = ["Lifecycle", "State"]


class State(Enum):
    """State of a trainer."""

    READY = "ready"
    FAILED = "failed"
    CLOSED = "closed"


class Lifecycle:
    """State of a trainer, with a `LifecycleError` for each call that the state does not allow.

    Attributes:
        state: The current state.
        under_way: Number of submissions whose results have not been awaited.
    """

    def __init__(self) -> None:
        self.state = State.READY
        self.under_way = 0

    def fail(self) -> None:
        """Record that an iteration failed or was interrupted half-way and cannot be continued."""
        self.state = State.FAILED

    def interrupt(self) -> None:
        """Record that a request to the workers was interrupted, and with it the iterations under way."""
        if self.under_way and self.state is State.READY:
            self.fail()

    def require_open(self, call: str) -> None:
        """Check that `call` may send a request to the workers.

        Raises:
            LifecycleError: The trainer is closed.
        """
        if self.state is State.CLOSED:
            raise LifecycleError(f"{call} after close(); build a new StepTrainer")

    def require_ready(self, call: str) -> None:
        """Check that `call` may start iterations.

        Raises:
            LifecycleError: The trainer is closed or has failed, or iterations are under way.
        """
        if self.state is State.READY and not self.under_way:
            return
        self.require_open(call)
        if self.state is State.FAILED:
            raise LifecycleError(
                f"{call} after an iteration that failed or was interrupted: the scopes may be at different timesteps; "
                "close() this trainer and build a new one"
            )
        raise LifecycleError(
            f"{call} inside a loop over iterate(), whose next iterations are under way; leave the loop first"
        )
