"""Rebuilding: one attempt to bring lost workers back to where they were."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from orchestrator.ray.crew import Crew
from orchestrator.ray.options import RecoveryOptions
from orchestrator.ray.requests import ITERATIONS, Patience, Request, is_loss
from orchestrator.ray.snapshots import Snapshots
from orchestrator.ray.starting import StartPatience, StartTime
from orchestrator.ray.transport import Streams
from workers.errors import CheckpointError, EnvError, Failure, WorkerError
from workers.frameworks import load_framework
from workers.remote.layout import DamagedError
from workers.remote.spec import WorkerSpec
from workers.remote.wire import Packed, read_outcome
from workers.types import Description, Outcome, Scope, Tick

__all__ = ["BUILDING", "REBUILDING", "Place", "Rebuilding", "Team", "digest", "last_timestep"]

_logger = logging.getLogger("lockstep")


class Place(NamedTuple):
    """What a worker was doing when it was lost.

    Attributes:
        method: Method of the request.
        seq: Number of the request; 0 for a build.
        timestep: Its timestep; None if it has none.
        is_of_many: Whether it was one of several iterations, and nobody knows which.
    """

    method: str
    seq: int = 0
    timestep: int | None = None
    is_of_many: bool = False

    def __str__(self) -> str:
        return f"in {self.method}" if self.timestep is None else f"at timestep {self.timestep}"


_FOR_THOSE_BEHIND = frozenset({"restart", "stage", "restore", "load", "set_hyperparameters"})
"""Requests that also concern a worker that was left behind: they do not depend on where it is."""

_LARGEST_SAMPLE = 4096
"""Most values of an array that a digest looks at."""

BUILDING = Place("build")
"""The place of a worker that has never been built."""

REBUILDING = Place("rebuild")
"""The place of one that has not reached its snapshot yet."""


@dataclass
class Team:
    """The workers of a trainer, and what they are rebuilt from.

    Attributes:
        crew: Their processes.
        streams: The requests to them.
        specs: What each is built from.
        scopes: Their scopes.
        options: What may be recovered from.
        patience: Makes the patience with one request.
        snapshots: The last snapshot of each.
        descriptions: Description of each worker that is built.
        split: Numbers of requests whose iterations are done one by one.
        digests: Digest of the outcome of each worker, by the number of the request.
    """

    crew: Crew
    streams: Streams
    specs: Sequence[WorkerSpec]
    scopes: Sequence[Scope]
    options: RecoveryOptions
    patience: Callable[[], Patience]
    snapshots: Snapshots
    descriptions: dict[int, Description] = field(default_factory=dict)
    split: set[int] = field(default_factory=set)
    digests: dict[int, list[int]] = field(default_factory=dict)

    def is_loss(self, failure: Failure, method: str) -> bool:
        """Return whether a worker that failed so is rebuilt."""
        is_raised = method in ITERATIONS and bool(failure.traceback)  # by environments or agents
        return is_loss(failure) or (is_raised and self.options.retry_user_errors)

    def start_patience(self, time: StartTime) -> StartPatience:
        """Return the patience with workers that are being built."""
        return StartPatience(time, self.scopes, self.streams.nodes, hang_timeout=self.options.hang_timeout)

    def describe(self, built: Mapping[int, Description]) -> None:
        """Note where workers live that were built."""
        self.descriptions |= built
        for index, worker in built.items():
            self.streams.nodes[index] = worker.node

    def place(self, request: Request) -> Place:
        """Return what a worker is doing that owes the reply to a request."""
        method, common = request.method, request.common
        if method not in ITERATIONS:
            return Place(method, request.seq)
        is_of_many = method == "tick" and common[1] > 1
        return Place(method, request.seq, None if is_of_many else last_timestep(request), is_of_many)


def last_timestep(request: Request) -> int:
    """Return the timestep of an iteration, or of the last one of many."""
    timestep: int = request.common[0].timestep
    return timestep + (request.common[1] - 1 if request.method == "tick" else 0)


def digest(outcome: Outcome) -> int:
    """Return a checksum of the arrays of an outcome, of some values of large ones. Infos may contain times."""
    checksum = 0
    for column in outcome[:4]:
        for array in column.values() if isinstance(column, dict) else (column,):
            values = np.ravel(array)
            checksum = crc32(values[:: 1 + values.size // _LARGEST_SAMPLE].tobytes(), checksum)
    return checksum


class Rebuilding:
    """One attempt to bring lost workers back, all together.

    Attributes:
        lost: Those that were lost again, and why.
        places: What they were doing.
        replayed: Number of iterations that were played back.
    """

    def __init__(
        self, team: Team, failures: Mapping[int, Failure], owed: Mapping[int, Sequence[Request]], time: StartTime
    ) -> None:
        """Prepare.

        Args:
            team: All workers.
            failures: Why workers were lost.
            owed: The requests to which each of them owes the reply.
            time: Time of the recovery.
        """
        self.lost: dict[int, Failure] = {}
        self.places: dict[int, Place] = {}
        self.replayed = 0
        self._team, self._failures, self._owed, self._time = team, failures, owed, time
        self._alive: list[int] = list(failures)

    def run(self, journal: Mapping[int, Request]) -> None:
        """Rebuild the workers, restore them, and send them what they have missed.

        Args:
            journal: The requests since the last snapshot that changed the workers, by number.

        Raises:
            WorkerError: Environments or agents raised something.
            ClusterError: No node has room in time.
        """
        team = self._team
        self._reach()
        team.describe(self._ask("build", each=team.specs, patience=team.start_patience(self._time)))
        behind = self._restore()
        owed = {request.seq: request for requests in self._owed.values() for request in requests}
        for seq, request in sorted((dict(journal) | owed).items()):
            owing = [index for index in self._alive if any(one.seq == seq for one in self._owed[index])]
            if seq in journal:
                left = behind if request.method not in _FOR_THOSE_BEHIND else ()
                self._play([index for index in self._alive if index not in (*owing, *left)], request, behind)
            for index in owing:
                self._send(index, request)

    def _reach(self) -> None:
        """Start new processes and reach them."""
        team = self._team
        try:
            doors = team.crew.restart(self._failures, self._time)
        except WorkerError as error:  # those that did not start end the attempt
            told = {failure.scope: failure for failure in error.failures}
            for index in list(self._alive):
                before = replace(self._failures[index], kind="WorkerDied")  # its seat is not that of before
                self._lose(index, told.get(team.scopes[index].index, before), REBUILDING)
            return
        for index, door in doors.items():
            try:
                team.streams.replace(index, team.crew.actors[index], door)
            except OSError as error:
                reason = f"its new process cannot be connected to: {error}"
                failure = replace(self._failures[index], kind="ConnectionLost", message=reason, traceback="")
                self._lose(index, failure, REBUILDING)

    def _restore(self) -> set[int]:
        """Restore the snapshots; return the workers that are left behind, because their episodes cannot go on."""
        team = self._team
        try:
            snapshots = {index: team.snapshots.get(index) for index in self._alive}
        except CheckpointError as error:
            raise WorkerError([replace(one, message=str(error)) for one in self._failures.values()]) from error
        if not any(snapshots.values()):  # before the first
            return set()
        self._ask("stage", each=[snapshots.get(index) for index in range(len(team.scopes))])
        goes_on = self._ask("restore", (team.options.on_lost == "raise",))  # an error if not, where that ends the run
        behind = {index for index, does in goes_on.items() if not does}
        for index in sorted(behind):
            _logger.warning(
                "scope %d goes on from its snapshot: episodes that cannot be restored exactly are truncated in the "
                "next iteration, and its agent has not learnt from the iterations since then",
                index,
            )
        return behind

    def _play(self, indices: Sequence[int], request: Request, behind: set[int]) -> None:
        """Play back a request that had been answered. A worker with another outcome is left behind."""
        team, seq = self._team, request.seq
        request = self._but_the_last(indices, request)
        indices = [index for index in indices if index in self._alive]
        replies = self._ask(request.method, request.common, request.each, indices=indices, place=team.place(request))
        if request.method in ("tick", "learn") and indices:
            self.replayed += request.common[1] if request.method == "tick" else 1
        if request.method == "restore":
            behind.difference_update(index for index, goes_on in replies.items() if goes_on)
        if request.method != "tick" or seq not in team.digests:
            return
        digests = {index: self._digest(index, packed) for index, packed in replies.items()}
        other = [index for index, found in digests.items() if found != team.digests[seq][index]]
        if other and team.options.on_lost == "raise":
            reason = f"timestep {last_timestep(request)} does not repeat itself, and on_lost='raise' ends the run"
            failures = [self._failures[index] for index in other]
            raise WorkerError([replace(one, message=f"{reason}: {one.message}") for one in failures])
        for index in other:
            _logger.warning(
                "the environments of scope %d, or its agent, do not repeat what they did: all episodes are truncated "
                "in the next iteration",
                index,
            )
        self._ask("lose", indices=other)
        behind.update(other)

    def _digest(self, index: int, packed: Packed | None) -> int | None:
        """Return the digest of an outcome; None if it cannot be read."""
        try:
            return digest(read_outcome(packed, load_framework("numpy"), self._team.scopes[index].num_envs))
        except (DamagedError, EnvError):
            return None

    def _send(self, index: int, request: Request) -> None:
        """Send a request to which the worker owes the reply."""
        request = self._but_the_last([index], request)
        if index in self._alive:
            self._team.streams.send_to(index, request)

    def _but_the_last(self, indices: Sequence[int], request: Request) -> Request:
        """Do the iterations of a request one by one, if they are to be done so; return a request for the last one."""
        if request.seq not in self._team.split or request.method != "tick":
            return request
        (mode, timestep, timesteps), count = request.common
        for done in range(count - 1):
            place = Place("tick", request.seq, timestep + done)
            alive = [index for index in indices if index in self._alive]
            self._ask("tick", (Tick(mode, timestep + done, timesteps), 1), indices=alive, place=place)
        return request._replace(common=(Tick(mode, timestep + count - 1, timesteps), 1))

    def _ask(
        self,
        method: str,
        common: tuple[Any, ...] = (),
        each: Sequence[Any] | None = None,
        *,
        indices: Sequence[int] | None = None,
        patience: Patience | None = None,
        place: Place = REBUILDING,
    ) -> dict[int, Any]:
        """Return the payloads of the replies of workers that are still there.

        Raises:
            WorkerError: Environments or agents raised something.
        """
        indices = list(self._alive) if indices is None else indices
        if not indices:
            return {}
        team = self._team
        replies = team.streams.ask(
            indices, method, common, each, patience=patience or team.patience(), phase=method, timestep=place.timestep
        )
        failed = {index: reply.payload for index, reply in replies.items() if reply.status == "error"}
        if raised := [failure for each in failed.values() for failure in each if not team.is_loss(failure, method)]:
            raise WorkerError(raised)
        for index, failures in failed.items():
            self._lose(index, failures[0], place)
        return {index: reply.payload for index, reply in replies.items() if index not in failed}

    def _lose(self, index: int, failure: Failure, place: Place) -> None:
        was_built = index in self._team.descriptions
        self.lost[index], self.places[index] = failure, place if was_built else BUILDING
        self._alive.remove(index)
