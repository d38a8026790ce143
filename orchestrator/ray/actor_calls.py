"""Plain actor calls that carry the requests to the workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.ray.cluster import Cluster
from orchestrator.ray.deaths import death, uncoloured
from orchestrator.ray.requests import PING_TIMEOUT, Door, Request, UnreachableError, unreadable
from orchestrator.ray.transport import Streams
from workers.remote.actor import ControlActor
from workers.remote.dialing import Address
from workers.remote.replies import Busy, Reply
from workers.remote.wire import Packed, check_packed
from workers.types import Scope

__all__ = ["ActorCalls"]

_HELPER_TIMEOUT = 3.0
"""Seconds for a ping through a helper, which takes `PING_TIMEOUT` itself."""


class ActorCalls(Streams):
    """Request streams of plain actor calls.

    A worker cannot answer such a call during another one. Pings and halts go through a helper actor on its node, which
    is started when it is needed first. A host that is gone is learnt from Ray alone, which takes about a minute.
    """

    transport = "ray"

    def __init__(self, cluster: Cluster, actors: Sequence[Any], scopes: Sequence[Scope], doors: Sequence[Door]) -> None:
        super().__init__(cluster, actors, scopes)
        self._refs: list[dict[int, Any]] = [{} for _ in actors]
        self._by_node: dict[str, dict[int, tuple[Address, bytes]]] = {}
        for index, door in enumerate(doors):
            self._by_node.setdefault(door.node, {})[index] = door.address, door.key
        self._helpers: dict[str, Any] = {}

    def _reach(self, index: int, actor: Any, door: Door) -> None:
        self._refs[index] = {}
        for doors in self._by_node.values():
            doors.pop(index, None)
        self._by_node.setdefault(door.node, {})[index] = door.address, door.key
        self._end_helpers()  # they know the old door

    def _send(self, index: int, number: int, request: Request, ack: int) -> None:
        _, method, common, each = request
        refs = self._refs[index]
        for old in [number for number in refs if number < ack]:
            del refs[old]
        arguments = cloudpickle.dumps(common if each is None else (*common, each[index]))
        refs[number] = self._actors[index].handle.remote(number, method, arguments, ack)

    def _receive(self, index: int, number: int, timeout: float) -> Reply | None:
        try:
            data = ray.get(self._refs[index][number], timeout=timeout)
        except GetTimeoutError:
            return None
        except RayActorError as error:
            raise death(error) from error
        except RayError as error:  # such as memory that ran out, or a reply that was lost with its node
            raise UnreachableError("WorkerDied", f"{type(error).__name__}: {uncoloured(error)}") from error
        del self._refs[index][number]
        try:
            reply: Reply = cloudpickle.loads(data)
            if isinstance(reply.payload, Packed):
                check_packed(reply.payload)
        except Exception as error:
            raise unreadable(error) from error
        return reply

    def _ping(self, indices: Sequence[int]) -> Mapping[int, Busy | None]:
        if not self._helpers:
            self._start_helpers()
            return {}  # they need a moment
        calls = [helper.ping.remote(part, PING_TIMEOUT) for part, helper in self._parts(indices)]
        ray.wait(calls, num_returns=len(calls), timeout=_HELPER_TIMEOUT)
        answers: dict[int, Busy | None] = {}
        for call in calls:
            try:
                answers |= ray.get(call, timeout=0)
            except RayError:  # the helper does not answer, or is gone
                continue
        return answers

    def _halt(self, numbers: Mapping[int, int]) -> None:
        if not self._helpers:
            self._start_helpers()
        for part, helper in self._parts(list(numbers)):
            helper.halt.remote({index: numbers[index] for index in part})

    def _start_helpers(self) -> None:
        for node, doors in self._by_node.items():
            if not doors:
                continue
            strategy = NodeAffinitySchedulingStrategy(node, soft=False)
            helper = ControlActor.options(scheduling_strategy=strategy)  # type: ignore[attr-defined]
            self._helpers[node] = helper.remote(doors)

    def _parts(self, indices: Sequence[int]) -> list[tuple[list[int], Any]]:
        """Return the workers on each node, and the helper there."""
        parts = [
            ([index for index in indices if index in doors], self._helpers[node])
            for node, doors in self._by_node.items()
            if doors
        ]
        return [(part, helper) for part, helper in parts if part]

    def close(self) -> None:
        """Forget all requests, and end the helpers."""
        self._refs = [{} for _ in self._actors]
        self._end_helpers()

    def _end_helpers(self) -> None:
        helpers, self._helpers = self._helpers, {}
        if self.cluster.is_connected:
            for helper in helpers.values():
                ray.kill(helper)
