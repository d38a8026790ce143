"""Checkpoints: a folder, on a disk or at any URL that fsspec supports, with the snapshot of a run.

Contents::

    manifest.json                 the format, what the caller says of the run, and size and SHA-256 of every other file
    agents/0.safetensors          scope 0's agent; see `workers.storage.state_file`
    agents/0.pickle               what only pickle can keep of it; absent if there is nothing
    environments/0-32.safetensors the environments of rows 0 to 31, and likewise .pickle

It appears as a whole: on a local disk the folder is renamed (`orchestrator.checkpoint_folder`), and at a URL the
manifest is written last (`orchestrator.checkpoint_store`). Whatever is read may come from somebody else.
"""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from orchestrator.checkpoint_folder import CheckpointFolder
from orchestrator.checkpoint_store import CheckpointStore
from orchestrator.files import open_url
from orchestrator.manifest import (
    LARGEST_MANIFEST,
    MANIFEST,
    Manifest,
    digest_of,
    dump_manifest,
    files_of,
    parse_manifest,
    snapshot_of,
    told,
)
from workers.errors import CheckpointError, ConfigError, DamagedCheckpointError
from workers.storage.snapshot import Snapshot

__all__ = ["read_checkpoint", "read_manifest", "write_checkpoint"]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)")
_MOST_NAMED = 5
"""Number of files that an error names."""


def write_checkpoint(
    path: str | os.PathLike[str],
    about: Mapping[str, Any],
    snapshot: Snapshot,
    *,
    sign: Callable[[bytes], None] = lambda manifest: None,
) -> None:
    """Write a checkpoint, replacing one that is there as a whole. On a disk, only this user can enter its folder.

    Whatever happens, also to this process or the machine, `path` then has the old checkpoint or the new one.

    Args:
        path: Path of the folder, or a URL that fsspec supports. The folders above it are made.
        about: What else to keep, as plain data for JSON.
        snapshot: The snapshot.
        sign: Gets the manifest before it is written: it has the digest of every other file.

    Raises:
        CheckpointError: It cannot be written, something else is there, or another process is writing it.
    """
    place, files = _place(path), files_of(snapshot)

    def dump(folder: str) -> bytes:
        manifest = dump_manifest(about, files, folder)
        sign(manifest)
        return manifest

    try:
        place.write(files, dump)
    except OSError as error:
        raise CheckpointError(f"the checkpoint {place.where!r} cannot be written: {told(error)}") from error


def read_checkpoint(
    path: str | os.PathLike[str], *, allow_pickle: bool, verify: Callable[[bytes], None] = lambda manifest: None
) -> tuple[dict[str, Any], Snapshot]:
    """Read a checkpoint. Nothing is unpickled. While it is being replaced, an error may say that it is damaged.

    Args:
        path: Path of the folder, or its URL.
        allow_pickle: Whether the snapshot may have parts with a pickle, which runs code when it is loaded.
        verify: Gets the manifest, and raises an error to refuse it.

    Returns:
        What `write_checkpoint` got: `about`, as JSON returns it, and the snapshot.

    Raises:
        DamagedCheckpointError: It is incomplete or has been changed.
        CheckpointError: There is none, it is from a newer version, or needs `allow_pickle`.
    """
    place = _place(path)
    where, data = place.where, _manifest(place)
    manifest = parse_manifest(data, where)
    verify(data)
    if (pickles := manifest.pickles) and not allow_pickle:
        more = f" and {len(pickles) - _MOST_NAMED} more" if len(pickles) > _MOST_NAMED else ""
        raise CheckpointError(
            f"the checkpoint {where!r} has {', '.join(pickles[:_MOST_NAMED])}{more}. Loading a pickle runs whatever "
            "code its author has put there; pass allow_pickle=True if you trust everybody who could write to the folder"
        )
    return manifest.about, snapshot_of(manifest, {name: _content(place, name, manifest) for name in manifest.files})


def read_manifest(path: str | os.PathLike[str]) -> bytes:
    """Return the manifest of a checkpoint.

    Args:
        path: Path of the folder, or its URL.

    Raises:
        DamagedCheckpointError: There is none.
    """
    return _manifest(_place(path))


def _manifest(place: CheckpointFolder | CheckpointStore) -> bytes:
    where = place.where
    try:
        if not place.exists():
            raise DamagedCheckpointError(f"there is no checkpoint at {where!r}")
        return place.read(MANIFEST, LARGEST_MANIFEST)
    except OSError as error:
        raise DamagedCheckpointError(f"{where!r} is no checkpoint: {MANIFEST} is unreadable: {told(error)}") from error


def _content(place: CheckpointFolder | CheckpointStore, name: str, manifest: Manifest) -> bytes:
    """Return the content of a listed file."""
    size, digest = manifest.files[name]
    path = f"{manifest.folder}/{name}" if manifest.folder else name
    wrong = f"the checkpoint {place.where!r} is damaged: {name}"
    try:
        found = place.size(path)
        data = place.read(path) if found == size else b""
    except OSError as error:
        raise DamagedCheckpointError(f"{wrong} cannot be read: {error}") from error
    if found != size:
        raise DamagedCheckpointError(f"{wrong} has {found} bytes; expected {reprlib.repr(size)}")
    if digest_of([data]) != digest:
        raise DamagedCheckpointError(f"{wrong} has been changed: its SHA-256 differs")
    return data


def _place(path: str | os.PathLike[str]) -> CheckpointFolder | CheckpointStore:
    try:
        given = os.fsdecode(path)
        encoded = os.fsencode(given)
    except (TypeError, UnicodeError) as error:
        raise CheckpointError(f"{path!r} is no path of a folder: {error}") from error
    if not encoded or b"\0" in encoded:
        raise CheckpointError(f"{given!r} is no path of a folder")
    if _URL.match(given):
        try:
            url, filesystem, inside = open_url(given, "checkpoint")
        except ConfigError as error:
            raise CheckpointError(str(error)) from error
        if not isinstance(filesystem, LocalFileSystem):
            return CheckpointStore(url, filesystem, inside)
        given = inside
    return CheckpointFolder(os.path.realpath(os.path.expanduser(given)))
