"""The Ray actors: the shell around `Service`, and its helper. The only module in ``workers`` that imports Ray."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray import cloudpickle

from workers.errors import ends_process
from workers.node import socket_domain
from workers.pickling import dumper
from workers.remote.control import Controls
from workers.remote.dialing import Address
from workers.remote.log import LogCollector
from workers.remote.replies import Busy
from workers.remote.server import Server
from workers.remote.service import Service
from workers.remote.spec import WorkerSpec
from workers.remote.wire import Packed, check_packed
from workers.threads import THREAD_VARIABLES

__all__ = ["ControlActor", "WorkerActor", "dumps_by_value"]

_dumps = dumper(cloudpickle.Pickler, cloudpickle.Pickler.dispatch_table)


def dumps_by_value(value: Any) -> bytes:
    """Pickle a value, with classes and functions that the receiver cannot import; see `dumper`."""
    return _dumps(value)  # Ray pickles the actors below with what they name, and cannot pickle `_dumps`


@ray.remote
class WorkerActor:
    """The Ray actor around one worker.

    Ray runs its methods one at a time on the main thread of its process, because it has no concurrency groups. Signal
    handlers, event loops and graphics contexts need that thread. What must be answered during a request arrives over a
    control connection; see `Server`.
    """

    def __init__(self, num_threads: int) -> None:
        # for libraries loaded and processes started later; Ray has set these variables to the CPUs
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(num_threads)))
        asyncio.set_event_loop(asyncio.new_event_loop())  # as on the main thread of any program; Ray has removed it
        log = LogCollector()
        log.install()
        self._service = Service(dumps_by_value, log, pickler=cloudpickle.Pickler)
        self._server = Server(self._service, dumps_by_value)

    def open(self, key: bytes, domain: str | None) -> tuple[Address, str]:
        """Listen for the driver that knows the key. Return an address that it can reach, and the node's id.

        Args:
            key: The secret.
            domain: The `socket_domain` of the driver; None if it connects through a helper on this node. Only another
                one makes the worker listen on the network.
        """
        host = ray.util.get_node_ip_address()
        is_local = domain is None or (domain != "" and domain == socket_domain())
        address = self._server.open(None if is_local else host, key)
        return address._replace(host=host), ray.get_runtime_context().get_node_id()

    def warm(self, spec: WorkerSpec) -> str:
        """Import what a worker of this kind imports, in a process that waits to replace one. Return the node's id."""
        self._service.warm(spec)
        return ray.get_runtime_context().get_node_id()

    def serve(self) -> None:
        """Handle requests that arrive over connections, until the process ends; see `Server`."""
        self._server.serve()

    def handle(self, seq: int, method: str, args: bytes, ack: int) -> bytes:
        """Handle one request with pickled arguments and return the pickled reply; see `Service.handle`."""
        try:
            arguments = cloudpickle.loads(args)
            for argument in arguments:
                if isinstance(argument, Packed):
                    check_packed(argument)
        except BaseException as error:
            if ends_process(error):
                raise
            reply = self._service.refuse(seq, "request", error)
        else:
            reply = self._service.handle(seq, method, arguments, ack=ack)
        try:
            data: bytes = cloudpickle.dumps(reply)
        except BaseException as error:
            if ends_process(error):
                raise
            data = cloudpickle.dumps(self._service.refuse(seq, "reply", error))
        return data


@ray.remote(num_cpus=0)
class ControlActor:
    """Helper on the node of some workers, for a driver that reaches them only through Ray; see `Controls`.

    A worker's own methods wait for the request that it is handling.
    """

    def __init__(self, doors: Mapping[int, tuple[Address, bytes]]) -> None:
        self._controls = Controls(doors)

    def ping(self, indices: Sequence[int], timeout: float) -> dict[int, Busy | None]:
        """Return what workers are busy with; see `Controls.ping`."""
        return self._controls.ping(indices, timeout)

    def halt(self, numbers: Mapping[int, int]) -> None:
        """Let workers stop requests up to these numbers early; see `Controls.halt`."""
        self._controls.halt(numbers)
