"""Origin: proof of which files of a run directory this user wrote, by MACs under a key that only this user can read."""

from __future__ import annotations

import hmac
import json
import logging
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from orchestrator.files import read_file
from orchestrator.user_key import key_path, user_key
from workers.errors import ConfigError

__all__ = ["LARGEST", "ORIGIN", "Origin", "run_of"]

_logger = logging.getLogger("lockstep")

ORIGIN = "origin.json"
"""Name of the record in a run directory."""

LARGEST = 2**22
"""Most bytes of a record. It has some 200 for each simultaneous agent."""


class Origin:
    """Record of the files of one run that can run code, written by the user who wrote them.

    It holds the HMAC-SHA256 of each file. The MAC covers the name of the file and a random name of the run, so that no
    file can take the place of another one, or of that of another run. A file has several MACs while it is replaced:
    whenever the process ends, what is there has a valid one.
    """

    def __init__(self, read: Callable[[], bytes], write: Callable[[str], None]) -> None:
        """Take the means to read and write the record.

        Args:
            read: Returns the record. Raises `FileNotFoundError` if there is none, `OSError` or `ValueError` if it
                cannot be read.
            write: Replaces the record.
        """
        self._read, self._write = read, write
        self._key: bytes | None = None  # until this process signs
        self._run = secrets.token_hex(16)
        self._macs: dict[str, list[str]] = {}

    def sign(self, files: Mapping[str, bytes]) -> None:
        """Record that this user wrote these files, before they are written. Without a good key only this process knows.

        Args:
            files: The new content of files, by name.

        Raises:
            OSError: The record cannot be written.
        """
        if not files:
            return
        if self._key is None:
            try:
                self._key = user_key(create=True)
            except (ConfigError, OSError) as error:
                _logger.warning(
                    "there is no key to sign the run directory with (%s): lockstep eval will need --trust if the "
                    "configuration has import paths or an agent is stored as agent.bin",
                    error,
                )
            self._key = self._key or secrets.token_bytes()
            with suppress(FileNotFoundError, ValueError):  # a new run, or nothing to keep
                self._run, self._macs = _parse(self._read())
        for name, data in files.items():
            self._macs.setdefault(name, []).append(_mac(self._key, self._run, name, data))
        self._write(json.dumps({"run": self._run, "macs": self._macs}, indent=1))

    def settle(self, names: Iterable[str]) -> None:
        """Note that files have been written: they no longer have the content before the one signed last."""
        for name in names:
            del self._macs[name][:-1]

    def forget(self, names: Iterable[str]) -> None:
        """Drop files that have been deleted from the record, at the latest when it is written the next time."""
        for name in names:
            self._macs.pop(name, None)

    def foreign(self, name: str, data: bytes) -> str:
        """Return why a file may be somebody else's; empty if this user wrote it for this run.

        Args:
            name: Name of the file in the run directory.
            data: Its content, as read.

        Raises:
            ConfigError: This user's key is not private.
        """
        key, run, macs = self._key, self._run, self._macs
        if key is None:
            try:
                run, macs = _parse(self._read())
            except FileNotFoundError:
                return f"it has no {ORIGIN}"
            except (OSError, ValueError) as error:
                return f"its {ORIGIN} cannot be read: {error}"
            try:
                key = user_key(create=False)
            except OSError as error:
                return f"this user's key cannot be read: {error}"
            if key is None:
                return f"this user has no key in {key_path()}"
        mac = _mac(key, run, name, data)
        if any(hmac.compare_digest(mac, known) for known in macs.get(name, ())):
            return ""
        return f"{name} is not what this user's key signed for this run"


def run_of(folder: Path) -> str | None:
    """Return the random name of the run in a folder on this machine; None if it has no readable record."""
    try:
        return _parse(read_file(str(folder / ORIGIN), LARGEST))[0]
    except (OSError, ValueError):
        return None


def _mac(key: bytes, run: str, name: str, data: bytes) -> str:
    mac = hmac.new(key, f"lockstep {run} {name}\n".encode(), "sha256")
    mac.update(data)
    return mac.hexdigest()


def _parse(record: bytes) -> tuple[str, dict[str, list[str]]]:
    """Return the name of the run, and the MACs by file.

    Raises:
        ValueError: It is no record.
    """
    try:
        data = json.loads(record)
        run, macs = data["run"], data["macs"]
        if re.fullmatch("[0-9a-f]{32}", run) and all(map(_are_macs, macs.values())):
            return run, macs
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"it is not a record of a run ({type(error).__name__})") from error
    raise ValueError("it is not a record of a run")


def _are_macs(values: object) -> bool:
    return isinstance(values, list) and all(re.fullmatch("[0-9a-f]{64}", value) for value in values)
