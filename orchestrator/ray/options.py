"""The options of recovery."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ray._common.utils import get_system_memory

from orchestrator.files import open_url
from workers.errors import ConfigError
from workers.types import is_integer

__all__ = ["RecoveryOptions"]

OnLost = Literal["raise", "restart_episode"]

_PART_OF_MEMORY = 4
"""Without a number of bytes, snapshots may take one part in so many of this machine's memory."""


@dataclass(frozen=True, kw_only=True)
class RecoveryOptions:
    """What becomes of a run whose workers or nodes are lost.

    A worker that is lost (its process died, was stopped or froze, its node is gone, or its messages cannot be read) is
    rebuilt on a node that has room, restored from its last snapshot, and its iterations since then are played back: the
    run goes on with the numbers of a run that nobody disturbed. What environments or agents raise ends the run at once.
    """

    snapshot_every: int | None = None
    """Number of iterations from one snapshot of all workers to the next. None: so many that snapshots take about 1 % of
    the time. 0: none are taken, and a worker that is lost ends the run."""

    snapshot_bytes: int | None = None
    """Most bytes of this process's memory for snapshots, and half as many for the requests since then; None: a quarter
    of the machine's memory. An agent for which there is no room is named before training begins: losing it ends the
    run."""

    snapshot_url: str | None = None
    """Folder for the snapshots, as a path or a URL that fsspec supports, instead of memory."""

    spares: int = 0
    """Number of processes that have imported what a worker needs, and wait to replace one. Each reserves what a worker
    does."""

    node_timeout: float = 30
    """Seconds for which a node that does not answer is waited for, before its workers are rebuilt elsewhere. If Ray
    says that it is dead, they are at once."""

    hang_timeout: float = 60
    """Seconds for which a worker that answers no ping is waited for, before it is rebuilt. One that computes for long
    answers, unless a single call holds Python's interpreter."""

    restart_timeout: float = 600
    """Seconds for rebuilding workers, in which a node with room is waited for, too."""

    max_worker_deaths: int = 1000
    """How many workers may be lost in the whole run."""

    max_node_deaths: int = 100
    """How many nodes may be lost in the whole run."""

    on_lost: OnLost = "restart_episode"
    """What becomes of environments that cannot be restored exactly: ``"restart_episode"`` truncates their episodes in
    the next iteration, and the agent goes on from its snapshot; ``"raise"`` ends the run."""

    retry_user_errors: bool = False
    """Whether an exception of environments or agents is recovered from as the loss of a worker, unless it comes again
    at the same timestep."""

    def check(self) -> None:
        """Check all values.

        Raises:
            ConfigError: One is invalid.
        """
        for name in ("snapshot_every", "snapshot_bytes", "spares", "max_worker_deaths", "max_node_deaths"):
            value, may_be_none = getattr(self, name), name.startswith("snapshot")
            if not (value is None and may_be_none) and (not is_integer(value) or value < 0):
                none = " or None" if may_be_none else ""
                raise ConfigError(f"RayOrchestrator: {name} is {value!r}; expected an integer of at least 0{none}")
        for name in ("node_timeout", "hang_timeout", "restart_timeout"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ConfigError(f"RayOrchestrator: {name} is {value!r}; expected a number of seconds, more than 0")
        if self.on_lost not in get_args(OnLost):
            expected = " or ".join(map(repr, get_args(OnLost)))
            raise ConfigError(f"RayOrchestrator: on_lost is {self.on_lost!r}; expected {expected}")
        if self.spares and not self.recovers:
            raise ConfigError("RayOrchestrator: spares replace lost workers, but snapshot_every is 0; set one of them")
        if self.snapshot_url is not None:
            if not isinstance(self.snapshot_url, str):
                raise ConfigError(f"RayOrchestrator: snapshot_url is {self.snapshot_url!r}; expected a path or URL")
            open_url(self.snapshot_url, "folder for snapshots")

    @property
    def recovers(self) -> bool:
        """Whether lost workers are rebuilt."""
        return self.snapshot_every != 0

    def bytes_of_snapshots(self) -> int:
        """Return the most bytes of memory for snapshots."""
        return get_system_memory() // _PART_OF_MEMORY if self.snapshot_bytes is None else self.snapshot_bytes
