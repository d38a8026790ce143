"""The Ray shell around `Service`: the only module in ``workers`` that imports Ray."""

from __future__ import annotations

import os
from typing import Any

import ray
from ray import cloudpickle

from workers.remote.channel import Address
from workers.remote.server import Server
from workers.remote.service import Busy, Reply, Service
from workers.threads import THREAD_VARIABLES

__all__ = ["WorkerActor"]


@ray.remote(concurrency_groups={"control": 1})
class WorkerActor:
    """The Ray actor around one worker.

    Its default group handles one ordered stream of requests, from plain calls or over a connection. Methods that must
    answer during a request are in the group ``control``.
    """

    def __init__(self, num_threads: int) -> None:
        # for libraries loaded and processes started later; Ray has set these variables to the CPUs
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(num_threads)))
        self._service = Service(cloudpickle.dumps)
        self._server = Server(self._service, cloudpickle.dumps)

    def handle(self, seq: int, method: str, args: tuple[Any, ...], ack: int) -> Reply:
        """Handle one request; see `Service.handle`."""
        return self._service.handle(seq, method, args, ack=ack)

    def serve(self) -> None:
        """Handle requests that arrive over connections, until `shut`; see `Server`."""
        self._server.serve()

    @ray.method(concurrency_group="control")
    def open(self, key: bytes) -> Address:
        """Listen for the driver that knows the key, on an address of this node that the cluster can reach."""
        return self._server.open(ray.util.get_node_ip_address(), key)

    @ray.method(concurrency_group="control")
    def shut(self) -> None:
        """Stop listening; `serve` returns."""
        self._server.shut()

    @ray.method(concurrency_group="control")
    def ping(self) -> Busy:
        """Return what the worker is busy with, also during a request: this tells a slow worker from a dead one."""
        return self._service.busy()

    @ray.method(concurrency_group="control")
    def halt(self, seq: int) -> None:
        """Stop requests up to `seq` early; see `Service.halt`."""
        self._service.halt(seq)
