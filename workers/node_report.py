"""What a node says of itself, for `lockstep doctor`.

The functions are sent to nodes on which Lockstep may be missing or another version, so they import only Python's
standard library.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import socket
import stat
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TypedDict

__all__ = ["NodeReport", "clock", "report", "versions"]


class NodeReport(TypedDict):
    """A node, as one of its processes sees it.

    Attributes:
        host: Host name.
        versions: Version of ``python`` and of each package; None for those that are not installed.
        import_error: Why the module that was asked for cannot be imported; empty if it can.
        cpu: Type of the CPU.
        shared_memory: Free and total bytes of ``/dev/shm``; None if there is none.
        token: Where Ray's token is: ``"none"`` if Ray asks for none, ``"environment"``, the mode of its file, such as
            ``"0600"``, or ``"missing"``.
        token_file: Path of that file; empty if there is none.
        open_files: Number of files and sockets that a process may open.
    """

    host: str
    versions: dict[str, str | None]
    import_error: str
    cpu: str
    shared_memory: tuple[int, int] | None
    token: str
    token_file: str
    open_files: int


def report(packages: Sequence[str], module: str) -> NodeReport:
    """Describe the node of this process.

    Args:
        packages: Names of the packages whose versions to report.
        module: Name of a module to import.
    """
    import resource  # only on Unix

    import_error = ""
    try:
        importlib.import_module(module)
    except Exception as error:  # a package there may raise anything
        import_error = f"{type(error).__name__}: {error}"
    token, token_file = _token()
    return {
        "host": socket.gethostname(),
        "versions": {"python": platform.python_version(), **versions(packages)},
        "import_error": import_error,
        "cpu": _cpu(),
        "shared_memory": _shared_memory(),
        "token": token,
        "token_file": token_file,
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }


def clock() -> float:
    """Return the seconds since 1970 by the clock of this process's node."""
    return time.time()


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Return the version of each package; None for those that are not installed."""
    found: dict[str, str | None] = dict.fromkeys(packages)
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _shared_memory() -> tuple[int, int] | None:
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return None
    return usage.free, usage.total


def _token() -> tuple[str, str]:
    """Return where the token is, and its file. The token itself is not read."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return "none", ""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "environment", ""
    path = os.path.expanduser(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token")
    try:
        return f"{stat.S_IMODE(os.stat(path).st_mode):04o}", path
    except OSError:
        return "missing", path
