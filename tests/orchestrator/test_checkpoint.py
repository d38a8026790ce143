"""Checkpoints: a folder that is written as a whole or not at all, and read only if it is whole and ours."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoint import read_checkpoint, write_checkpoint
from orchestrator.checkpoint_folder import _exchanged
from tests.support.damage import Bomb
from workers.errors import CheckpointError
from workers.pickling import dumps
from workers.storage.snapshot import Part, Snapshot

ABOUT = {"timestep": 17, "seed": 2**70, "scopes": [[0, 2], [2, 3]], "framework": "torch", "name": "é", "low": -0.5}


def snapshot(number: int = 0, pickled: bytes = b"") -> Snapshot:
    """Return a snapshot in which every part says which it is."""
    agents = (Part(b"agent 0 of %d" % number), Part(b"agent 1 of %d" % number, pickled))
    return Snapshot(agents, {(0, 2): Part(b"rows 0 and 1 of %d" % number, pickled), (2, 13): Part(b"")})


def signed(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest with the right digest."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
    return {**rest, "sha256": hashlib.sha256(text).hexdigest()}


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object], *, sign: bool = True) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(signed(manifest) if sign else manifest))


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_checkpoint("~/mine", ABOUT, snapshot(1))
    for given in ("~/mine", Path("~/mine"), tmp_path / "home" / "mine"):
        assert read_checkpoint(given, allow_pickle=False) == (ABOUT, snapshot(1))
    assert list((tmp_path / "here").iterdir()) == []


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A checkpoint with pickles."""
    write_checkpoint(tmp_path / "target", ABOUT, snapshot(pickled=b"p"))
    return tmp_path / "target"


def test_a_checkpoint_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "runs" / "mine" / "5"
    write_checkpoint("runs/mine/5/", ABOUT, snapshot(3))
    for given in (path, str(path), "runs/mine/5", "runs/mine/../mine/5/"):
        assert read_checkpoint(given, allow_pickle=False) == (ABOUT, snapshot(3))
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    files = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if not file.is_dir())
    names = ("agents/0", "agents/1", "environments/0-2", "environments/2-13")
    assert files == sorted(["runs/mine/5/manifest.json", *(f"runs/mine/5/{name}.safetensors" for name in names)])
    manifest = json.loads((path / "manifest.json").read_text())
    assert signed(manifest) == manifest
    assert (manifest["format"], manifest["version"], manifest["about"]) == ("lockstep checkpoint", 1, ABOUT)
    assert manifest["files"]["agents/1.safetensors"] == {
        "size": 12,
        "sha256": hashlib.sha256(b"agent 1 of 3").hexdigest(),
    }


def test_environments_may_be_stored_as_a_whole_or_not_at_all(tmp_path: Path):
    for envs in ({(0, 13): Part(b"all", b"p")}, {}):
        write_checkpoint(tmp_path / "target", {}, snapshot()._replace(envs=envs))
        assert read_checkpoint(tmp_path / "target", allow_pickle=True)[1].envs == envs


def test_a_checkpoint_is_replaced_as_a_whole(tmp_path: Path):
    path = tmp_path / "target"
    write_checkpoint(path, {"timestep": 1}, snapshot(1, b"p"))
    write_checkpoint(path, {"timestep": 2}, snapshot(2))
    assert read_checkpoint(path, allow_pickle=False) == ({"timestep": 2}, snapshot(2))
    assert not list(path.rglob("*.pickle"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["target"]


def test_pickles_are_read_only_if_asked_for(tmp_path: Path):
    path = tmp_path / "target"
    bomb = dumps([Bomb(tmp_path / "exploded")])
    write_checkpoint(path, ABOUT, snapshot(1, bomb))
    assert (path / "agents" / "1.pickle").read_bytes() == bomb
    assert not (path / "agents" / "0.pickle").exists()
    with pytest.raises(
        CheckpointError,
        match=r"target' has agents/1.pickle, environments/0-2.pickle. Loading a pickle runs .* pass allow_pickle=True",
    ):
        read_checkpoint(path, allow_pickle=False)
    assert read_checkpoint(path, allow_pickle=True)[1] == snapshot(1, bomb)
    assert not (tmp_path / "exploded").exists()
    write_checkpoint(path, ABOUT, Snapshot((Part(b"a", b"p"),) * 8, {}))
    with pytest.raises(CheckpointError, match=r"has agents/0.pickle, .*, agents/4.pickle and 3 more\."):
        read_checkpoint(path, allow_pickle=False)


def test_a_link_to_a_checkpoint_is_the_users_own(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "latest").symlink_to(tmp_path / "disk" / "real")
    for number in (1, 2):
        write_checkpoint(tmp_path / "latest", {}, snapshot(number))
        assert read_checkpoint(tmp_path / "latest", allow_pickle=False)[1] == snapshot(number)
    assert (tmp_path / "latest").is_symlink()
    assert [entry.name for entry in (tmp_path / "disk").iterdir()] == ["real"]


@pytest.mark.parametrize("path", ["", "a\0b", 3, None, "\ud800", "zip::b", "s3x://bucket/a", "memory://a::"])
def test_what_is_no_path_is_refused(path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    told = "the checkpoint .* cannot be opened: " if ":" in str(path) else "is no path of a folder"
    for call in (lambda: write_checkpoint(path, {}, snapshot()), lambda: read_checkpoint(path, allow_pickle=True)):
        with pytest.raises(CheckpointError, match=told):
            call()
    assert not list(tmp_path.iterdir())


def folder_with(content: str, name: str = "manifest.json") -> Callable[[Path], object]:
    def make(path: Path) -> None:
        path.mkdir()
        (path / name).write_text(content)

    return make


def folder_with_a_pipe(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "manifest.json")


OCCUPIED: dict[str, Callable[[Path], object]] = {
    "a file": lambda path: path.write_text("mine"),
    "an empty folder": Path.mkdir,
    "a folder with a file": folder_with("mine", "mine"),
    "another manifest": folder_with('{"format": "other"}'),
    "no JSON": folder_with("{"),
    "a pipe as manifest": folder_with_a_pipe,
}


@pytest.mark.parametrize("kind", OCCUPIED)
def test_what_is_no_checkpoint_is_never_replaced(kind: str, tmp_path: Path):
    path = tmp_path / "target"
    OCCUPIED[kind](path)
    before = [(entry, entry.lstat().st_mtime_ns) for entry in sorted(tmp_path.rglob("*"))]
    with pytest.raises(CheckpointError, match="target' is there already and is no checkpoint; choose another path"):
        write_checkpoint(path, {}, snapshot())
    assert [(entry, entry.lstat().st_mtime_ns) for entry in sorted(tmp_path.rglob("*"))] == before
    with pytest.raises(CheckpointError, match=r"there is no checkpoint at|is no checkpoint: "):
        read_checkpoint(path, allow_pickle=True)


def test_a_damaged_or_newer_checkpoint_may_be_replaced(target: Path):
    for change in (
        lambda: (target / "agents" / "0.safetensors").unlink(),
        lambda: change_manifest(target, lambda manifest: manifest.update(version=2)),
        lambda: change_manifest(target, lambda manifest: manifest.pop("files"), sign=False),
    ):
        change()
        with pytest.raises(CheckpointError):
            read_checkpoint(target, allow_pickle=True)
        write_checkpoint(target, {}, snapshot(4))
        assert read_checkpoint(target, allow_pickle=False)[1] == snapshot(4)


def test_what_json_cannot_hold_is_refused_before_anything_is_touched(target: Path):
    before = read_checkpoint(target, allow_pickle=True)
    within_itself: dict[str, Any] = {}
    within_itself["me"] = within_itself
    wrong: list[dict[Any, Any]] = [{"a": object()}, {"a": {1, 2}}, {(1, 2): 3}, within_itself, {"a": "x" * 2**24}]
    for about in wrong:
        with pytest.raises(CheckpointError, match=r"manifest.json of a checkpoint cannot be written: [A-Z].*Error: "):
            write_checkpoint(target, about, snapshot(1))
    assert read_checkpoint(target, allow_pickle=True) == before
    assert [entry.name for entry in target.parent.iterdir()] == ["target"]


@pytest.mark.parametrize("call", ["fsync", "rename", "open", "mkdir"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_disk_that_refuses_leaves_the_old_checkpoint(
    target: Path, call: str, number: int, monkeypatch: pytest.MonkeyPatch
):
    original = getattr(os, call)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        if call == "open" and not args[1] & os.O_CREAT:
            return original(*args, **kwargs)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        patch.setattr("orchestrator.checkpoint_folder._exchanged", lambda *_: False)
        with pytest.raises(CheckpointError, match=f"target' cannot be written: .*{os.strerror(number)}") as caught:
            write_checkpoint(target, {}, snapshot(1))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == number
    assert read_checkpoint(target, allow_pickle=True) == (ABOUT, snapshot(pickled=b"p"))
    assert [entry.name for entry in target.parent.iterdir()] == ["target"]


def test_a_folder_above_that_is_a_file(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"a/b' cannot be written: .*Not a directory"):
        write_checkpoint(tmp_path / "file" / "a" / "b", {}, snapshot())
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        read_checkpoint(tmp_path / "file" / "a" / "b", allow_pickle=False)


@pytest.mark.parametrize("exchanges", [True, False])
def test_everything_is_on_the_disk_before_it_is_renamed(target: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool):
    """Each file and folder is flushed once, the manifest after all other files; then the folder above."""
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename

    def name(path: str) -> str:
        return os.path.relpath(path, target.parent)

    def note_fsync(descriptor: int) -> None:
        calls.append(name(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def note_rename(source: str, destination: str) -> None:
        calls.append(f"{name(source)} -> {name(destination)}")
        rename(source, destination)

    monkeypatch.setattr(os, "fsync", note_fsync)

    def exchanged(one: str, other: str) -> bool:
        calls.append(f"{name(one)} <-> {name(other)}")
        return _exchanged(one, other) if exchanges else False

    monkeypatch.setattr(os, "rename", note_rename)
    monkeypatch.setattr("orchestrator.checkpoint_folder._exchanged", exchanged)
    write_checkpoint(target, {}, snapshot(1, b"p"))
    names = ["agents/0.safetensors", "agents/1.safetensors", "agents/1.pickle", "environments/0-2.safetensors"]
    names += ["environments/0-2.pickle", "environments/2-13.safetensors", "manifest.json"]
    assert calls == [
        *(f".target.partial/new/{name}" for name in names),
        *(f".target.partial/new{name}" for name in ("", "/agents", "/environments")),
        ".target.partial/new <-> target",
        *([] if exchanges else ["target -> .target.replaced", ".target.partial/new -> target"]),
        ".",
    ]


def test_a_writer_that_lives_is_left_alone_and_a_dead_one_swept_up(target: Path):
    partial = target.parent / ".target.partial"
    half = partial / "new" / "agents" / "0.safetensors"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    with (partial / "lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(CheckpointError, match=r"another process is writing in .*\.target\.partial'; wait until"):
            write_checkpoint(target, {}, snapshot(1))
        assert half.read_bytes() == b"half"
        write_checkpoint(target.with_name("other"), {}, snapshot(2))
    write_checkpoint(target, {}, snapshot(1))
    assert read_checkpoint(target, allow_pickle=False)[1] == snapshot(1)
    assert sorted(entry.name for entry in target.parent.iterdir()) == ["other", "target"]


def test_a_link_in_the_place_of_a_working_folder_is_not_followed(target: Path, tmp_path: Path):
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "file").touch()
    for name in (".target.partial", ".target.replaced"):
        (tmp_path / name).symlink_to(tmp_path / "victim")
        with pytest.raises(CheckpointError, match="target' cannot be written"):
            write_checkpoint(target, {}, snapshot(1))
        (tmp_path / name).unlink()
        assert [entry.name for entry in (tmp_path / "victim").iterdir()] == ["file"]
        assert read_checkpoint(target, allow_pickle=True)[0] == ABOUT
