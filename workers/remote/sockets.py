"""Options of connected sockets."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

__all__ = ["hang_up", "prepare", "set_timeout"]

_KEEP_ALIVE = {"TCP_KEEPIDLE": 3, "TCP_KEEPALIVE": 3, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}
"""Options of an idle connection where the system has them: seconds before the first probe (called TCP_KEEPALIVE on
macOS), seconds between probes, and the number of probes without an answer after which the connection is lost."""


def prepare(sock: socket.socket, *, patience: float) -> None:
    """Make a connected socket send small messages at once, and notice a machine that is gone.

    Args:
        sock: The socket. Nothing is set for a Unix socket.
        patience: Seconds for which the peer's machine may not acknowledge, or may not take, what was sent.
    """
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in {**_KEEP_ALIVE, "TCP_USER_TIMEOUT": int(patience * 1000)}.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def set_timeout(sock: socket.socket, option: int, seconds: float) -> None:
    """Let the system limit the time of single calls, which costs less than a timeout of Python's.

    Args:
        sock: A blocking socket.
        option: `socket.SO_RCVTIMEO` for receiving, `socket.SO_SNDTIMEO` for sending and connecting.
        seconds: The limit; 0 for none.
    """
    whole, rest = divmod(seconds, 1)
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(whole), int(rest * 1e6)))


def hang_up(sock: socket.socket) -> None:
    """Close a connection, even if a forked process also holds the socket."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
