"""Connections between a driver and a worker: both ends in one process, and what stands between them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tests.support.processes import PATIENCE
from workers.remote.handshake import SERVE, WORK, Session, handshake
from workers.remote.sockets import prepare

KEY = b"k" * 32


def pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), timeout=PATIENCE)
        server, _ = listener.accept()
    for end in (client, server):
        end.settimeout(PATIENCE)
        prepare(end)
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


class Relay:
    """Sits between driver and worker. It passes everything on, and cuts or changes it on demand.

    Attributes:
        cut_after: Bytes of replies after which this connection, but not the next, is cut; None for never.
        change: Takes what a side has sent and whether that is the worker, and returns what is passed on.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.cut_after: int | None = None
        self.change: Callable[[bytes, bool], bytes] = lambda data, _: data
        self.connections = 0
        self._target = target
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                driver, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            worker = socket.create_connection(self._target, timeout=PATIENCE)
            worker.settimeout(None)
            self._ends += driver, worker
            for source, sink, is_worker in ((driver, worker, False), (worker, driver, True)):
                threading.Thread(target=self._copy, args=(source, sink, is_worker), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, is_worker: bool) -> None:
        try:
            while data := source.recv(65536):
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
        for end in (self._listener, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
