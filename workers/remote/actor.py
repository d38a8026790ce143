"""The Ray shell around `Service`: the one place at which workers know Ray."""

from __future__ import annotations

import os
from typing import Any

import ray
from ray import cloudpickle

from workers.remote.channel import Address
from workers.remote.server import Server
from workers.remote.service import Busy, Reply, Service

__all__ = ["WorkerActor"]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")
"""What sets the compute threads of torch, NumPy and XLA, each when it is loaded."""


@ray.remote(concurrency_groups={"control": 1})
class WorkerActor:
    """Does one ordered stream of requests in its default group: plain calls, or those that come over a connection.

    What has to be answered also while it does one is in a group of its own.
    """

    def __init__(self, num_threads: int) -> None:
        # for libraries that are loaded later and processes that are started here: Ray has set them to the CPUs
        os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(num_threads)))
        self._service = Service(cloudpickle.dumps)
        self._server = Server(self._service, cloudpickle.dumps)

    def handle(self, seq: int, method: str, args: tuple[Any, ...], ack: int) -> Reply:
        """Do one request; see `Service.handle`."""
        return self._service.handle(seq, method, args, ack=ack)

    def serve(self) -> None:
        """Do the requests that come over connections, until `shut`; see `Server`."""
        self._server.serve()

    @ray.method(concurrency_group="control")
    def open(self, key: bytes) -> Address:
        """Listen for the driver that knows the key, on an address of this node that the cluster reaches."""
        return self._server.open(ray.util.get_node_ip_address(), key)

    @ray.method(concurrency_group="control")
    def shut(self) -> None:
        """Do not listen any more; `serve` returns."""
        self._server.shut()

    @ray.method(concurrency_group="control")
    def ping(self) -> Busy:
        """What the worker is busy with: answered also while it is, so that slow and dead can be told apart."""
        return self._service.busy()

    @ray.method(concurrency_group="control")
    def halt(self, seq: int) -> None:
        """Of the requests up to `seq`, begin only the first iteration."""
        self._service.halt(seq)
