"""HeadWatch: whether Ray's head node answers. Ray ends every process that has lost it for a minute."""

from __future__ import annotations

import logging
import threading
from time import monotonic

import ray

from workers.errors import ClusterError

__all__ = ["HeadWatch"]

_logger = logging.getLogger("lockstep")

_INTERVAL = 3.0
"""Seconds between two questions."""

_TIMEOUT = 2.0
"""Seconds within which an answer comes."""

_SUSPECTED, _GIVEN_UP = 8.0, 25.0
"""Seconds since the first question without an answer, after which the log says so, and after which the run ends: there
is time to save it."""


class HeadWatch:
    """A thread that asks Ray's head node, beside the work, whether it is there."""

    def __init__(self) -> None:
        """Start to watch the head node of the cluster that this process is connected to."""
        worker = ray._private.worker.global_worker
        self._client = getattr(worker, "gcs_client", None)  # none for a client of Ray, which learns it otherwise
        self._address = getattr(self._client, "address", "an unknown address")
        self._failed_since: float | None = None
        self._is_told = False
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lockstep-head", daemon=True)
        if self._client is not None:
            self._thread.start()

    def check(self) -> None:
        """Check that the head node has answered lately.

        Raises:
            ClusterError: It has not.
        """
        since = self._failed_since
        silence = 0.0 if since is None else monotonic() - since
        if self._ends.is_set() or silence < _SUSPECTED or not ray.is_initialized():
            return
        if not self._is_told:
            self._is_told = True
            _logger.warning("Ray's head node at %s has not answered for %.0f s", self._address, silence)
        if silence >= _GIVEN_UP:
            raise ClusterError(
                f"Ray's head node at {self._address} has not answered for {silence:.0f} s, and Ray ends every process "
                "that has lost it for a minute. Workers on other nodes still answer: save() writes a checkpoint now. "
                "When the cluster is up again, go on from it, or from the last one"
            )

    def close(self) -> None:
        """Stop watching."""
        self._ends.set()
        if self._thread.is_alive():
            self._thread.join(2 * _TIMEOUT)

    def _watch(self) -> None:
        while not self._ends.wait(_INTERVAL) and ray.is_initialized():
            try:
                self._client.internal_kv_exists(b"lockstep", namespace=None, timeout=_TIMEOUT)  # type: ignore[union-attr]
            except Exception:  # Ray has several for this
                self._failed_since = monotonic() if self._failed_since is None else self._failed_since
                continue
            self._failed_since, self._is_told = None, False
