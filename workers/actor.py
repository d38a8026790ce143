"""The Ray shell around `Service`: the one place at which workers know Ray."""

from __future__ import annotations

import os
from typing import Any

import ray
from ray import cloudpickle

from workers.service import Busy, Reply, Service

__all__ = ["WorkerActor"]


@ray.remote(concurrency_groups={"control": 1})
class WorkerActor:
    """Serves one ordered stream of requests in its default group, and `ping` beside it."""

    def __init__(self) -> None:
        # Ray gives an actor's CPUs to OpenMP; XLA, which JAX computes with, has a name of its own for them
        os.environ.setdefault("NPROC", os.environ.get("OMP_NUM_THREADS", "1"))
        self._service = Service(cloudpickle.dumps)

    def handle(self, seq: int, method: str, args: tuple[Any, ...]) -> Reply:
        """Do one request; see `Service.handle`."""
        return self._service.handle(seq, method, args)

    @ray.method(concurrency_group="control")
    def ping(self) -> Busy:
        """What the worker is busy with: answered also while it is, so that slow and dead can be told apart."""
        return self._service.busy()
