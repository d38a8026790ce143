"""Connections between a driver and a worker: both ends in one process, and what stands between them or attacks them."""

from __future__ import annotations

import socket
import struct
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from orchestrator.ray.connection import Link
from tests.support.agents import NullAgent
from tests.support.processes import PATIENCE
from tests.support.service import spec
from workers.pickling import dumps
from workers.remote.handshake import SERVE, WORK, Session, handshake
from workers.remote.replies import Reply
from workers.remote.server import Server
from workers.remote.service import Service
from workers.remote.sockets import prepare

KEY = b"k" * 32
HEADER = struct.Struct("<QQiiQQQQB7x")
"""What follows the tag of a message; see `workers.remote.channel`."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), timeout=PATIENCE)
        server, _ = listener.accept()
    for end in (client, server):
        end.settimeout(PATIENCE)
        prepare(end, patience=PATIENCE)
    return client, server


def sessions(
    driver_key: bytes = KEY, worker_key: bytes = KEY, *, role: bytes = WORK, signs_arrays: bool = False
) -> tuple[Session, Session]:
    """Return the sessions of a driver and a worker after a handshake without sockets."""
    driver, worker = handshake(driver_key, role, signs_arrays=signs_arrays), handshake(worker_key, SERVE)
    greeting, answer = next(driver)[0], next(worker)[0]
    worker.send(greeting)
    proof, _ = worker.send(driver.send(answer)[0])
    return ended(driver, proof), ended(worker, b"")


def ended(side: Any, last: bytes) -> Session:
    """Return the session of a side that gets its last message."""
    try:
        side.send(last)
    except StopIteration as end:
        session: Session = end.value
        return session
    raise AssertionError("it wants more")


def in_background(function: Any, *args: Any, **options: Any) -> Any:
    """Call a function in a thread; return a function that waits for its result or raises its exception."""
    outcome: list[Any] = []

    def call() -> None:
        try:
            outcome.append((function(*args, **options), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()

    def result() -> Any:
        thread.join(PATIENCE)
        assert outcome, "it did not return"
        value, error = outcome[0]
        if error is not None:
            raise error
        return value

    return result


class BuiltWorker:
    """A server on its own thread, whose worker is built."""

    def __init__(self) -> None:
        self.service = Service(dumps)
        self.server = Server(self.service, dumps)
        self.address = self.server.open("127.0.0.1", KEY)
        self._thread = threading.Thread(target=self.server.serve, daemon=True)
        self._thread.start()
        self.seq = 0
        assert self.ask("build", spec(NullAgent)).status == "ok"

    def ask(self, method: str, *args: Any) -> Reply:
        """Ask over a connection of its own."""
        link = Link(self.address, KEY)
        seq = self.service._last + 1
        link.send(seq, method, args, ack=seq)
        reply = link.receive(seq, PATIENCE)
        link.close()
        assert reply is not None
        return reply

    def close(self) -> None:
        self.server.shut()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


class Bounded:
    """Fails if a piece of code needs 64 MB more memory than it was given. `tracemalloc` must be running."""

    def __init__(self, given: int) -> None:
        self._given = given

    def __enter__(self) -> None:
        tracemalloc.reset_peak()
        self._before = tracemalloc.get_traced_memory()[0]

    def __exit__(self, *_: Any) -> None:
        assert tracemalloc.get_traced_memory()[1] - self._before - self._given < 64 * 1024 * 1024


class Relay:
    """Sits between driver and worker. It passes everything on, and cuts or changes it on demand.

    Attributes:
        cut_after: Bytes of replies after which this connection, but not the next, is cut; None for never.
        change: Takes what a side has sent and whether that is the worker, and returns what is passed on.
        is_up: Set while anything is passed on; else it is kept, as on a cable that is pulled.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.cut_after: int | None = None
        self.change: Callable[[bytes, bool], bytes] = lambda data, _: data
        self.is_up = threading.Event()
        self.is_up.set()
        self.connections = 0
        self._target = target
        self._ends: list[socket.socket] = []
        self._is_closed = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                driver, _ = self._listener.accept()
            except OSError:
                return
            self._ends.append(driver)
            self.connections += 1
            try:
                worker = socket.create_connection(self._target, timeout=PATIENCE)
            except OSError:  # it is gone
                driver.close()
                continue
            worker.settimeout(None)
            self._ends.append(worker)
            if self._is_closed:
                self.close()
                return
            for source, sink, is_worker in ((driver, worker, False), (worker, driver, True)):
                threading.Thread(target=self._copy, args=(source, sink, is_worker), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, is_worker: bool) -> None:
        try:
            while data := source.recv(65536):
                assert self.is_up.wait(PATIENCE)
                if is_worker and self.cut_after is not None:
                    if len(data) >= self.cut_after:
                        sink.sendall(data[: self.cut_after])
                        self.cut_after = None
                        break
                    self.cut_after -= len(data)
                sink.sendall(self.change(data, is_worker))
        except OSError:
            pass
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the listener and all connections."""
        self._is_closed = True
        self.is_up.set()
        for end in (self._listener, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
