"""Name of the current process."""

from __future__ import annotations

import os
import socket

__all__ = ["node_name"]


def node_name() -> str:
    """Return the host name and process id, such as ``"node-3 (pid 4711)"``."""
    return f"{socket.gethostname()} (pid {os.getpid()})"
