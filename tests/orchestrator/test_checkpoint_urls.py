"""Checkpoints at URLs: whole at any moment, also if their writer is killed between any two writes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import fsspec
import pytest

from orchestrator.checkpoint import read_checkpoint, read_manifest, write_checkpoint
from orchestrator.manifest import parse_manifest
from orchestrator.run_dir import RunDirectory
from tests.support.strikes import Killed, Strikes, killing_writes
from workers.errors import CheckpointError, DamagedCheckpointError
from workers.storage.snapshot import Part, Snapshot


def snapshot(number: int) -> Snapshot:
    agents = (Part(b"agent 0 of %d" % number), Part(b"agent 1 of %d" % number, b"p" * number))
    return Snapshot(agents, {(0, 2): Part(b"rows 0 and 1 of %d" % number), (2, 13): Part(b"rows of %d" % number)})


def write(url: str, number: int) -> None:
    write_checkpoint(url, {"number": number}, snapshot(number))


def number_at(url: str) -> int | None:
    """Return which checkpoint is there, whole."""
    try:
        about, found = read_checkpoint(url, allow_pickle=True)
    except CheckpointError:
        return None
    assert found == snapshot(about["number"])
    return int(about["number"])


def names(url: str) -> list[str]:
    filesystem, path = fsspec.core.url_to_fs(url)
    filesystem.invalidate_cache()
    return sorted(name.removeprefix(f"{path}/") for name in filesystem.find(path))


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A folder that does not exist yet."""
    base = "memory://checkpoints-of-a-test" if request.param == "memory" else request.getfixturevalue("s3")
    name = re.sub(r"\W", "-", request.node.name)
    yield f"{base}/{name}/run"
    filesystem, path = fsspec.core.url_to_fs(f"{base}/{name}")
    filesystem.invalidate_cache()
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


def test_a_checkpoint_is_written_and_replaced(url: str):
    assert number_at(url) is None
    with pytest.raises(CheckpointError, match=f"there is no checkpoint at '{url}'"):
        read_checkpoint(url, allow_pickle=True)
    for number in (1, 2):
        write(url, number)
        assert number_at(url) == number
        folder = json.loads(fsspec.core.url_to_fs(url)[0].cat_file(f"{url}/manifest.json"))["folder"]
        files = ["agents/0.safetensors", "agents/1.pickle", "agents/1.safetensors"]
        files += ["environments/0-2.safetensors", "environments/2-13.safetensors"]
        assert names(url) == [*sorted(f"{folder}/{name}" for name in files), "manifest.json"]


def test_what_is_no_checkpoint_is_never_replaced(url: str):
    filesystem, path = fsspec.core.url_to_fs(url)
    filesystem.pipe_file(f"{path}/mine", b"mine")
    with pytest.raises(CheckpointError, match=r"^'.*run' is there already and is no checkpoint: it has 'mine'"):
        write(url, 1)
    filesystem.pipe_file(f"{path}/manifest.json", b'{"format": "other"}')
    with pytest.raises(CheckpointError, match=r"^'.*run' is there already and is no checkpoint; choose another path"):
        write(url, 1)
    assert names(url) == ["manifest.json", "mine"]


@pytest.mark.parametrize("old", [None, 1])
def test_a_writer_that_is_killed_between_any_two_writes_leaves_a_whole_checkpoint(url: str, old: int | None):
    found: list[int | None] = []
    for last in range(1, 100):
        here = f"{url}/{last}"
        if old:
            write(here, old)
        strikes = Strikes(last)
        with killing_writes(strikes):
            try:
                write(here, 2)
            except (Killed, CheckpointError):
                assert strikes.struck
        found.append(number_at(here))
        write(here, 3)  # what the killed one has left is removed
        assert number_at(here) == 3
        assert len(names(here)) == 6
        if not strikes.struck:
            break
    assert found == [old] * found.count(old) + [2] * found.count(2)
    assert found.count(old) > 5
    assert found.count(2) > 1


def damage(url: str, name: str, content: bytes | None) -> None:
    filesystem, path = fsspec.core.url_to_fs(url)
    folder = parse_manifest(read_manifest(url), url).folder
    place = f"{path}/{name.format(folder=folder)}"
    if content is None:
        filesystem.rm(place)
    else:
        filesystem.pipe_file(place, content)


DAMAGES: dict[str, tuple[str, bytes | None, str]] = {
    "no manifest": ("manifest.json", None, "manifest.json is unreadable"),
    "a torn manifest": ("manifest.json", b'{"format"', "manifest.json is unreadable"),
    "a missing file": ("{folder}/agents/0.safetensors", None, "agents/0.safetensors cannot be read"),
    "a torn file": ("{folder}/agents/0.safetensors", b"agent", "agents/0.safetensors has 5 bytes; expected 12"),
    "another file": ("{folder}/agents/0.safetensors", b"agent 0 of 2", "agents/0.safetensors has been changed"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_torn_checkpoint_is_refused(url: str, kind: str):
    write(url, 1)
    name, content, told = DAMAGES[kind]
    damage(url, name, content)
    with pytest.raises(DamagedCheckpointError, match=told):
        read_checkpoint(url, allow_pickle=True)


@pytest.mark.parametrize("folder", ["..", "a", "0" * 31, "0" * 33, 5])
def test_a_manifest_names_no_other_folder(folder: Any):
    from orchestrator.manifest import _own_digest

    url = "memory://checkpoints-of-a-test/odd"
    write(url, 1)
    filesystem = fsspec.filesystem("memory")
    manifest = json.loads(filesystem.cat_file(f"{url}/manifest.json")) | {"folder": folder}
    filesystem.pipe_file(f"{url}/manifest.json", json.dumps(manifest | {"sha256": _own_digest(manifest)}).encode())
    with pytest.raises(DamagedCheckpointError, match="as 'folder'; expected 32 hexadecimal digits"):
        read_checkpoint(url, allow_pickle=True)
    filesystem.rm("/checkpoints-of-a-test", recursive=True)


def write_next(number: int, url: str, sign: Callable[[bytes], None]) -> None:
    write_checkpoint(url, {"number": number}, snapshot(number), sign=sign)


def load(loaded: list[int], url: str, verify: Callable[[bytes], None]) -> int:
    number = int(read_checkpoint(url, allow_pickle=True, verify=verify)[0]["number"])
    loaded.append(number)
    return number - 1


def test_the_last_whole_checkpoint_of_a_run_is_taken_wherever_its_writer_is_killed(url: str):
    found = []
    for last in range(1, 200):
        here = f"{url}/{last}"
        checkpoints = RunDirectory(here).checkpoints()
        for timestep in (0, 5):
            checkpoints.save(timestep, partial(write_next, timestep + 1), keep_last=2)
        strikes = Strikes(last)
        with killing_writes(strikes), suppress(Killed, CheckpointError, OSError):
            checkpoints.save(10, partial(write_next, 11), keep_last=2)
        loaded: list[int] = []
        done = RunDirectory(here).checkpoints().load(partial(load, loaded), trust=False)
        assert done is not None
        assert loaded == [done + 1]
        found.append(done)
        if not strikes.struck:
            break
    assert found == [5] * found.count(5) + [10] * found.count(10)
    assert min(found.count(5), found.count(10)) > 1
