"""Damaged checkpoints: an error that says so, in little time and memory, and nothing from inside a library."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.checkpoint import read_checkpoint, write_checkpoint
from tests.orchestrator.test_checkpoint import ABOUT, change_manifest, snapshot, target
from tests.support.damage import JUNK, Within, damaged_bytes, damaged_data, damaged_state
from tests.support.schedule import examples
from workers.errors import CheckpointError
from workers.frameworks import load_framework
from workers.storage.snapshot import Snapshot, decode_part, encode_part

__all__ = ["target"]  # a fixture

TORCH = load_framework("torch")
Manifest = dict[str, Any]


def test_every_flipped_bit_is_noticed(target: Path):
    """Of a manifest of plain numbers and letters, in which no bit is without a meaning."""
    for path in (target / "manifest.json", target / "agents" / "1.pickle", target / "agents" / "0.safetensors"):
        data = path.read_bytes()
        for place in range(len(data)):
            flipped = data[place] ^ (1 << place % 8)
            path.write_bytes(data[:place] + bytes([flipped]) + data[place + 1 :])
            with pytest.raises(CheckpointError, match=f"target' is .*{path.name}|target' is no checkpoint"):
                read_checkpoint(target, allow_pickle=True)
        path.write_bytes(data)
    assert read_checkpoint(target, allow_pickle=True)[0] == ABOUT


def test_every_cut_is_noticed(target: Path):
    for path in target.rglob("*.*"):
        data = path.read_bytes()
        for length in range(len(data)):
            path.write_bytes(data[:length])
            with pytest.raises(CheckpointError, match=path.name):
                read_checkpoint(target, allow_pickle=True)
        path.write_bytes(data + b"\0")
        with pytest.raises(CheckpointError, match=path.name):
            read_checkpoint(target, allow_pickle=True)
        path.write_bytes(data)


def replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return what puts something else into the place of a file, in the folder and in a folder of that kind."""

    def damage(folder: Path) -> None:
        path = folder / "agents" / "0.safetensors"
        path.rename(folder / "moved")
        make(path)

    return damage


def swap(folder: Path) -> None:
    one, other = folder / "agents" / "0.safetensors", folder / "agents" / "1.safetensors"
    first, second = one.read_bytes(), other.read_bytes()
    assert len(first) == len(second)
    one.write_bytes(second)
    other.write_bytes(first)


def link_folder(folder: Path) -> None:
    (folder / "agents").rename(folder.parent / "elsewhere")
    (folder / "agents").symlink_to(folder.parent / "elsewhere")


def link_manifest(folder: Path) -> None:
    (folder / "manifest.json").rename(folder.parent / "elsewhere")
    (folder / "manifest.json").symlink_to(folder.parent / "elsewhere")


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (
        lambda folder: (folder / "manifest.json").unlink(),
        "no checkpoint: manifest.json is unreadable: File",
    ),
    "a linked manifest": (link_manifest, "no checkpoint: manifest.json is unreadable: .* is a link"),
    "a missing file": (lambda folder: (folder / "agents" / "0.safetensors").unlink(), "0.safetensors cannot be read"),
    "a missing pickle": (lambda folder: (folder / "agents" / "1.pickle").unlink(), "agents/1.pickle cannot be read"),
    "a missing folder": (lambda folder: shutil.rmtree(folder / "environments"), "environments/.* cannot be read"),
    "swapped files": (swap, "agents/0.safetensors has been changed: its SHA-256 differs"),
    "a link": (replaced(lambda path: path.symlink_to("../moved")), "0.safetensors cannot be read: .* is a link"),
    "a linked folder": (link_folder, "agents/0.safetensors cannot be read: .*agents' is a link"),
    "a device": (replaced(lambda path: path.symlink_to("/dev/zero")), "0.safetensors cannot be read: .* is a link"),
    "a pipe": (replaced(os.mkfifo), "agents/0.safetensors has 0 bytes; expected 12"),
    "a directory": (replaced(Path.mkdir), "agents/0.safetensors .*(has [0-9]* bytes|directory)"),
    "a hole": (
        lambda folder: os.truncate(folder / "agents" / "0.safetensors", 10 * 2**30),
        "has 10737418240 bytes; exp",
    ),
    "a large manifest": (lambda folder: os.truncate(folder / "manifest.json", 10 * 2**30), "10737418240 bytes or more"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_with_something_else_is_refused(kind: str, target: Path):
    damage, told = FOLDERS[kind]
    damage(target)
    with Within().limits(0), pytest.raises(CheckpointError, match=told) as caught:
        read_checkpoint(target, allow_pickle=True)
    assert str(target) in str(caught.value)


def test_what_is_not_listed_is_ignored(target: Path):
    """Such as the files of a file manager; never loaded, so they do no harm."""
    (target / ".DS_Store").touch()
    (target / "agents" / "0.pickle").write_bytes(b"unlisted")
    assert read_checkpoint(target, allow_pickle=True)[1].agents[0].pickled == b""


def renamed(old: str, new: str) -> Callable[[Manifest], object]:
    return lambda manifest: manifest["files"].update({new: manifest["files"].pop(old)})


KINDS = ("safetensors", "pickle")
MANIFESTS: dict[str, tuple[Callable[[Manifest], object], str]] = {
    "newer": (lambda manifest: manifest.update(version=2, files=None),
              "was written by a newer Lockstep: format 2; this one reads up to 1; upgrade"),
    "version 0": (lambda manifest: manifest.update(version=0), "has version 0; expected 1"),
    "version True": (lambda manifest: manifest.update(version=True), "has version True; expected 1"),
    "no version": (lambda manifest: manifest.pop("version"), "has version None; expected 1"),
    "foreign": (lambda manifest: manifest.update(format="other"), "is no checkpoint: its format is 'other'"),
    "no about": (lambda manifest: manifest.update(about=[1]), r"has \[1\] as 'about'; expected a dictionary"),
    "no files": (lambda manifest: manifest.pop("files"), "lacks the size or sha256 of a file"),
    "files in a list": (lambda manifest: manifest.update(files=["a"]), "lacks the size or sha256 of a file"),
    "no size": (lambda manifest: manifest["files"]["agents/0.safetensors"].pop("size"), "lacks the size or sha256"),
    "a text for a file": (lambda manifest: manifest["files"].update({"agents/0.safetensors": "x"}), "lacks the size"),
    "another size": (lambda manifest: manifest["files"]["agents/0.safetensors"].update(size=2**62),
                     f"agents/0.safetensors has 12 bytes; expected {2**62}"),
    "a size of text": (lambda manifest: manifest["files"]["agents/0.safetensors"].update(size="12"), "expected '12'"),
    "a digest of another type": (lambda manifest: manifest["files"]["agents/0.safetensors"].update(sha256=[1]),
                                 "0.safetensors has been changed"),
    "a scope too few": (lambda manifest: manifest["files"].pop("agents/0.safetensors"), r"of scopes \[1\]; expected"),
    "no scopes": (lambda manifest: manifest.update(files={}), r"of scopes \[\]; expected all"),
    "rows too few": (lambda manifest: [manifest["files"].pop(f"environments/0-2.{kind}") for kind in KINDS],
                     r"of rows \[\(2, 13\)\]; expected all rows, once each"),
    "rows twice": (renamed("environments/2-13.safetensors", "environments/1-13.safetensors"), "expected all rows"),
    "rows backwards": (renamed("environments/2-13.safetensors", "environments/2-1.safetensors"), "expected all rows"),
    "no rows": (renamed("environments/2-13.safetensors", "environments/2-2.safetensors"), "expected all rows"),
    "a pickle alone": (renamed("agents/1.pickle", "agents/2.pickle"), "agents/2.pickle without its .safetensors"),
    **{f"the name {name!r}": (renamed("agents/0.safetensors", name), "which is no name of a file in a checkpoint")
       for name in ("agents/../../1.safetensors", "/etc/passwd", "agents/01.safetensors", "agents/1.safetensors/",
                    "agents/1.safetensors\n", "agents/-1.safetensors", "agents/\u0661.safetensors", "agents/1.bin", "",
                    "environments/0.safetensors", "agents/9999999999.safetensors", "agents\\1.safetensors")},
}  # fmt: skip


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_manifest_that_says_something_else_is_refused(kind: str, target: Path):
    change, told = MANIFESTS[kind]
    change_manifest(target, change)
    with Within().limits(0), pytest.raises(CheckpointError, match=told) as caught:
        read_checkpoint(target, allow_pickle=True)
    assert str(target) in str(caught.value)


def test_a_manifest_must_be_json_with_its_digest(target: Path):
    path = target / "manifest.json"
    for text in ("", "[]", "3", "{}", "[" * 100_000, '{"a":' * 100_000, "9" * 5000, "\xff", '{"format": "\\ud800"}'):
        path.write_text(text, encoding="latin-1")
        with Within().limits(len(text)), pytest.raises(CheckpointError, match="is no checkpoint") as caught:
            read_checkpoint(target, allow_pickle=True)
        assert len(str(caught.value)) < 1000
    write_checkpoint_again(target)
    change_manifest(target, lambda manifest: manifest["about"].update(timestep=18), sign=False)
    with pytest.raises(CheckpointError, match=r"damaged: manifest.json has been changed: its sha256 is not that of"):
        read_checkpoint(target, allow_pickle=True)
    change_manifest(target, lambda manifest: manifest.pop("sha256"), sign=False)
    with pytest.raises(CheckpointError, match=r"damaged: manifest.json has been changed"):
        read_checkpoint(target, allow_pickle=True)


def write_checkpoint_again(target: Path) -> None:
    shutil.rmtree(target)
    write_checkpoint(target, ABOUT, snapshot(pickled=b"p"))


def encoded_snapshot() -> Snapshot:
    def part(tree: Any) -> Any:
        return encode_part(tree, TORCH, allow_pickle=True, what="it")

    agents = tuple(part({"weights": torch.arange(4.0) + scope, "rate": 0.5, "step": scope}) for scope in range(2))
    odd = {"log": deque([(1, b"a")], 5), "seen": {1, 2}, "buffer": bytearray(b"ab"), "names": np.array(["a", "bc"])}
    return Snapshot(agents, {(0, 2): part([odd, odd]), (2, 3): part([{"count": np.array([7, 8])}])})


def change_listed(folder: Path, name: str, data: bytes) -> None:
    """Change a file, with its right size and digest in the manifest."""
    (folder / name).write_bytes(data)
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change_manifest(folder, lambda manifest: manifest["files"].update({name: entry}))


def damage(folder: Path, rng: random.Random) -> str:
    """Damage a checkpoint. Return the kind."""
    files = sorted(path for path in folder.rglob("*.*") if path.is_file())
    path, other = rng.sample(files, 2)
    name = str(path.relative_to(folder))
    kind = rng.choice(
        ["bytes", "bytes", "append", "cut", "remove", "swap", "version", "manifest", "manifest", "content"]
    )
    if kind == "bytes":
        path.write_bytes(damaged_bytes(path.read_bytes(), rng))
    elif kind == "append":
        path.write_bytes(path.read_bytes() + rng.randbytes(rng.choice([1, 8, 1000])))
    elif kind == "cut":
        os.truncate(path, rng.randrange(path.stat().st_size))
    elif kind == "remove":
        path.unlink()
    elif kind == "swap":
        path.rename(folder / "aside")
        other.rename(path)
        (folder / "aside").rename(other)
    elif kind == "version":
        change_manifest(folder, lambda manifest: manifest.update(version=rng.choice([0, 2, 3, 10**400, *JUNK])))
    elif kind == "manifest":
        changed = damaged_data(json.loads((folder / "manifest.json").read_text()), rng)
        (folder / "manifest.json").write_text(json.dumps(changed))
        if isinstance(changed, dict):
            change_manifest(folder, lambda manifest: None)
    elif path.name != "manifest.json":
        damaged = damaged_state if path.suffix == ".safetensors" else damaged_bytes
        change_listed(folder, name, damaged(path.read_bytes(), rng))
    return kind


@pytest.mark.fuzz
def test_a_damaged_checkpoint_is_refused(tmp_path: Path):
    """Only content with the right digests gets as far as `decode_part`; it may mean something else, but is a state."""
    original, measured = encoded_snapshot(), Within()
    write_checkpoint(tmp_path / "whole", ABOUT, original)
    size = sum(path.stat().st_size for path in (tmp_path / "whole").rglob("*.*"))
    refused = {"read": 0, "decoded": 0}
    for seed in range(examples(50, long=500)):
        folder = tmp_path / str(seed)
        shutil.copytree(tmp_path / "whole", folder)
        kind = damage(folder, random.Random(seed))
        told = ""
        with measured.limits(size + sum(path.stat().st_size for path in folder.rglob("*.*"))):
            try:
                about, found = read_checkpoint(folder, allow_pickle=True)
                if kind not in ("manifest", "content"):
                    assert (about, found) == (ABOUT, original), f"{kind} of seed {seed} goes unnoticed"
                for part in (*found.agents, *found.envs.values()):
                    decode_part(part, TORCH, what="it")
            except CheckpointError as error:
                told = str(error)
        assert len(told) < 1500, seed
        refused["decoded" if told.startswith("it cannot be restored") else "read"] += bool(told)
        shutil.rmtree(folder)
    print(f"{refused} refused, slowest {measured.seconds:.2f} s, {measured.memory / 2**20:.1f} MiB")
    assert refused["read"] > 25
    assert refused["decoded"] > 0
