"""Faults that are put into a running trainer."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

from orchestrator.ray import connection, snapshots
from tests.chaos.schedules import Fault
from tests.support.processes import PATIENCE, descendants
from tests.support.recovering import pids_of

__all__ = ["Faults"]

_REQUESTS, _PATIENCE = 4, 20.0
"""Requests after which the iteration in which a worker was lost is over, and seconds within which they come."""

_PAUSE = 0.4
"""Seconds for which a process is stopped that goes on."""


class Faults:
    """The faults of a schedule, in a trainer.

    Attributes:
        happened: The faults that have happened.
    """

    def __init__(self, trainer: Any, folder: Path, cluster: Any = None) -> None:
        """Prepare.

        Args:
            trainer: The trainer, with workers in Ray actors of this machine.
            folder: A folder in which agents look for exceptions to raise; see `Troubled`.
            cluster: Ray's test cluster of several nodes; None if there is only one.
        """
        self.happened: list[Fault] = []
        self._trainer, self._folder, self._cluster = trainer, folder, cluster
        self._streams = trainer._session._streams
        self._timers: list[threading.Timer] = []
        self._stopped: set[int] = set()
        self._armed: list[Fault] = []
        self._undo: list[Callable[[], None]] = []
        self._is_quiet = threading.Event()  # no worker is being rebuilt
        self._is_quiet.set()
        self._one_by_one, self._is_over = threading.Lock(), threading.Event()
        self._sent = self._streams._seq - _REQUESTS  # when the last fault happened, or was recovered from
        self._watch("ask")
        self._watch("send")
        self._watch_recoveries()

    def arm(self, fault: Fault) -> None:
        """Let a fault happen after its delay, or during the next request of its kind."""
        if not fault.during:
            self._later(fault)
            return
        self._armed.append(fault)
        if fault.during != "snapshot":  # only a recovery has such requests
            self._later(fault._replace(during=""))

    def end(self) -> None:
        """Let no further fault happen, and all stopped processes go on."""
        self._armed.clear()
        self._is_over.set()
        for timer in self._timers:
            timer.cancel()
        for timer in self._timers:
            timer.join(PATIENCE)
        for undo in self._undo:
            undo()
        for pid in self._stopped:
            _signal(pid, signal.SIGCONT)

    def _watch(self, name: str) -> None:
        """Let faults happen during requests that are sent by a method of the streams."""
        original = getattr(self._streams, name)

        def watched(*args: Any, **options: Any) -> Any:
            method = args[1] if name == "ask" else args[0]
            for fault in [one for one in self._armed if one.during == method]:
                if (name == "ask") != (method == "snapshot"):
                    self._armed.remove(fault)
                    self._later(fault)
            return original(*args, **options)

        setattr(self._streams, name, watched)
        self._undo.append(lambda: delattr(self._streams, name))

    def _later(self, fault: Fault) -> None:
        timer = threading.Timer(fault.delay, self._happen, (fault,))
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def _watch_recoveries(self) -> None:
        rescue = self._streams.rescue
        recover = rescue.recover

        def watched(*args: Any) -> None:
            self._is_quiet.clear()
            try:
                recover(*args)
            finally:
                self._sent = self._streams._seq  # those of the recovery do not count
                self._is_quiet.set()

        rescue.recover = watched
        self._undo.append(lambda: delattr(rescue, "recover"))

    def _happen(self, fault: Fault) -> None:
        """Let a fault happen. One that is not for a recovery waits until the run goes on after the last one.

        Two at the same place end a run, as they should.
        """
        if not fault.during:
            with self._one_by_one:
                if not self._goes_on():
                    return
                self._sent = self._streams._seq
        self.happened.append(fault)
        getattr(self, "_" + fault.kind.replace(" ", "_"))(fault)

    def _goes_on(self) -> bool:
        """Wait until the iteration of the last fault, and a recovery from it, are over; return whether they are."""
        deadline = monotonic() + _PATIENCE
        while not self._is_quiet.is_set() or self._streams._seq < self._sent + _REQUESTS:
            if not self._is_quiet.is_set():
                self._is_quiet.wait(PATIENCE)
                deadline = monotonic() + _PATIENCE
            if self._is_over.wait(0.05) or monotonic() > deadline:
                return False
        return True

    def _pids(self, fault: Fault) -> list[int]:
        """Return the processes of the workers that a fault hits. One that is being rebuilt is not described yet."""
        known = pids_of(self._trainer)
        if fault.during in ("", "snapshot"):
            return [known[scope] for scope in fault.scopes]
        pids = [process.pid for process in descendants("WorkerActor")]
        return [pid for pid in pids if pid not in known][: len(fault.scopes)] or [
            known[scope] for scope in fault.scopes
        ]

    def _kill(self, fault: Fault) -> None:
        for pid in self._pids(fault):
            _signal(pid, signal.SIGKILL)

    def _node(self, fault: Fault) -> None:
        """Kill a node on which a worker lives, and let another one join."""
        crew = self._streams.rescue._team.crew
        homes = {crew.nodes[scope] for scope in fault.scopes}
        nodes = [] if self._cluster is None else [one for one in self._cluster.worker_nodes if one.node_id in homes]
        if not nodes:
            self._kill(fault)
            return
        self._cluster.remove_node(nodes[0], allow_graceful=False)
        self._cluster.add_node(num_cpus=1)

    def _stop(self, fault: Fault) -> None:
        """Stop processes for good: they are given up, and go on as ghosts at the end."""
        for pid in self._pids(fault):
            self._stopped.add(pid)
            _signal(pid, signal.SIGSTOP)

    def _pause(self, fault: Fault) -> None:
        pids = self._pids(fault)
        for pid in pids:
            _signal(pid, signal.SIGSTOP)
        threading.Event().wait(_PAUSE)
        for pid in pids:
            _signal(pid, signal.SIGCONT)

    def _slow(self, fault: Fault) -> None:
        for _ in range(5):
            self._pause(fault)
            threading.Event().wait(_PAUSE / 5)

    def _cut(self, fault: Fault) -> None:
        for scope in fault.scopes:
            link = getattr(self._streams, "_links", {scope: None})[scope]
            channel = None if link is None else link._channel
            if channel is not None:
                with suppress(OSError):  # it is being made again
                    channel._sock.shutdown(socket.SHUT_RDWR)

    def _unreadable(self, fault: Fault) -> None:
        """Let the next reply be one that cannot be read."""
        load = connection.load_reply

        def broken(*_: Any) -> Any:
            vars(connection)["load_reply"] = load
            raise ValueError("a damaged reply")

        vars(connection)["load_reply"] = broken
        self._undo.append(lambda: vars(connection).update(load_reply=load))

    def _exception(self, fault: Fault) -> None:
        for scope in fault.scopes:
            (self._folder / str(scope)).touch()

    def _full_disk(self, fault: Fault) -> None:
        """Let the next snapshot be one that cannot be written."""
        replace_at = snapshots.replace_at

        def full(*_: Any) -> None:
            vars(snapshots)["replace_at"] = replace_at
            raise OSError(errno.ENOSPC, "No space left on device")

        vars(snapshots)["replace_at"] = full
        self._undo.append(lambda: vars(snapshots).update(replace_at=replace_at))


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
