"""Benchmark of a worker's door: how long a driver takes to connect, and to connect again, while strangers are there.

The strangers stay while the driver connects thirty times and loses thirty connections during requests.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from orchestrator.ray.connection import Link
from workers.remote.control import Controls
from workers.remote.dialing import Address

KEY = b"k" * 32
TIMES = 30
WORKER = """
import pickle
from workers.remote.server import Server
from workers.remote.service import Service
server = Server(Service(pickle.dumps), pickle.dumps)
address = server.open("127.0.0.1", b"k" * 32)
print(address.port, address.name.hex(), flush=True)
server.serve()
"""


def idle(sock: socket.socket) -> None:
    """Say nothing."""


def drip(sock: socket.socket) -> None:
    """Say one byte."""
    sock.send(b"l")


def half_close(sock: socket.socket) -> None:
    """Say that nothing more will come."""
    sock.shutdown(socket.SHUT_WR)


def stranger(address: Address) -> socket.socket:
    if address.port:
        return socket.create_connection((address.host, address.port), timeout=10)
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(address.name)
    return sock


def measure(address: Address, behave: Callable[[socket.socket], None], count: int) -> tuple[list[float], list[float]]:
    """Return the seconds of each connection and of each answer after a lost connection."""
    strangers = [stranger(address) for _ in range(count)]
    connects, reconnects = [], []
    controls = Controls({0: (address, KEY)})
    for number in range(TIMES):
        for sock in strangers:
            with suppress(OSError):
                behave(sock)
        extra = [stranger(address) for _ in range(count // 10)]
        start = time.perf_counter()
        link = Link(address, KEY)
        connects.append(time.perf_counter() - start)
        assert controls.ping([0], 10)[0] is not None
        for sock in extra:
            sock.close()
        link._channel._sock.shutdown(socket.SHUT_RDWR)  # lost, without the knowledge of its owner
        start = time.perf_counter()
        link.send(number + 1, "collect", (), ack=number + 1)
        assert link.receive(number + 1, 10) is not None  # an error, because the worker was not built
        reconnects.append(time.perf_counter() - start)
        link.close()
    controls.close()
    for sock in strangers:
        sock.close()
    return connects, reconnects


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 10_000), hard))
    print("| strangers | socket | they | slowest connection | slowest reconnection | of |")
    print("| --- | --- | --- | --- | --- | --- |")
    for count in (64, 1000):
        for kind in ("TCP", "Unix"):
            for behave in (idle, drip, half_close):
                worker = subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True)
                assert worker.stdout is not None
                port, name = worker.stdout.readline().split()
                host = "127.0.0.1"
                address = Address(host, int(port)) if kind == "TCP" else Address(host, 0, bytes.fromhex(name))
                connects, reconnects = measure(address, behave, count)
                worker.kill()
                worker.wait()
                slowest = f"{max(connects) * 1000:.0f} ms | {max(reconnects) * 1000:.0f} ms"
                print(f"| {count} | {kind} | {behave.__name__} | {slowest} | {len(reconnects)} |", flush=True)


if __name__ == "__main__":
    main()
