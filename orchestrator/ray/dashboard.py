"""Access to the dashboard of a cluster: the token, the environment, and the first request."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import requests

from orchestrator.files import read_file
from orchestrator.ray.address import TOKEN_REMEDY
from workers.errors import ClusterError

__all__ = ["ANSWER", "find_token", "is_private", "surroundings", "version_at"]

_logger = logging.getLogger("lockstep")

ANSWER = 20.0
"""Seconds within which the head answers a question."""

_LARGEST_TOKEN = 4096


def version_at(address: str, headers: Mapping[str, str]) -> str:
    """Return the version of the cluster's Ray. This is the first request: what is wrong is told here."""
    what = f"Ray's dashboard at {address}"
    try:
        reply = requests.get(f"{address}/api/version", headers=headers, timeout=ANSWER, allow_redirects=False)
    except (requests.RequestException, ValueError) as error:
        raise ClusterError(
            f"{what} cannot be reached ({type(error).__name__}: {error}); check that the cluster runs (ray status), "
            "and the address. A dashboard listens on its own machine only: from elsewhere, use --cluster "
            "cluster.yaml, or a tunnel (ray dashboard cluster.yaml)"
        ) from error
    if reply.status_code in (401, 403):
        sent = "the token of this machine is not that of the cluster" if headers else "this machine has no token"
        raise ClusterError(f"{what} refuses the request: {reply.text}; {sent}: {TOKEN_REMEDY}")
    try:
        return str(reply.json()["ray_version"])
    except (ValueError, KeyError, TypeError):
        raise ClusterError(
            f"{what} answers with status {reply.status_code}, but not as Ray does; check the address"
        ) from None


def find_token() -> str | None:
    """Return the user's token for Ray's clusters; None if there is none, or ``RAY_AUTH_MODE`` is not for tokens."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return _checked(token, "RAY_AUTH_TOKEN")
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        token = read_file(str(path), _LARGEST_TOKEN).decode()
        if path.stat().st_mode & 0o077:
            _logger.warning("%s can be read by others, who can run code in the cluster: chmod 600 %s", path, path)
    except FileNotFoundError:
        if named or "RAY_AUTH_MODE" in os.environ:
            raise ClusterError(f"there is no token at {path}; {TOKEN_REMEDY}") from None
        return None
    except (OSError, ValueError) as error:
        raise ClusterError(f"the token at {path} cannot be read ({type(error).__name__}); {TOKEN_REMEDY}") from None
    return _checked(token, str(path))


def _checked(token: str, place: str) -> str:
    token = token.strip()
    if not re.fullmatch(r"[\x21-\x7e]+", token):  # an error of the request would tell it
        raise ClusterError(f"{place} holds no token: expected one line of printable characters; {TOKEN_REMEDY}")
    return token


def is_private(address: str) -> bool:
    """Return whether nobody else on the network can read what is sent to an address."""
    parts = urlsplit(address)
    return parts.scheme == "https" or _is_loopback(parts.hostname or "")


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


@contextmanager
def surroundings(address: str) -> Iterator[None]:
    """Set the environment for Ray's client: no other address, no proxy to this machine, no excludes of its own."""
    host = urlsplit(address).hostname or ""
    changes: dict[str, str | None] = {"RAY_API_SERVER_ADDRESS": None, "RAY_ADDRESS": None}
    if "RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES" not in os.environ:  # it would warn of each
        changes["RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES"] = ""
    if _is_loopback(host):
        others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        changes["no_proxy"] = f"{others},{host}" if others else host
    before = {name: os.environ.get(name) for name in changes}
    _set(changes)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
