"""RemoteAgents: the agents of shared environments, each in an actor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from orchestrator.base import Plan
from orchestrator.ray.requests import Patience
from orchestrator.ray.transport import Streams
from workers.by_agent import map_arrays
from workers.errors import Failure, WorkerError
from workers.fetching import Fetch
from workers.infos import take_rows
from workers.node import node_name
from workers.remote.actor import dumps_by_value
from workers.remote.wire import FrameworkArray, Packed, from_wire, to_wire
from workers.storage.snapshot import Part, Snapshot
from workers.types import Arrays, Phase, Scope, Tick, Transition

__all__ = ["RemoteAgents", "failure_of", "for_each"]


class RemoteAgents:
    """The agents of shared environments, each in an actor; see `workers.scope.worker.Agents`."""

    def __init__(
        self, streams: Streams, plan: Plan, patience: Callable[[], Patience], ask: Callable[..., list[Any]]
    ) -> None:
        """Prepare.

        Args:
            streams: The requests to the actors.
            plan: The plan of the trainer.
            patience: Makes the patience with one iteration.
            ask: Returns the replies to a request that is no iteration.
        """
        self._streams = streams
        self._ask = ask
        self._framework = plan.framework
        self._scopes = plan.scopes
        self._num_envs = plan.scopes[-1].stop
        self._patience = patience

    def act(
        self, tick: Tick, observations: Arrays, states: Arrays | None, infos: dict[str, Any] | None
    ) -> Sequence[Arrays]:
        """Return the actions of every agent, in scope order."""
        infos_of_each = [None] * len(self._scopes) if infos is None else self._split_infos(infos)
        rows = zip(self._split(observations), self._split(states), infos_of_each, strict=True)
        parts = self._request("act", tick, Phase.ACT, rows)
        return for_each(
            self._scopes, lambda packed, _: from_wire(packed, self._framework), parts, tick.timestep, Phase.ACT
        )

    def learn(self, tick: Tick, transition: Transition) -> None:
        """Pass every agent its rows of the transition."""
        columns = [*map(self._split, transition[:5]), self._split_infos(transition.infos)]
        self._request(
            "learn", tick, Phase.RECORD, ((*rows, transition.step_time) for rows in zip(*columns, strict=True))
        )

    def collect(self) -> list[dict[str, float]]:
        """Return the scalars of every agent since the last call, by tag."""
        return self._ask("collect")

    def restart(self) -> None:
        """Prepare for an iteration that does not continue from the last one."""
        self._ask("restart")

    def snapshot(self, *, allow_pickle: bool) -> Sequence[Part]:
        """Return the whole state of every agent."""
        return [part for snapshot in self._ask("snapshot", allow_pickle) for part in snapshot.agents]

    def stage(self, parts: Sequence[Part]) -> None:
        """Check that snapshots fit, and keep them for `restore`."""
        self._ask("stage", each=[Snapshot((part,), {}) for part in parts])

    def restore(self) -> None:
        """Go on from the snapshots of `stage`."""
        self._ask("restore")

    def _request(self, method: str, tick: Tick, phase: Phase, trees: Iterable[Any]) -> list[Any]:
        """Send one tree of arrays to each worker and return the payloads of the replies."""
        timestep = tick.timestep

        def pack(tree: Any, _: Scope) -> Packed:
            return to_wire(tree, self._framework, dumps=dumps_by_value)

        each = for_each(self._scopes, pack, trees, timestep, phase)
        replies: list[Any] = self._streams.request(
            method, (tick,), each, patience=self._patience(), phase=phase.value, timestep=timestep
        )
        return replies

    def _split(self, arrays: Arrays | None) -> Sequence[Any]:
        """Return the rows of each scope."""
        framework = self._framework
        fetched = Fetch(arrays, framework).result()
        whole = map_arrays(lambda one: framework.to_numpy(one) if framework.is_array(one) else one, fetched)
        return [map_arrays(partial(_rows, scope), whole) for scope in self._scopes]

    def _split_infos(self, infos: dict[str, Any]) -> list[Any]:
        """Return the infos of each scope."""
        return [take_rows(infos, *scope.rows, self._num_envs, self._framework) for scope in self._scopes]


def for_each(
    scopes: Sequence[Scope],
    function: Callable[[Any, Scope], Any],
    trees: Iterable[Any],
    timestep: int | None,
    phase: Phase,
) -> list[Any]:
    """Send or read the tree of each scope, and report all scopes whose tree cannot be sent or read."""
    results, failures, cause = [], [], None
    for scope, tree in zip(scopes, trees, strict=True):
        try:
            results.append(function(tree, scope))
        except Exception as error:
            cause = error
            failures.append(failure_of(error, scope.index, scope.rows, timestep, phase))
    if failures:
        raise WorkerError(failures) from cause
    return results


def failure_of(
    error: Exception, scope: int | None, rows: tuple[int, int], timestep: int | None, phase: Phase
) -> Failure:
    """Return the failure of sending to workers or reading from them, in this process."""
    return Failure.of(error, scope=scope, rows=rows, phase=phase.value, timestep=timestep, node=node_name())


def _rows(scope: Scope, array: Any) -> Any:
    """Return the scope's rows of an array; None stays None."""
    return None if array is None else FrameworkArray(array[scope.start : scope.stop])
