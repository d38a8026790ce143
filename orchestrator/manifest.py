"""The manifest of a checkpoint: size and SHA-256 of every file, and what the caller says of the run.

It has a SHA-256 over the rest of itself; every version of the format keeps to that. It may come from somebody else.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from workers.errors import CheckpointError, DamagedCheckpointError, message_of
from workers.storage.snapshot import Part, Snapshot

__all__ = [
    "LARGEST_MANIFEST",
    "MANIFEST",
    "Files",
    "Manifest",
    "check_replaceable",
    "digest_of",
    "dump_manifest",
    "files_of",
    "parse_manifest",
    "snapshot_of",
    "told",
]

MANIFEST = "manifest.json"
LARGEST_MANIFEST = 2**23
"""Most bytes of a manifest, which has about 150 for each file."""

Files = Mapping[str, Sequence[bytes | memoryview]]
"""Pieces of bytes that follow each other, by the name of the file."""

_FORMAT, _VERSION = "lockstep checkpoint", 1
_NUMBER = "(0|[1-9][0-9]{0,8})"
_NAME = re.compile(rf"(?:agents/{_NUMBER}|environments/{_NUMBER}-{_NUMBER})\.(safetensors|pickle)")
_FOLDER = re.compile("[0-9a-f]{32}")
_MOST_TOLD = 300
"""Number of characters that an error tells of another."""


class Manifest(NamedTuple):
    """A manifest that has been checked.

    Attributes:
        about: What the caller says of the run.
        folder: Folder with the files, below that of the manifest; empty if it is the same.
        files: Size and SHA-256 of each file.
        scopes: Number of simultaneous agents.
        rows: The rows of each part of the environments.
    """

    about: dict[str, Any]
    folder: str
    files: dict[str, tuple[int, str]]
    scopes: int
    rows: list[tuple[int, int]]

    @property
    def pickles(self) -> list[str]:
        """Names of the files that only pickle can read."""
        return [name for name in self.files if name.endswith(".pickle")]


def files_of(snapshot: Snapshot) -> dict[str, Sequence[bytes | memoryview]]:
    """Return the files of a snapshot."""
    parts = {f"agents/{scope}": part for scope, part in enumerate(snapshot.agents)}
    parts |= {f"environments/{start}-{stop}": part for (start, stop), part in snapshot.envs.items()}
    files: dict[str, Sequence[bytes | memoryview]] = {}
    for name, part in parts.items():
        files[f"{name}.safetensors"] = part.pieces
        if part.pickled:
            files[f"{name}.pickle"] = (part.pickled,)
    return files


def snapshot_of(manifest: Manifest, content: Mapping[str, bytes]) -> Snapshot:
    """Return the snapshot whose files have this content."""

    def part(name: str) -> Part:
        return Part(content[f"{name}.safetensors"], content.get(f"{name}.pickle", b""))

    agents = tuple(part(f"agents/{scope}") for scope in range(manifest.scopes))
    return Snapshot(agents, {(start, stop): part(f"environments/{start}-{stop}") for start, stop in manifest.rows})


def dump_manifest(about: Mapping[str, Any], files: Files, folder: str = "") -> bytes:
    """Return a manifest.

    Args:
        about: What to say of the run, as plain data for JSON.
        files: The files.
        folder: See `Manifest`.

    Raises:
        CheckpointError: `about` is not plain, or too large.
    """
    listed = {name: {"size": sum(map(len, pieces)), "sha256": digest_of(pieces)} for name, pieces in files.items()}
    manifest: dict[str, Any] = {"format": _FORMAT, "version": _VERSION, "about": dict(about), "files": listed}
    if folder:
        manifest["folder"] = folder
    try:
        text = json.dumps(manifest | {"sha256": _own_digest(manifest)}, indent=1).encode()
        if len(text) > LARGEST_MANIFEST:
            raise ValueError(f"{len(text)} bytes; expected at most {LARGEST_MANIFEST}")
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{MANIFEST} of a checkpoint cannot be written: {told(error)}") from error
    return text


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Return a manifest, checked.

    Args:
        data: Content of the file.
        where: Location of the checkpoint, for errors.

    Raises:
        DamagedCheckpointError: It is damaged, or no manifest of a checkpoint.
        CheckpointError: It is from a newer version.
    """
    manifest = _loaded(data, where)
    name, version, about = manifest.get("format"), manifest.get("version"), manifest.get("about")
    if name != _FORMAT:
        raise DamagedCheckpointError(
            f"{where!r} is no checkpoint: its format is {reprlib.repr(name)}; expected {_FORMAT!r}"
        )
    wrong = f"the checkpoint {where!r} is damaged: {MANIFEST}"
    try:
        digest = _own_digest(manifest)
    except RecursionError as error:
        raise DamagedCheckpointError(f"{wrong} is unreadable: {told(error)}") from error
    if manifest.get("sha256") != digest:
        raise DamagedCheckpointError(f"{wrong} has been changed: its sha256 is not that of its content")
    if type(version) is int and version > _VERSION:
        raise CheckpointError(
            f"the checkpoint {where!r} was written by a newer Lockstep: format {version}; this one reads up to "
            f"{_VERSION}; upgrade"
        )
    if type(version) is not int or version < 1:
        raise DamagedCheckpointError(f"{wrong} has version {reprlib.repr(version)}; expected 1 to {_VERSION}")
    if not isinstance(about, dict):
        raise DamagedCheckpointError(f"{wrong} has {reprlib.repr(about)} as 'about'; expected a dictionary")
    folder = manifest.get("folder", "")
    if folder != "" and not (isinstance(folder, str) and _FOLDER.fullmatch(folder)):
        raise DamagedCheckpointError(f"{wrong} has {reprlib.repr(folder)} as 'folder'; expected 32 hexadecimal digits")
    try:
        files = {name: (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise DamagedCheckpointError(f"{wrong} lacks the size or sha256 of a file: {told(error)}") from error
    return Manifest(about, folder, files, *_layout(files, where))


def check_replaceable(read: Callable[[], bytes], where: str) -> None:
    """Check that what is there is a checkpoint, be it damaged or from another version.

    Args:
        read: Reads its manifest.
        where: Location of the checkpoint, for errors.

    Raises:
        CheckpointError: Something else is there.
    """
    try:
        found = _loaded(read(), where)["format"]
        if found != _FORMAT:
            raise CheckpointError(f"its format is {reprlib.repr(found)}; expected {_FORMAT!r}")
    except (CheckpointError, OSError) as error:
        raise CheckpointError(f"{where!r} is there already and is no checkpoint; choose another path") from error


def digest_of(pieces: Sequence[bytes | memoryview]) -> str:
    """Return the SHA-256 of pieces of bytes that follow each other."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def told(error: BaseException) -> str:
    """Describe an error within another one."""
    return f"{type(error).__name__}: {message_of(error)}"[:_MOST_TOLD]


def _loaded(data: bytes, where: str) -> dict[str, Any]:
    try:
        manifest = json.loads(data)
        if not isinstance(manifest, dict) or "format" not in manifest:
            raise ValueError("expected a dictionary with a format")
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"{where!r} is no checkpoint: {MANIFEST} is unreadable: {told(error)}") from error
    return manifest


def _own_digest(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    # as it will be read: JSON's keys are strings
    return digest_of((json.dumps(json.loads(json.dumps(rest)), sort_keys=True, separators=(",", ":")).encode(),))


def _layout(names: Mapping[str, Any], where: str) -> tuple[int, list[tuple[int, int]]]:
    """Return the number of scopes, and the rows of the environments."""
    wrong = f"the checkpoint {where!r} is damaged: {MANIFEST} lists"
    scopes, rows = list[int](), list[tuple[int, int]]()
    for name in names:
        found = _NAME.fullmatch(name)
        if not found:
            raise DamagedCheckpointError(f"{wrong} {reprlib.repr(name)}, which is no name of a file in a checkpoint")
        scope, start, stop, kind = found.groups()
        if kind == "pickle":
            if name.replace(".pickle", ".safetensors") not in names:
                raise DamagedCheckpointError(f"{wrong} {name} without its .safetensors")
        elif scope:
            scopes.append(int(scope))
        else:
            rows.append((int(start), int(stop)))
    if not scopes or sorted(scopes) != list(range(len(scopes))):
        raise DamagedCheckpointError(
            f"{wrong} the agents of scopes {reprlib.repr(sorted(scopes))}; expected all from 0 on"
        )
    rows.sort()
    is_whole = all(start < stop for start, stop in rows) and all(one[1] == other[0] for one, other in pairwise(rows))
    if not is_whole or (rows and rows[0][0] != 0):
        raise DamagedCheckpointError(
            f"{wrong} the environments of rows {reprlib.repr(rows)}; expected all rows, once each"
        )
    return len(scopes), rows
