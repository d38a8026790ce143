"""Recovery: workers that are lost are rebuilt, restored, and brought back to where they were."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import monotonic

from orchestrator.base import Recovered
from orchestrator.ray.rebuilding import BUILDING, REBUILDING, Place, Rebuilding, Team, digest, last_timestep
from orchestrator.ray.requests import ITERATIONS, NODE_LOSSES, Request
from orchestrator.ray.snapshots import Schedule, too_large
from orchestrator.ray.starting import StartTime
from workers.errors import Failure, WorkerError
from workers.remote.wire import Packed
from workers.types import Description, Outcome

__all__ = ["Recovery"]

_logger = logging.getLogger("lockstep")

_CHANGING = ITERATIONS | {"restart", "collect", "stage", "restore", "load", "set_hyperparameters"}
"""The methods of requests that change the state of a worker."""

_ATTEMPTS = 5
"""How often in a row a worker may be rebuilt without success."""

_MOST_REQUESTS = 100_000
"""Most requests that are kept where no snapshot can be written."""


class Recovery:
    """What is needed to rebuild each worker: its snapshot, and the requests since then; see `Rescue`.

    A new worker gets a new key, so nothing that the old one still sends reaches anybody.

    Attributes:
        events: All recoveries so far.
    """

    def __init__(self, team: Team) -> None:
        """Prepare for `build`."""
        self.events: list[Recovered] = []
        self._team = team
        self._schedule = Schedule(team.options.snapshot_every)
        self._journal: dict[int, Request] = {}
        self._journal_size = 0
        self._largest_journal = team.options.bytes_of_snapshots() // 2  # bytes after which it is time for a snapshot
        self._hopeless: dict[int, str] = {}  # why a worker cannot be restored
        self._places: dict[int, Place] = {}  # where each worker was lost last
        self._deaths = self._node_deaths = 0
        self._timestep: int | None = None  # of the last iteration that was asked for

    @property
    def workers(self) -> list[Description]:
        """Descriptions of the workers, in scope order."""
        return [self._team.descriptions[index] for index in range(len(self._team.scopes))]

    def build(self, time: StartTime) -> None:
        """Build all workers, and those that are lost meanwhile a second time.

        Raises:
            WorkerError: Workers cannot be built.
        """
        team, indices = self._team, range(len(self._team.scopes))
        replies = team.streams.ask(indices, "build", each=team.specs, patience=team.start_patience(time), phase="build")
        failures = {index: reply.payload for index, reply in replies.items() if reply.status == "error"}
        lost = {index: each[0] for index, each in failures.items() if self.is_loss(each[0], "build")}
        if len(lost) < len(failures) or (lost and not team.options.recovers):
            raise WorkerError([failure for each in failures.values() for failure in each])
        team.describe({index: reply.payload for index, reply in replies.items() if index not in lost})
        if lost:
            self._recover(lost, dict.fromkeys(lost, BUILDING), dict.fromkeys(lost, ()), time)
        if team.options.recovers:
            team.streams.rescue = self
            self.snapshot()
            team.crew.add_spares(team.specs)

    def is_loss(self, failure: Failure, method: str) -> bool:
        """Return whether a worker that failed so is rebuilt; see `Rescue`."""
        return self._team.is_loss(failure, method)

    def note(self, request: Request) -> None:
        """Keep a request that changes the state of the workers, until the next snapshot."""
        if request.method in _CHANGING and self._is_on:
            self._journal[request.seq] = request
            if request.method in ITERATIONS:
                self._timestep = last_timestep(request)
            self._journal_size += _size(request)

    def forget(self, seq: int) -> None:
        """Forget a request that changed nothing, because it failed."""
        self._journal.pop(seq, None)

    def note_outcomes(self, seq: int, outcomes: Sequence[Outcome]) -> None:
        """Note what the workers replied to an iteration, to compare it when the iteration is played back."""
        if seq in self._journal:
            self._team.digests[seq] = [digest(outcome) for outcome in outcomes]

    @property
    def until_next(self) -> int:
        """How many iterations may run at once before it is time for a snapshot."""
        return self._schedule.until_next() if self._is_on else 2**62

    def is_due(self, count: int) -> bool:
        """Note further iterations, and return whether it is time for a snapshot."""
        return self._is_on and (self._schedule.is_due(count) or self._journal_size > self._largest_journal)

    @property
    def _is_on(self) -> bool:
        return self._team.streams.rescue is self and len(self._hopeless) < len(self._team.scopes)

    def snapshot(self) -> None:
        """Take a snapshot of all workers that can be restored."""
        if self._is_on:
            self.keep(self.begin_snapshot())

    def begin_snapshot(self) -> int:
        """Ask all workers for a snapshot, and return the number of the request."""
        self._schedule.begun()
        limit = self._team.snapshots.limit
        limits = [-1 if index in self._hopeless else limit for index in range(len(self._team.scopes))]
        return self._team.streams.send("snapshot", (True,), limits)

    def keep(self, seq: int) -> None:
        """Keep the snapshots that the workers were asked for."""
        started, recoveries = monotonic(), len(self.events)
        replies = self._team.streams.receive(seq, self._team.patience(), phase="snapshot")
        taken = {index: reply.payload for index, reply in enumerate(replies) if reply.status == "ok"}
        taken = {index: snapshot for index, snapshot in taken.items() if snapshot.agents}
        for index, reply in enumerate(replies):
            if reply.status == "error" and not self.is_loss(reply.payload[0], "snapshot"):  # else it is rebuilt next
                self._give_up(index, reply.payload[0].message)
        if len(taken) + len(self._hopeless) < len(replies):
            return
        try:
            dropped = self._team.snapshots.keep(taken)
        except Exception as error:  # filesystems of other packages may raise anything
            _logger.error("no snapshot could be written; those before are kept, and more is played back: %s", error)
            self._schedule.took(monotonic() - started)
            if self._journal_size > self._largest_journal or len(self._journal) > _MOST_REQUESTS:
                for index in range(len(self._team.scopes)):
                    self._give_up(index, "there is no memory for all requests since the last snapshot")
                self._journal.clear()
            return
        for index, size in dropped.items():
            self._give_up(index, too_large(size, self._team.snapshots.limit))
        is_needed = len(self._hopeless) < len(self._team.scopes)
        self._journal = {number: request for number, request in self._journal.items() if is_needed and number > seq}
        self._journal_size = sum(map(_size, self._journal.values()))
        self._team.split &= self._journal.keys()
        self._team.digests = {number: each for number, each in self._team.digests.items() if number in self._journal}
        if len(self.events) == recoveries:
            self._schedule.took(monotonic() - started)

    def _give_up(self, index: int, reason: str) -> None:
        self._hopeless[index] = reason
        _logger.warning(
            "if the worker of scope %d is lost, the run ends with an error, because it cannot be restored: %s",
            *(index, reason),
        )

    def stop(self) -> None:
        """Recover nothing any more."""
        self._team.streams.rescue = None
        self._journal.clear()

    def recover(self, lost: Mapping[int, Failure]) -> None:
        """Rebuild lost workers; see `Rescue`.

        Raises:
            WorkerError: One of them cannot be restored, or was lost too often.
            ClusterError: No node has room in time.
        """
        team = self._team
        time = StartTime(team.options.restart_timeout, "restart_timeout", check=team.streams.check)
        try:
            owed = {index: team.streams.unanswered(index) for index in lost}
            places = {index: team.place(requests[0]) for index, requests in owed.items()}
            self._recover(lost, places, owed, time)
        except BaseException:
            self.stop()
            for index in lost:  # some may be half-way between their snapshot and the others
                team.streams.give_up(index, "its recovery has failed or was interrupted")
            raise

    def _recover(
        self,
        lost: Mapping[int, Failure],
        places: Mapping[int, Place],
        owed: Mapping[int, Sequence[Request]],
        time: StartTime,
    ) -> None:
        team, started, first, replayed = self._team, monotonic(), lost, 0
        failures: list[Failure] = []
        for attempt in range(_ATTEMPTS + 1):
            self._judge(lost, places, attempt)
            failures += lost.values()
            for index, failure in lost.items():
                _logger.warning(
                    "scope %d on %s was lost and is being rebuilt: %s", index, failure.node, _in_short(failure)
                )
            one = Rebuilding(team, lost, owed, time)
            one.run(self._journal)
            lost, places, replayed = one.lost, one.places, replayed + one.replayed
            if not lost:
                break
        seconds = monotonic() - started
        # a worker dies before Ray knows that its node did
        failure = next((one for one in failures if one.kind in NODE_LOSSES), failures[0])
        event = Recovered(tuple(first), self._timestep, failure.kind, _in_short(failure), seconds, replayed)
        self.events.append(event)
        where = ", ".join(f"scope {index} on {self.workers[index].node}" for index in first)
        _logger.warning("%s: back after %.1f s; iterations replayed: %d", where, seconds, replayed)
        if team.streams.rescue is not None:
            team.crew.add_spares(team.specs)

    def _judge(self, lost: Mapping[int, Failure], places: Mapping[int, Place], attempt: int) -> None:
        """Count the losses.

        Raises:
            WorkerError: A worker cannot be restored, or was lost too often.
        """
        options, common = self._team.options, ""
        crew = self._team.crew
        self._node_deaths += len({crew.nodes[index] for index, one in lost.items() if one.kind in NODE_LOSSES})
        self._deaths += sum(failure.kind not in NODE_LOSSES for failure in lost.values())
        if self._deaths > options.max_worker_deaths:
            common = f"workers were lost more than max_worker_deaths = {options.max_worker_deaths} times"
        elif self._node_deaths > options.max_node_deaths:
            common = f"nodes were lost more than max_node_deaths = {options.max_node_deaths} times"
        elif not self._team.streams.cluster.is_connected:
            common = "Ray was shut down"
        reasons = {index: common or self._reason(index, lost[index], places[index], attempt) for index in lost}
        self._places.update(places)
        if any(reasons.values()):
            raise WorkerError(
                [
                    replace(failure, message=": ".join(filter(None, (reasons[index], failure.message))))
                    for index, failure in lost.items()
                ]
            )

    def _reason(self, index: int, failure: Failure, place: Place, attempt: int) -> str:
        """Return why a worker is not rebuilt; empty if it is."""
        team = self._team
        if index in self._hopeless:
            return f"it cannot be restored: {self._hopeless[index]}"
        if index in team.descriptions and team.specs[index].seed is None and not team.snapshots.has(index):
            return "it cannot be restored: there is no snapshot yet, and without a seed it would be another one"
        if attempt == _ATTEMPTS:
            return f"it was rebuilt {_ATTEMPTS} times in a row, and lost again before it was back"
        if place.is_of_many:
            team.split.add(place.seq)  # to find the iteration, if it was one
        elif place == self._places.get(index) and place != REBUILDING and failure.kind not in NODE_LOSSES:
            return f"this has happened twice {place}"
        return ""


def _size(request: Request) -> int:
    """Return the bytes of the arrays and files of a request; one file may be for several workers."""
    parts = [part for part in request.each or () if part is not None]
    if request.method == "load":
        return sum({id(content): len(content) for _, content in parts}.values())
    return sum(part.size for part in parts if isinstance(part, Packed))


def _in_short(failure: Failure) -> str:
    """Return the first line of a message: Ray's have many, and the first ends with what is clear."""
    return failure.message.partition("\n")[0].removesuffix(": The actor died unexpectedly before finishing this task.")
