"""A stand-in for Ray's commands that use SSH: ``dashboard`` and ``rsync-down``.

What it does depends on the text of the cluster's configuration::

    to PORT     the tunnel leads to this port
    say TEXT    say this, and fail
    wait        never open the tunnel

The head is this machine. What started is written to ``pids`` beside the configuration.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

__all__ = ["COMMAND"]

COMMAND = (sys.executable, str(Path(__file__)))


def main(verb: str, *arguments: str) -> None:
    """Run a command."""
    cluster = Path(arguments[0] if verb == "rsync-down" else arguments[-1])
    how, _, value = cluster.read_text(encoding="utf-8").partition(" ")
    if how == "say":
        sys.exit(f"Command failed: {value}")
    if verb == "rsync-down":
        assert arguments[1].endswith("/"), arguments
        shutil.copytree(arguments[1], arguments[2], dirs_exist_ok=True)
        return
    assert arguments[0] == "--port", arguments
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])  # as `ssh` is one of `ray`
    with cluster.with_name("pids").open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n{child.pid}\n")
    if how == "wait":
        child.wait()
    server = socket.create_server(("127.0.0.1", int(arguments[1])))
    while True:
        near, _ = server.accept()
        with suppress(OSError):
            far = socket.create_connection(("127.0.0.1", int(value)))
            for ends in ((near, far), (far, near)):
                threading.Thread(target=pump, args=ends, daemon=True).start()


def pump(source: socket.socket, target: socket.socket) -> None:
    """Carry bytes until an end closes."""
    with suppress(OSError):
        while data := source.recv(2**16):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    main(*sys.argv[1:])
