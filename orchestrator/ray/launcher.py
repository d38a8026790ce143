"""A cluster that ``ray up`` started, reached as Ray reaches it: a tunnel to its dashboard, and copies of its files."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import IO, Self

from orchestrator.ray.address import RAY
from workers.errors import ClusterError

__all__ = ["Tunnel", "fetch"]

_logger = logging.getLogger("lockstep")

_KEEPER = (sys.executable, "-IS", "-c")
"""Runs the code below with the arguments that follow it."""

_KEEP = """
import os, signal, subprocess, sys, threading

def end():
    os.read(0, 1)
    os.killpg(0, signal.SIGTERM)

signal.signal(signal.SIGTERM, lambda *_: None)
process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
threading.Thread(target=end, daemon=True).start()
sys.exit(1 if process.wait() else 0)
"""
"""Run a command until it ends; end its process group when standard input closes, because the caller has died."""

_SOCKETS = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
"""Where Linux tells who listens."""

_OPENING = 60.0
"""Seconds within which a tunnel is open."""

_FETCHING = 3600.0
"""Seconds for copying a run directory."""

_ENDING = 5.0
"""Seconds that a command has to end before it is killed."""

_REMEDY = (
    "check that `ray up` was run with this file on this machine, and that `ray exec {cluster} true` works. SSH cannot "
    "ask for a passphrase here: add the key to an agent first (ssh-add)"
)


class Tunnel:
    """An SSH tunnel to the dashboard of a cluster, by ``ray dashboard``. It ends with this process, even a killed one.

    Attributes:
        address: Address of the dashboard on this machine.
    """

    def __init__(self, cluster: str) -> None:
        """Prepare a tunnel.

        Args:
            cluster: Path of the cluster's configuration, as ``ray up`` takes it.
        """
        self._cluster = cluster
        self._port = _free_port()
        self.address = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the tunnel

    def renew(self) -> None:
        """Open the tunnel if it is not open, or if its port is not that of a program of this user.

        Raises:
            ClusterError: It cannot be opened; the message has what Ray says. Or somebody else has taken its port.
        """
        if self._process is not None and self._process.poll() is None and _is_ours(self._port):
            return
        self.close()  # its SSH client may live
        self._output.seek(0)
        self._output.truncate()
        _logger.info("opening an SSH tunnel to the head of %s ...", self._cluster)
        self._process = _started(("dashboard", "--port", str(self._port), self._cluster), self._output)
        deadline = monotonic() + _OPENING
        while not _answers(self._port):
            ended = self._process.poll() is not None
            if ended or monotonic() > deadline:
                how = "ended" if ended else f"is not open after {_OPENING:.0f} s"
                self.close()
                raise ClusterError(
                    _told(f"the tunnel to the dashboard of {self._cluster} {how}", self._output, self._cluster)
                )
            threading.Event().wait(0.1)
        if not _is_ours(self._port):
            self.close()
            raise ClusterError(f"another user's program listens on port {self._port}; run the command again")

    def close(self) -> None:
        """Close the tunnel."""
        if self._process is not None:
            _end(self._process)
            self._process = None

    def __enter__(self) -> Self:
        try:
            self.renew()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._output.close()


def fetch(cluster: str, source: str, target: Path) -> None:
    """Copy a folder from the head of a cluster, by ``ray rsync-down``. What is incomplete has a name of its own.

    Args:
        cluster: See `Tunnel`.
        source: Absolute path of the folder on the head.
        target: Path of the copy, which must be empty or not exist.

    Raises:
        ClusterError: It cannot be copied; the message has what Ray says.
        OSError: The copy cannot be written here.
    """
    partial = target.with_name(f"{target.name}.partial")
    partial.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as output:
        process = _started(("rsync-down", cluster, f"{source}/", f"{partial}/"), output)
        try:
            code = process.wait(_FETCHING)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
        if code != 0 or not any(partial.iterdir()):
            raise ClusterError(_told(f"{source} cannot be copied from the head of {cluster}", output, cluster))
    partial.rename(target)


def _started(arguments: tuple[str, ...], output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a command of Ray in a session of its own, which Ctrl-C does not reach and which ends as a whole.

    It also ends when this process is killed, which closes the pipe.
    """
    command = [*_KEEPER, _KEEP, *RAY, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and its SSH client."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):  # the whole group has ended
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_ENDING)
    if process.stdin is not None:
        process.stdin.close()


def _told(what: str, output: IO[bytes], cluster: str) -> str:
    output.seek(0)
    said = output.read().decode(errors="replace").strip()
    return f"{what}; {_REMEDY.format(cluster=cluster)}. Ray said:\n{said}"


def _free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port: int = door.getsockname()[1]
        return port


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _is_ours(port: int) -> bool:
    """Return whether it is a program of this user that listens on a port of this machine. It will get the token.

    Somebody else may take a free port before SSH does. Where the system does not tell, this is not found. A socket of
    IPv6 may take connections of IPv4 as well.
    """
    tables = []
    for path in _SOCKETS:
        with suppress(OSError):
            tables.append(path.read_text(encoding="ascii"))
    sockets = [line.split() for table in tables for line in table.splitlines()[1:]]
    owners = [int(fields[7]) for fields in sockets if fields[1].endswith(f":{port:04X}") and fields[3] == "0A"]
    return not tables or (bool(owners) and all(owner == os.getuid() for owner in owners))
