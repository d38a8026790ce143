"""Workers without Ray: the servers of many in few processes, reached by the driver's own code.

`python benchmarks/hosted.py` is one such process; `Hosts` starts two. So the driver's cost of 64 workers can be
measured on few cores: a process for each of them would leave no time for the driver.
"""

from __future__ import annotations

import json
import secrets
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import sleep, thread_time
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from ray import cloudpickle

sys.path.insert(0, str(Path(__file__).parent))

from no_op import NoOpEnv

import orchestrator.ray.session as session_module
from orchestrator.base import Plan
from orchestrator.merge import merge_outcomes
from orchestrator.ray.cluster import Cluster
from orchestrator.ray.connection import Connections
from orchestrator.ray.options import RecoveryOptions
from orchestrator.ray.patience import StepPatience
from orchestrator.ray.rebuilding import Team
from orchestrator.ray.recovery import Recovery
from orchestrator.ray.requests import Door
from orchestrator.ray.session import RaySession
from orchestrator.ray.snapshots import Snapshots
from orchestrator.ray.starting import StartTime
from workers.pickling import dumps
from workers.remote.dialing import Address
from workers.remote.server import Server
from workers.remote.service import Service
from workers.remote.spec import WorkerSpec

ROWS = 16  # environments of a worker
DEADLINE = 60  # seconds for every wait
REQUEST = 106  # bytes of the message that orders an iteration
HEAD = 80  # bytes of a reply before its arrays


def build_wide(columns: int, num_envs: int, _first_env: int) -> NoOpEnv:
    return NoOpEnv(num_envs, columns)


def outcome_bytes(columns: int) -> int:
    """Return the bytes of a worker's arrays in a message: each begins at a multiple of 64."""
    lengths = (ROWS * columns * 4, ROWS * 4, ROWS, ROWS)
    return sum(-(-length // 64) * 64 for length in lengths)


class Place(NamedTuple):
    """Where a worker and its bare peer listen.

    Attributes:
        door: The worker.
        bare: The address of the peer's socket, for its kind.
    """

    door: Door
    bare: Any


class Hosts:
    """Two processes that hold all workers."""

    def __init__(self, kind: str) -> None:
        """Start them.

        Args:
            kind: ``"TCP"`` or ``"Unix"``: how the workers are reached.
        """
        self.kind = kind
        command = [sys.executable, __file__]
        self._processes = [
            subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)
        ]

    def open(self, count: int, reply: int) -> list[Place]:
        """Replace all workers by `count` new ones, with bare peers that send `reply` bytes."""
        places: list[Place] = []
        for index, process in enumerate(self._processes):
            assert process.stdin is not None
            assert process.stdout is not None
            order = {"count": (count + 1 - index) // 2, "reply": reply, "kind": self.kind}
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            places += map(self._place, json.loads(process.stdout.readline()))
        return places

    def _place(self, told: dict[str, Any]) -> Place:
        name, bare = bytes.fromhex(told["name"]), told["bare"]
        if self.kind == "TCP":
            name = b""  # as for a worker on another machine
        address = Address("127.0.0.1", told["port"], name)
        door = Door(address, bytes.fromhex(told["key"]), "no node")
        return Place(door, bytes.fromhex(bare) if self.kind == "Unix" else ("127.0.0.1", int(bare)))

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            process.wait(DEADLINE)


class Clock:
    """CPU time of the calling thread in parts of a step, and a pause in the middle of it.

    Attributes:
        spent: Seconds by part.
        pause: Seconds between sending and receiving, in which the workers can reply.
    """

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.pause = 0.0

    def of(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that also measures its time."""

        def call(*args: Any) -> Any:
            start = thread_time()
            result = function(*args)
            self.spent[name] += thread_time() - start
            return result

        return call


class Clocked:
    """An orchestrator whose sessions are measured: ``send``, ``receive`` (which includes merging) and ``merge``."""

    num_threads = 1

    def __init__(self, orchestrator: Any, clock: Clock) -> None:
        self._orchestrator, self._clock = orchestrator, clock

    def start(self, plan: Plan) -> Any:
        """Start the orchestrator's session."""
        session, clock = self._orchestrator.start(plan), self._clock
        send = clock.of("send", session.submit)

        def send_and_wait(*args: Any) -> None:
            send(*args)
            if clock.pause:
                sleep(clock.pause)

        session.submit, session.result = send_and_wait, clock.of("receive", session.result)
        session_module.merge_outcomes = clock.of("merge", merge_outcomes)
        return session


class HostedOrchestrator:
    """Our session in Ray and its connections, with workers in `Hosts` in place of actors."""

    num_threads = 1

    def __init__(self, places: Sequence[Place], cluster: Cluster) -> None:
        self._places, self._cluster = places, cluster

    def start(self, plan: Plan) -> RaySession:
        """Connect to the workers and build them, as `RayOrchestrator` does."""
        actors = [SimpleNamespace(serve=SimpleNamespace(remote=lambda: None))] * len(plan.scopes)
        streams = Connections(self._cluster, actors, plan.scopes, [place.door for place in self._places])
        env, cfg = cloudpickle.dumps(plan.env), cloudpickle.dumps(plan.cfg)
        specs = [
            WorkerSpec(
                scope=scope,
                framework=plan.framework.name,
                agent=cloudpickle.dumps(agent),
                env=env,
                observation_space=None,
                cfg=cfg,
                seed=plan.seed,
            )
            for scope, agent in zip(plan.scopes, plan.agents, strict=True)
        ]
        patience, nothing = partial(StepPatience, DEADLINE), Snapshots(None, 0)
        crew: Any = None  # no process is replaced
        team = Team(crew, streams, specs, plan.scopes, RecoveryOptions(snapshot_every=0), patience, nothing)
        recovery = Recovery(team)
        recovery.build(StartTime(DEADLINE))
        return RaySession(plan, None, streams, recovery, patience=patience, release=streams.close)


class Bare:
    """The bounds: sockets that exchange as many bytes with the same processes, and NumPy, which joins as many rows."""

    def __init__(self, places: Sequence[Place], columns: int, reply: int) -> None:
        """Connect to the bare peers of `places`, which send `reply` bytes."""
        self._request = bytes(REQUEST)
        self._buffers = [memoryview(bytearray(reply)) for _ in places]
        self._sockets = [_connected(place.bare) for place in places]
        kinds = ((columns, np.float32), (1, np.float32), (1, np.bool_), (1, np.bool_))
        self._parts = [[np.ones((ROWS, width), dtype) for _ in places] for width, dtype in kinds]

    def send(self) -> None:
        """Send a request to each peer."""
        for sock in self._sockets:
            sock.send(self._request)

    def receive(self) -> None:
        """Receive a reply from each peer."""
        for sock, buffer in zip(self._sockets, self._buffers, strict=True):
            if sock.recv_into(buffer, 0, socket.MSG_WAITALL) != len(buffer):
                raise ConnectionError("a bare peer is gone")

    def join(self) -> list[Any]:
        """Join the rows of arrays like those of the workers."""
        return [np.concatenate(rows) for rows in self._parts]

    def close(self) -> None:
        """Close the sockets, which ends the peers."""
        for sock in self._sockets:
            sock.close()


def _connected(address: Any) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX if isinstance(address, bytes) else socket.AF_INET)
    sock.connect(address)
    _prepare(sock)
    return sock


def _prepare(sock: socket.socket) -> None:
    """Set a deadline in the kernel: Python's would cost another system call for each wait."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", DEADLINE, 0))
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def serve() -> None:
    """Open workers as the lines of the standard input say, until it ends."""
    opened: list[Server] = []
    for line in sys.stdin:
        order = json.loads(line)
        for server in opened:
            server.shut()
        opened, told = [], []
        for _ in range(order["count"]):
            key = secrets.token_bytes(32)
            server = Server(Service(dumps), dumps)
            address = server.open("127.0.0.1", key)
            threading.Thread(target=server.serve, daemon=True).start()
            opened.append(server)
            bare = _open_bare(order["kind"], order["reply"])
            told.append({"port": address.port, "name": address.name.hex(), "key": key.hex(), "bare": bare})
        print(json.dumps(told), flush=True)


def _open_bare(kind: str, reply: int) -> str | int:
    """Start a bare peer and return its address."""
    listener = socket.socket(socket.AF_UNIX if kind == "Unix" else socket.AF_INET)
    listener.bind("" if kind == "Unix" else ("127.0.0.1", 0))
    listener.listen(1)
    threading.Thread(target=partial(_answer, listener, bytes(reply)), daemon=True).start()
    name = listener.getsockname()
    return name.hex() if isinstance(name, bytes) else int(name[1])


def _answer(listener: socket.socket, reply: bytes) -> None:
    with listener:
        sock, _ = listener.accept()
    with sock:
        sock.setblocking(True)
        _prepare(sock)
        request = bytearray(REQUEST)
        while sock.recv_into(request, 0, socket.MSG_WAITALL) == REQUEST:
            sock.sendall(reply)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    serve()
