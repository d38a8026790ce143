"""Checkpoints: a folder on a local disk with the snapshot of a run.

Contents::

    manifest.json                 the format, what the caller says of the run, and size and SHA-256 of every other file
    agents/0.safetensors          scope 0's agent; see `workers.storage.state_file`
    agents/0.pickle               what only pickle can keep of it; absent if there is nothing
    environments/0-32.safetensors the environments of rows 0 to 31, and likewise .pickle

The manifest, which is written last, has a SHA-256 over the rest of itself; every version of the format keeps to that.
A checkpoint appears as a whole: it is written in ``.NAME.partial``, beside the place for ``NAME``, and renamed. One
that is replaced is exchanged with it; where the system cannot do that, it is ``.NAME.replaced`` until the new one is
there. Whatever is read may come from somebody else.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import re
import reprlib
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from typing import Any, BinaryIO, NamedTuple

from orchestrator.files import read_file
from workers.errors import CheckpointError, message_of
from workers.storage.snapshot import Part, Snapshot

__all__ = ["read_checkpoint", "write_checkpoint"]

_FORMAT, _VERSION = "lockstep checkpoint", 1
_MANIFEST, _LOCK = "manifest.json", "lock"
_LARGEST_MANIFEST = 2**23
"""Most bytes of a manifest, which has about 150 for each file."""

_NUMBER = "(0|[1-9][0-9]{0,8})"
_NAME = re.compile(rf"(?:agents/{_NUMBER}|environments/{_NUMBER}-{_NUMBER})\.(safetensors|pickle)")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)")
_MOST_TOLD, _MOST_NAMED = 300, 5
"""Number of characters that an error tells of another, and of files that it names."""


class _Place(NamedTuple):
    """Where a checkpoint is.

    Attributes:
        path: The checkpoint.
        partial: Where one is written; its writer holds the lock on a file in it.
        replaced: The one before it, until the new one is in its place.
    """

    path: str
    partial: str
    replaced: str

    @property
    def parent(self) -> str:
        return os.path.dirname(self.path)


def write_checkpoint(path: str | os.PathLike[str], about: Mapping[str, Any], snapshot: Snapshot) -> None:
    """Write a checkpoint, replacing one that is there as a whole. Only this user can enter its folder.

    Whatever happens, also to this process or the machine, `path` then has the old checkpoint or the new one.

    Args:
        path: Path of the folder on this machine. The folders above it are made.
        about: What else to keep, as plain data for JSON.
        snapshot: The snapshot.

    Raises:
        CheckpointError: It cannot be written, something else is there, or another process is writing it.
    """
    place = _place(path)
    files = dict(_files(snapshot))
    files[_MANIFEST] = _manifest(about, files)
    try:
        os.makedirs(place.parent, exist_ok=True)
        with _locked(place.partial):
            _check_replaceable(place.path)
            new = os.path.join(place.partial, "new")
            _write(new, files)
            _put_in_place(new, place)
    except OSError as error:
        raise CheckpointError(f"the checkpoint {place.path!r} cannot be written: {_told(error)}") from error


def read_checkpoint(path: str | os.PathLike[str], *, allow_pickle: bool) -> tuple[dict[str, Any], Snapshot]:
    """Read a checkpoint. Nothing is unpickled. While it is being replaced, an error may say that it is damaged.

    Args:
        path: Path of the folder.
        allow_pickle: Whether the snapshot may have parts with a pickle, which runs code when it is loaded.

    Returns:
        What `write_checkpoint` got: `about`, as JSON returns it, and the snapshot.

    Raises:
        CheckpointError: There is none, it is damaged, is from a newer version, or needs `allow_pickle`.
    """
    place = _place(path)
    was_killed = not os.path.lexists(place.path) and os.path.isdir(place.replaced)  # a writer, between two renames
    folder = place.replaced if was_killed else place.path
    if not os.path.isdir(folder):
        raise CheckpointError(f"there is no checkpoint at {folder!r}")
    about, listed = _checked_manifest(folder)
    scopes, rows = _layout(listed, folder)
    pickles = [name for name in listed if name.endswith(".pickle")]
    if pickles and not allow_pickle:
        more = f" and {len(pickles) - _MOST_NAMED} more" if len(pickles) > _MOST_NAMED else ""
        raise CheckpointError(
            f"the checkpoint {folder!r} has {', '.join(pickles[:_MOST_NAMED])}{more}. Loading a pickle runs whatever "
            "code its author has put there; pass allow_pickle=True if you trust everybody who could write to the folder"
        )
    content = {name: _content(folder, name, *entry) for name, entry in listed.items()}

    def part(name: str) -> Part:
        return Part(content[f"{name}.safetensors"], content.get(f"{name}.pickle", b""))

    agents = tuple(part(f"agents/{scope}") for scope in range(scopes))
    return about, Snapshot(agents, {(start, stop): part(f"environments/{start}-{stop}") for start, stop in rows})


def _place(path: str | os.PathLike[str]) -> _Place:
    try:
        given = os.fsdecode(path)
        encoded = os.fsencode(given)
    except (TypeError, UnicodeError) as error:
        raise CheckpointError(f"{path!r} is no path of a folder: {error}") from error
    if not encoded or b"\0" in encoded:
        raise CheckpointError(f"{given!r} is no path of a folder")
    if _URL.match(given):
        raise CheckpointError(f"a checkpoint is a folder on a local disk, but {given!r} is a URL; expected a path")
    found = os.path.realpath(given)
    parent, name = os.path.split(found)
    return _Place(found, os.path.join(parent, f".{name}.partial"), os.path.join(parent, f".{name}.replaced"))


def _files(snapshot: Snapshot) -> Iterator[tuple[str, bytes]]:
    parts = {f"agents/{scope}": part for scope, part in enumerate(snapshot.agents)}
    parts |= {f"environments/{start}-{stop}": part for (start, stop), part in snapshot.envs.items()}
    for name, part in parts.items():
        yield f"{name}.safetensors", part.state
        if part.pickled:
            yield f"{name}.pickle", part.pickled


def _manifest(about: Mapping[str, Any], files: Mapping[str, bytes]) -> bytes:
    listed = {name: {"size": len(data), "sha256": _digest(data)} for name, data in files.items()}
    manifest = {"format": _FORMAT, "version": _VERSION, "about": dict(about), "files": listed}
    try:
        text = json.dumps(manifest | {"sha256": _own_digest(manifest)}, indent=1).encode()
        if len(text) > _LARGEST_MANIFEST:
            raise ValueError(f"{len(text)} bytes; expected at most {_LARGEST_MANIFEST}")
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{_MANIFEST} of a checkpoint cannot be written: {_told(error)}") from error
    return text


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _own_digest(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    # as it will be read: JSON's keys are strings
    return _digest(json.dumps(json.loads(json.dumps(rest)), sort_keys=True, separators=(",", ":")).encode())


def _check_replaceable(path: str) -> None:
    """Check that nothing is there, or a checkpoint, be it damaged or from another version.

    Raises:
        CheckpointError: Something else is there.
    """
    if not os.path.lexists(path):
        return
    try:
        found = _read_manifest(path)["format"]
        if found != _FORMAT:
            raise CheckpointError(f"its format is {reprlib.repr(found)}; expected {_FORMAT!r}")
    except CheckpointError as error:
        raise CheckpointError(f"{path!r} is there already and is no checkpoint; choose another path") from error


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Make a working folder, or take one that a killed writer has left; keep others out of it; and remove it.

    Raises:
        CheckpointError: Another writer has it.
    """
    lock, path = _lock(folder), os.path.join(folder, _LOCK)
    new = os.path.join(folder, "new")
    try:
        if os.path.lexists(new):
            shutil.rmtree(new)
        yield
    finally:
        # only the one who holds the lock removes it, and last: then nobody removes the folder of somebody else
        shutil.rmtree(new, ignore_errors=True)  # what may be left, the next writer removes
        with suppress(OSError):
            os.remove(path)
            os.rmdir(folder)  # unless another writer has put its lock there
        lock.close()


def _lock(folder: str) -> BinaryIO:
    path = os.path.join(folder, _LOCK)
    while True:
        is_new = True
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            is_new = False
            if os.path.islink(folder):
                raise
        with ExitStack() as stack:
            try:
                lock = stack.enter_context(open(path, "ab", opener=_without_following))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(lock.fileno()), os.stat(path)):
                    stack.pop_all()
                    return lock
            except FileNotFoundError:  # another writer has removed it in the meantime
                continue
            except BlockingIOError as error:
                raise CheckpointError(f"another process is writing in {folder!r}; wait until it is done") from error
            except OSError:
                if is_new:
                    shutil.rmtree(folder, ignore_errors=True)
                raise


def _without_following(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def _write(folder: str, files: Mapping[str, bytes]) -> None:
    """Write files into a new folder, and to the disk."""
    folders = [folder, *(os.path.join(folder, name) for name in ("agents", "environments"))]
    for path in folders:
        os.mkdir(path, 0o700)
    for name, data in files.items():
        with open(os.path.join(folder, name), "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    for path in folders:
        _flush_folder(path)


def _put_in_place(new: str, place: _Place) -> None:
    """Rename a checkpoint, and remove the one before it, unless it is now in the working folder."""
    if not os.path.lexists(place.path) and os.path.lexists(place.replaced):  # a writer was killed between two renames
        os.rename(place.replaced, place.path)
    if os.path.lexists(place.path):
        if os.path.lexists(place.replaced):  # a writer was killed before it removed it
            shutil.rmtree(place.replaced)
        if _exchanged(new, place.path):
            _flush_folder(place.parent)
            return
        os.rename(place.path, place.replaced)
    try:
        os.rename(new, place.path)
    except BaseException:
        if os.path.lexists(place.replaced) and not os.path.lexists(place.path):
            os.rename(place.replaced, place.path)
        raise
    _flush_folder(place.parent)
    if os.path.lexists(place.replaced):
        shutil.rmtree(place.replaced)


def _exchanged(one: str, other: str) -> bool:
    """Exchange two folders in one step, so that there always is one at both paths; return whether that is possible."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)  # Linux; not every filesystem can
    return renameat2 is not None and renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2) == 0


def _flush_folder(path: str) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read_manifest(folder: str) -> dict[str, Any]:
    path = os.path.join(folder, _MANIFEST)
    try:
        if os.path.islink(path):
            raise OSError(f"{path!r} is a link; expected a file")
        manifest = json.loads(read_file(path, _LARGEST_MANIFEST))
        if not isinstance(manifest, dict) or "format" not in manifest:
            raise ValueError("expected a dictionary with a format")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder!r} is no checkpoint: {_MANIFEST} is unreadable: {_told(error)}") from error
    return manifest


def _checked_manifest(folder: str) -> tuple[dict[str, Any], dict[str, tuple[int, str]]]:
    """Return the caller's data, and size and digest by the name of each file."""
    manifest = _read_manifest(folder)
    name, version, about = manifest["format"], manifest.get("version"), manifest.get("about")
    if name != _FORMAT:
        raise CheckpointError(f"{folder!r} is no checkpoint: its format is {reprlib.repr(name)}; expected {_FORMAT!r}")
    wrong = f"the checkpoint {folder!r} is damaged: {_MANIFEST}"
    try:
        digest = _own_digest(manifest)
    except RecursionError as error:
        raise CheckpointError(f"{wrong} is unreadable: {_told(error)}") from error
    if manifest.get("sha256") != digest:
        raise CheckpointError(f"{wrong} has been changed: its sha256 is not that of its content")
    if type(version) is int and version > _VERSION:
        raise CheckpointError(
            f"the checkpoint {folder!r} was written by a newer Lockstep: format {version}; this one reads up to "
            f"{_VERSION}; upgrade"
        )
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{wrong} has version {reprlib.repr(version)}; expected 1 to {_VERSION}")
    if not isinstance(about, dict):
        raise CheckpointError(f"{wrong} has {reprlib.repr(about)} as 'about'; expected a dictionary")
    try:
        files = {name: (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{wrong} lacks the size or sha256 of a file: {_told(error)}") from error
    return about, files


def _layout(names: Mapping[str, Any], folder: str) -> tuple[int, list[tuple[int, int]]]:
    """Return the number of scopes, and the rows of the environments."""
    wrong = f"the checkpoint {folder!r} is damaged: {_MANIFEST} lists"
    scopes, rows = list[int](), list[tuple[int, int]]()
    for name in names:
        found = _NAME.fullmatch(name)
        if not found:
            raise CheckpointError(f"{wrong} {reprlib.repr(name)}, which is no name of a file in a checkpoint")
        scope, start, stop, kind = found.groups()
        if kind == "pickle":
            if name.replace(".pickle", ".safetensors") not in names:
                raise CheckpointError(f"{wrong} {name} without its .safetensors")
        elif scope:
            scopes.append(int(scope))
        else:
            rows.append((int(start), int(stop)))
    if not scopes or sorted(scopes) != list(range(len(scopes))):
        raise CheckpointError(f"{wrong} the agents of scopes {reprlib.repr(sorted(scopes))}; expected all from 0 on")
    rows.sort()
    is_whole = all(start < stop for start, stop in rows) and all(one[1] == other[0] for one, other in pairwise(rows))
    if not is_whole or (rows and rows[0][0] != 0):
        raise CheckpointError(f"{wrong} the environments of rows {reprlib.repr(rows)}; expected all rows, once each")
    return len(scopes), rows


def _content(folder: str, name: str, size: int, digest: str) -> bytes:
    """Return the content of a listed file."""
    path = os.path.join(folder, name)
    try:
        for part in (os.path.dirname(path), path):
            if stat.S_ISLNK(os.lstat(part).st_mode):
                raise OSError(f"{part!r} is a link")
        found = os.lstat(path).st_size
        data = read_file(path) if found == size else b""
    except OSError as error:
        raise CheckpointError(f"the checkpoint {folder!r} is damaged: {name} cannot be read: {error}") from error
    if found != size:
        raise CheckpointError(
            f"the checkpoint {folder!r} is damaged: {name} has {found} bytes; expected {reprlib.repr(size)}"
        )
    if _digest(data) != digest:
        raise CheckpointError(f"the checkpoint {folder!r} is damaged: {name} has been changed: its SHA-256 differs")
    return data


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {message_of(error)}"[:_MOST_TOLD]
