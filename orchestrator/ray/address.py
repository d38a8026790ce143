"""Addresses of Ray: whether somebody answers there, and why not."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from time import monotonic
from urllib.parse import urlsplit

from ray.exceptions import RayError

from workers.errors import ClusterError

__all__ = ["RAY", "TOKEN_REMEDY", "check_address", "unreachable"]

RAY = (sys.executable, "-m", "ray.scripts.scripts")
"""The command ``ray`` of this environment."""

TOKEN_REMEDY = (
    "a cluster with tokens needs the same token in every process: it belongs in ~/.ray/auth_token, with mode 600 (or "
    "in a file at RAY_AUTH_TOKEN_PATH, or in RAY_AUTH_TOKEN), and Ray's own programs need RAY_AUTH_MODE=token. Copy it "
    "from the machine on which the cluster was made; for a new cluster, make one: "
    "(umask 077; ray get-auth-token --generate > /dev/null)"
)
"""What to do about a token that is missing or refused."""

_PORTS = (
    "this is the port of another service of Ray: the client server has an address such as ray://HOST:10001, and a "
    "program in the cluster uses HOST:6379, or 'auto'"
)


def check_address(address: str, timeout: float) -> None:
    """Check that Ray answers at an address other than that of this machine alone.

    Args:
        address: ``"auto"``, ``"host:port"`` or ``"ray://host:port"``.
        timeout: Time for everything, in seconds.

    Raises:
        ClusterError: It does not, or refuses this process.
    """
    deadline = monotonic() + timeout
    try:
        if address == "auto":
            _check_health([], timeout)
            return
        parts = urlsplit(address if "://" in address else f"//{address}")
        if parts.hostname is None or parts.port is None:
            raise ClusterError(f"Ray's address is {address!r}; expected 'auto', 'host:port' or 'ray://host:port'")
        host, port = parts.hostname, parts.port
        socket.create_connection((host, port), timeout=timeout).close()
        target, left = f"{f'[{host}]' if ':' in host else host}:{port}", max(0.1, deadline - monotonic())
        if parts.scheme == "ray":
            _check_client_server(target, left)
        else:
            _check_health(["--address", target], left)
    except (OSError, ValueError, RayError) as error:
        raise unreachable(address, f"{type(error).__name__}: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise unreachable(address, f"no answer to a health check within {timeout:.0f} s") from error
    except subprocess.CalledProcessError as error:
        raise unreachable(address, _reason(error.stderr.decode(errors="replace"))) from error


def unreachable(address: str, reason: str) -> ClusterError:
    """Return the error for an address where Ray cannot be reached, with what to do about it."""
    what = "Ray cannot be started on this machine" if address == "local" else f"Ray cannot be reached at {address!r}"
    if re.search("AuthToken|AUTH_TOKEN|authentication token", reason, re.IGNORECASE):
        remedy = TOKEN_REMEDY
    elif "Method not found" in reason or "UNIMPLEMENTED" in reason:
        remedy = _PORTS
    elif address == "local":
        remedy = "look at its logs in /tmp/ray/session_latest/logs"
    else:
        remedy = "check that it is running there (ray status), or omit the address to start Ray on this machine"
    return ClusterError(f"{what} ({reason}); {remedy}")


def _check_health(options: list[str], timeout: float) -> None:
    """Check the cluster in a subprocess: connecting may block forever, and without its token it ends the process."""
    command = [*RAY, "health-check", *options]
    subprocess.run(command, capture_output=True, check=True, timeout=timeout)


def _check_client_server(target: str, timeout: float) -> None:
    """Ping the client server, because Ray would wait for half a minute for anybody and then not say why."""
    import grpc  # takes a moment
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated.ray_client_pb2 import ClusterInfoRequest, ClusterInfoType
    from ray.core.generated.ray_client_pb2_grpc import RayletDriverStub

    ping = ClusterInfoRequest(type=ClusterInfoType.PING)
    with init_grpc_channel(target) as channel:
        try:
            RayletDriverStub(channel).ClusterInfo(ping, timeout=timeout, wait_for_ready=True)
        except grpc.RpcError as error:
            raise ConnectionError(f"{error.code().name}: {error.details()}") from error


def _reason(stderr: str) -> str:
    """Return why a command of Ray ended: a failed check in C++, an exception with all its lines, or its last line."""
    if failed := re.search(r"Check failed: \S+(?: \S*[|&=<>]\S* \S+)* (.+)", stderr):
        return failed[1]
    lines = stderr.rpartition("Traceback (most recent call last):")[2].strip("\n").splitlines()
    raised = next((index for index, line in enumerate(lines) if not line.startswith(" ")), 0)
    if "Traceback" in stderr:
        return "\n".join(lines[raised:]).strip()
    return lines[-1].strip() if lines else "not healthy"
