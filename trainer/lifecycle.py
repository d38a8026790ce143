"""Where a trainer is in its life, and which calls that allows."""

from __future__ import annotations

from enum import Enum

from workers.errors import LifecycleError

__all__ = ["Lifecycle", "State"]


class State(Enum):
    """Where a trainer is in its life."""

    READY = "ready"
    FAILED = "failed"
    CLOSED = "closed"


class Lifecycle:
    """The state of a trainer, and a named error for each call that it does not allow.

    Attributes:
        state: Where the trainer is in its life.
        under_way: Number of submissions that have not been waited for.
    """

    def __init__(self) -> None:
        self.state = State.READY
        self.under_way = 0

    def fail(self) -> None:
        """An iteration failed or was interrupted halfway, and cannot be continued."""
        self.state = State.FAILED

    def interrupt(self) -> None:
        """A question to the workers was interrupted, and with it the iterations under way."""
        if self.under_way and self.state is State.READY:
            self.fail()

    def require_open(self, call: str) -> None:
        """Check that `call` may ask the workers.

        Raises:
            LifecycleError: The trainer is closed.
        """
        if self.state is State.CLOSED:
            raise LifecycleError(f"{call} after close(); build a new StepTrainer")

    def require_ready(self, call: str) -> None:
        """Check that `call` may begin iterations.

        Raises:
            LifecycleError: The trainer is closed or has failed, or iterations are under way.
        """
        if self.state is State.READY and not self.under_way:
            return
        self.require_open(call)
        if self.state is State.FAILED:
            raise LifecycleError(
                f"{call} after an iteration that failed or was interrupted: its scopes may stand at different "
                "timesteps; close() this trainer and build a new one"
            )
        raise LifecycleError(
            f"{call} inside a loop over iterate(), whose next steps are under way; leave the loop first"
        )
