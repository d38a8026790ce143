"""Crew: the processes of a trainer's workers, each in a bundle that Ray has reserved for it, and spare ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.ray.bundles import Bundle
from orchestrator.ray.cluster import Cluster
from orchestrator.ray.fitting import Strategy
from orchestrator.ray.placement import release, reserve, reserve_elsewhere
from orchestrator.ray.requests import NODE_LOSSES, Door
from orchestrator.ray.starting import MISSING, StartTime, open_doors
from workers.errors import ClusterError, Failure, WorkerError
from workers.remote.actor import WorkerActor
from workers.remote.spec import WorkerSpec
from workers.types import Scope

__all__ = ["Crew"]

_logger = logging.getLogger("lockstep")

_ANSWERING = 2.0
"""Seconds within which a spare process answers."""


@dataclass(frozen=True)
class _Seat:
    """A bundle of a placement group."""

    group: PlacementGroup
    index: int
    bundle: Bundle


@dataclass(frozen=True)
class _Spare:
    """A process that waits, and Ray's reference to its node's id, which is there when its imports are done."""

    seat: _Seat
    actor: Any
    ready: Any


class Crew:
    """The processes of all workers, and those that wait to replace one.

    Attributes:
        actors: The actor of each worker, in scope order.
        nodes: Ray's id of the node of each worker.
    """

    def __init__(
        self,
        cluster: Cluster,
        bundles: Sequence[Bundle],
        scopes: Sequence[Scope],
        *,
        strategy: Strategy,
        num_threads: int,
        spares: int,
        connects: bool,
        time: StartTime,
    ) -> None:
        """Reserve a bundle for each process; see `reserve` for the errors.

        Args:
            cluster: The connected cluster.
            bundles: What each worker asks of its node.
            scopes: The scopes.
            strategy: How they are distributed over the nodes; see `RayOrchestrator`.
            num_threads: Compute threads of each worker.
            spares: Number of spare processes. They ask for what the first worker asks for.
            connects: See `open_doors`.
            time: Time of the start.
        """
        self.actors: list[Any] = []
        self._cluster, self._scopes, self._strategy = cluster, scopes, strategy
        self._num_threads, self._connects = num_threads, connects
        self.nodes: list[str] = []
        self._spares: list[_Spare] = []
        self._free: list[_Seat] = []  # of spares that are not started yet
        wanted = [*bundles, *[bundles[0]] * spares]
        try:
            self._groups = [reserve(cluster, wanted, strategy=strategy, time=time)]
        except ClusterError as error:
            if spares:
                raise ClusterError(f"{error}, or fewer spares ({spares} of these {len(wanted)} are spares)") from error
            raise
        seats = [_Seat(self._groups[0], index, bundle) for index, bundle in enumerate(wanted)]
        self._seats, self._free = seats[: len(bundles)], seats[len(bundles) :]

    def start(self, time: StartTime, *, tries: int) -> list[Door]:
        """Start the processes of all workers and return how they can be connected to; see `open_doors` for errors.

        Args:
            time: Time of the start.
            tries: How often to try, if one of them dies meanwhile.
        """
        self.actors = [self._actor(seat) for seat in self._seats]
        try:
            doors = open_doors(self.actors, self._scopes, time, connects=self._connects)
        except WorkerError as error:
            if tries == 1 or any(MISSING in failure.message for failure in error.failures):
                raise
            _logger.warning("a process died while it started; all are started again: %s", error)
            self._kill(self.actors)
            return self.start(time, tries=tries - 1)
        self.nodes = [door.node for door in doors]
        return doors

    def add_spares(self, specs: Sequence[WorkerSpec]) -> None:
        """Start the processes that wait; they import what the worker of the first spec imports."""
        while self._free:
            seat = self._free.pop()
            actor = self._actor(seat)
            self._spares.append(_Spare(seat, actor, actor.warm.remote(specs[0])))

    def restart(self, lost: Mapping[int, Failure], time: StartTime) -> dict[int, Door]:
        """Replace the processes of lost workers and return how the new ones can be connected to.

        A worker stays in its bundle, which Ray moves to another node if its node has died. If its node does not answer,
        but Ray does not know that it is dead, it gets a bundle elsewhere.

        Args:
            lost: Why each of them was lost.
            time: Time of the restart.

        Raises:
            WorkerError: Processes died, or cannot start.
            ClusterError: No node has room in time.
        """
        self._kill([self.actors[index] for index in lost])
        away = {self.nodes[index] for index, failure in lost.items() if failure.kind in NODE_LOSSES}
        for index, failure in lost.items():
            seat = self._seats[index]
            if spare := self._spare(away):
                self.actors[index], self._seats[index] = spare.actor, spare.seat
                self._free.append(seat)
                continue
            if failure.kind == "NodeUnreachable":
                others = set(self.nodes) if self._strategy == "STRICT_SPREAD" else set()
                group = reserve_elsewhere(self._cluster, seat.bundle, away | others, self.nodes[index], time=time)
                if group is not None:
                    self._groups.append(group)
                    if seat.group is not self._groups[0]:  # that of the start has the bundles of others, too
                        self._groups.remove(seat.group)
                        release(self._cluster, seat.group)
                    seat = self._seats[index] = _Seat(group, 0, seat.bundle)
            self.actors[index] = self._actor(seat)
        indices = list(lost)
        doors = open_doors(
            [self.actors[index] for index in indices],
            [self._scopes[index] for index in indices],
            time,
            connects=self._connects,
        )
        for index, door in zip(indices, doors, strict=True):
            self.nodes[index] = door.node
        return dict(zip(indices, doors, strict=True))

    def close(self) -> None:
        """End all processes, and release what was reserved."""
        self._kill([*self.actors, *(spare.actor for spare in self._spares)])
        for group in self._groups:
            release(self._cluster, group)

    def _spare(self, away: set[str]) -> _Spare | None:
        """Take a spare process that is ready, on none of these nodes; None if there is none."""
        for spare in list(self._spares):
            try:
                is_usable = ray.get(spare.ready, timeout=0) not in away
                if is_usable:
                    ray.get(spare.actor.__ray_ready__.remote(), timeout=_ANSWERING)
            except TimeoutError:
                if not ray.wait([spare.ready], timeout=0)[0]:  # it is starting
                    continue
                is_usable = False  # it is stopped
            except RayError:
                is_usable = False  # it has died
            self._spares.remove(spare)
            if is_usable:
                return spare
            self._kill([spare.actor])
            self._free.append(spare.seat)
        return None

    def _actor(self, seat: _Seat) -> Any:
        """Start an actor in a bundle."""
        bundle = seat.bundle
        return WorkerActor.options(  # type: ignore[attr-defined]
            num_cpus=bundle.num_cpus,
            num_gpus=bundle.num_gpus,
            resources=dict(bundle.resources),
            scheduling_strategy=PlacementGroupSchedulingStrategy(seat.group, placement_group_bundle_index=seat.index),
        ).remote(num_threads=self._num_threads)

    def _kill(self, actors: Sequence[Any]) -> None:
        if self._cluster.is_connected:
            for actor in actors:
                ray.kill(actor)
