"""Names of the current process, and of where it runs."""

from __future__ import annotations

import os
import socket
from pathlib import Path

__all__ = ["node_name", "socket_domain"]

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NAMESPACES = ("/proc/self/ns/net", "/proc/self/ns/user")


def node_name() -> str:
    """Return the host name and process id, such as ``"node-3 (pid 4711)"``."""
    return f"{socket.gethostname()} (pid {os.getpid()})"


def socket_domain() -> str:
    """Return a name that two processes share only if one can connect to the other over an abstract Unix socket.

    These are processes of the same user on the same machine, in the same network and user namespaces. The name is
    empty if this cannot be known.
    """
    try:
        namespaces = [os.readlink(path) for path in _NAMESPACES]
        return " ".join([_BOOT.read_text().strip(), *namespaces, str(os.geteuid())])
    except (OSError, AttributeError):
        return ""
