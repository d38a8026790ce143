"""Listener: the driver is let in, and nobody else, whatever strangers do at the door."""

from __future__ import annotations

import os
import pickle
import queue
import random
import resource
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.support.connections import KEY
from tests.support.damage import Bomb
from tests.support.processes import PATIENCE, ROOT
from tests.support.schedule import IS_LONG, examples, full_or_short
from workers.remote import listener as listening
from workers.remote.dialing import Address, SilentMachineError, UnansweredError, dial
from workers.remote.handshake import CONTROL, WORK, AuthenticationError, Session, handshake
from workers.remote.listener import Listener

KINDS = ("TCP", "Unix")
GREETING = next(handshake(KEY, WORK))[0]


class Door:
    """A listener and those that it has let in."""

    def __init__(self) -> None:
        self.came: queue.SimpleQueue[tuple[socket.socket, Session]] = queue.SimpleQueue()
        self.listener = Listener(KEY, lambda sock, session: self.came.put((sock, session)))
        self.address = self.listener.open("127.0.0.1")

    def by(self, kind: str) -> Address:
        """Return the address for one kind of socket."""
        return self.address._replace(name=b"") if kind == "TCP" else self.address._replace(port=0)

    def stranger(self, kind: str) -> socket.socket:
        """Return a connection that has not said anything."""
        if kind == "TCP":
            return socket.create_connection((self.address.host, self.address.port), timeout=PATIENCE)
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self.address.name)
        sock.settimeout(PATIENCE)
        return sock

    def let_in(self, kind: str, role: bytes = WORK) -> None:
        """Connect as the driver, and check that both ends are connected."""
        sock, session = dial(self.by(kind), KEY, role, timeout=PATIENCE)
        worker, its_session = self.came.get(timeout=PATIENCE)
        assert its_session.send_key == session.receive_key
        assert its_session.role == role
        sock.sendall(b"request")
        assert worker.recv(7) == b"request"
        sock.close()
        worker.close()


@pytest.fixture
def door() -> Iterator[Door]:
    one = Door()
    yield one
    one.listener.shut()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other options")
def test_both_ends_notice_a_machine_that_is_gone(door: Door):
    """A driver also notices it while something that it sent is unacknowledged."""
    driver, _ = dial(door.by("TCP"), KEY, WORK, timeout=PATIENCE)
    worker, _ = door.came.get(timeout=PATIENCE)
    for end, patience in ((driver, 8_000), (worker, 60_000)):
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        names = ("TCP_NODELAY", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
        values = [end.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names]
        assert values == [1, 3, 2, 3, patience]
        end.close()


@pytest.mark.parametrize("missing", [(), ("TCP_USER_TIMEOUT",), ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")])
def test_what_a_system_does_not_have_is_not_set(missing: tuple[str, ...], door: Door, monkeypatch: pytest.MonkeyPatch):
    for name in missing:
        monkeypatch.delattr(socket, name)
    door.let_in("TCP")


@pytest.fixture
def many_files() -> Iterator[None]:
    """Allow as many open files as some tests need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20_000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def idle(sock: socket.socket) -> None:
    pass


def drip(sock: socket.socket) -> None:
    sock.send(GREETING[:1])


def half_close(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)


def greet(sock: socket.socket) -> None:
    """Say everything but the proof."""
    sock.send(GREETING)


STRANGERS = (idle, drip, half_close, greet)


@pytest.mark.parametrize(
    ("kind", "behave", "count"),
    full_or_short(
        list(product(KINDS, STRANGERS, (64, 1000))),
        [("TCP", idle, 64), ("Unix", drip, 64), ("TCP", half_close, 1000), ("Unix", greet, 1000)],
    ),
)
@pytest.mark.usefixtures("many_files")
def test_strangers_do_not_keep_the_driver_out(door: Door, kind: str, behave: Any, count: int):
    """Some came before, others keep coming while the driver connects."""
    stop = threading.Event()

    def keep_coming() -> None:
        held: list[socket.socket] = []
        while not stop.is_set():
            held.append(door.stranger(kind))
            with suppress(OSError):
                behave(held[-1])
            if len(held) == 100:
                held.pop(0).close()
        for sock in held:
            sock.close()

    with ExitStack() as stack:
        strangers = [stack.enter_context(door.stranger(kind)) for _ in range(count)]
        for sock in strangers:
            with suppress(OSError):  # it was sent away already
                behave(sock)
        crowd = threading.Thread(target=keep_coming)
        crowd.start()
        stack.callback(crowd.join, PATIENCE)
        stack.callback(stop.set)
        for role in (WORK, CONTROL) * (15 if IS_LONG else 2):
            door.let_in(kind, role)


def test_the_oldest_stranger_leaves_when_the_door_is_full(door: Door):
    strangers = [door.stranger("TCP") for _ in range(64)]
    for sock in strangers:  # all are at the door
        assert len(sock.recv(100)) == len(GREETING)
    with door.stranger("Unix") as newcomer:
        assert len(newcomer.recv(100)) == len(GREETING)
        assert strangers[0].recv(1) == b""
        assert select.select(strangers[1:], [], [], 0)[0] == []
    for sock in strangers:
        sock.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_silent_or_dripping_stranger_is_sent_away_in_time(door: Door, kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(listening, "_HANDSHAKE_TIMEOUT", 0.3)
    for drips in (False, True):
        with door.stranger(kind) as sock:
            assert len(sock.recv(100)) == len(GREETING)
            while drips:
                try:
                    sock.send(GREETING[:1])
                except OSError:
                    break
                drips = not select.select([sock], [], [], 0.01)[0]
            with suppress(ConnectionResetError):  # a byte of it was not read
                assert sock.recv(1) == b""


def test_only_the_same_user_is_let_to_a_unix_socket(door: Door, monkeypatch: pytest.MonkeyPatch):
    user = os.geteuid()
    monkeypatch.setattr(listening.os, "geteuid", lambda: user + 1)
    with door.stranger("Unix") as sock:
        assert sock.recv(1) == b""  # not even a greeting
    with pytest.raises((ConnectionError, TimeoutError)):
        dial(door.by("Unix"), KEY, WORK, timeout=0.1)
    door.let_in("TCP")
    monkeypatch.undo()
    door.let_in("Unix")


@pytest.mark.parametrize("kind", KINDS)
def test_another_key_is_refused_at_once_and_nothing_is_let_in(door: Door, kind: str):
    with pytest.raises(AuthenticationError, match="does not know the key"):
        dial(door.by(kind), b"x" * 32, WORK, timeout=PATIENCE)
    assert door.came.empty()
    door.let_in(kind)


def test_no_thread_is_needed_to_let_somebody_in(door: Door, monkeypatch: pytest.MonkeyPatch):
    def start(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    for kind in KINDS:
        door.let_in(kind)


DOOR = """
import sys
from tests.remote.test_listener import Door
door = Door()
print(door.address.port, door.address.name.hex(), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_table_of_files_keeps_the_driver_out_only_while_nobody_can_leave(kind: str):
    """There is room for three connections, then for none, then for three again; thirty strangers are idle."""
    process = subprocess.Popen(
        [sys.executable, "-c", DOOR], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process, ExitStack() as stack:
        assert process.stdin is not None
        assert process.stdout is not None
        stack.callback(process.kill)
        port, name = process.stdout.readline().split()
        address = Address(
            "127.0.0.1", int(port) if kind == "TCP" else 0, bytes.fromhex(name) if kind == "Unix" else b""
        )
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        open_files = len(os.listdir(f"/proc/{process.pid}/fd"))
        for room in (3, 0, 3):
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (open_files + room, most))
            for _ in range(30):
                sock = stack.enter_context(socket.socket(socket.AF_INET if kind == "TCP" else socket.AF_UNIX))
                sock.connect((address.host, address.port) if kind == "TCP" else address.name)
            if room:
                dial(address, KEY, WORK, timeout=PATIENCE)[0].close()
            else:
                with pytest.raises(OSError, match=r"does not answer|closed|reset"):
                    dial(address, KEY, WORK, timeout=0.3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_driver_that_was_sent_away_comes_again(door: Door, kind: str, monkeypatch: pytest.MonkeyPatch):
    to_send_away = [True, True]
    greet = door.listener._greet

    def greet_or_hang_up(sock: socket.socket) -> None:
        if to_send_away and to_send_away.pop():
            sock.close()
        else:
            greet(sock)

    monkeypatch.setattr(door.listener, "_greet", greet_or_hang_up)
    door.let_in(kind)
    assert not to_send_away


def test_memory_that_is_full_for_a_moment_does_not_end_the_listener(door: Door, monkeypatch: pytest.MonkeyPatch):
    left = [True, True]
    time_left = door.listener._time_left

    def no_memory() -> float | None:
        if left and left.pop():
            raise MemoryError
        return time_left()

    monkeypatch.setattr(door.listener, "_time_left", no_memory)
    for kind in KINDS:
        door.let_in(kind)
    assert not left


def test_small_messages_are_sent_at_once_over_tcp(door: Door):
    sock, _ = dial(door.by("TCP"), KEY, WORK, timeout=PATIENCE)
    worker, _ = door.came.get(timeout=PATIENCE)
    for end in (sock, worker):
        assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        end.close()


def test_a_listener_without_a_host_listens_on_no_network_address():
    listener = Listener(KEY, lambda *_: None)
    address = listener.open(None)
    assert address.port == 0
    assert [sock.family for sock in listener._listeners] == [socket.AF_UNIX]
    listener.shut()


@pytest.mark.parametrize("port", [0, 1])
def test_a_door_at_which_too_many_wait_is_named(port: int):
    name = b"\0lockstep-" + os.urandom(16).hex().encode()
    with socket.socket(socket.AF_UNIX) as full, ExitStack() as stack:
        full.bind(name)
        full.listen(0)
        stack.enter_context(socket.socket(socket.AF_UNIX)).connect(name)
        with pytest.raises(UnansweredError, match="the worker did not accept the connection in time"):
            dial(Address("127.0.0.1", port, name), KEY, WORK, timeout=0.1)


def test_a_machine_that_takes_no_connection_is_told_from_a_worker_that_does_not_answer():
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = Address(*full.getsockname())
        with pytest.raises(UnansweredError, match="takes connections, but does not answer"):  # and fills the backlog
            dial(address, KEY, WORK, timeout=0.1)
        with pytest.raises(SilentMachineError, match="timed out"):
            dial(address, KEY, WORK, timeout=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_is_let_in_after_it_was_shut(door: Door, kind: str):
    door.let_in(kind)
    with door.stranger(kind) as stranger:
        assert len(stranger.recv(100)) == len(GREETING)
        door.listener.shut()
        assert stranger.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        dial(door.by(kind), KEY, WORK, timeout=PATIENCE)


@pytest.mark.fuzz
def test_of_damaged_handshakes_none_is_let_in_and_nothing_is_unpickled(door: Door, tmp_path: Path):
    """A stranger that knows everything but the key, and sends parts of honest handshakes and pickles."""
    random.seed(7)
    proof = b""
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    for number in range(examples(500, long=10_000)):
        with door.stranger(KINDS[number % 2]) as sock:
            greeting = bytearray(GREETING)
            how = random.randrange(5)
            if how == 0:
                greeting[random.randrange(len(greeting))] ^= 1 << random.randrange(8)
            elif how == 1:
                greeting = bytearray(random.randbytes(random.randrange(100)))
            elif how == 2:
                greeting = greeting[: random.randrange(len(greeting))] + bomb
            with suppress(OSError):  # it was sent away already
                sock.send(greeting)
                theirs = sock.recv(len(GREETING))
                sock.send(random.choice((theirs[-32:], random.randbytes(32), proof, b"")) + bomb)
                proof = sock.recv(32)  # of this one for the next one
    assert door.came.empty()
    assert not list(tmp_path.iterdir())
    for kind in KINDS:
        door.let_in(kind)
