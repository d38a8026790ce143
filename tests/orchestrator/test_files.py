"""Files that may come from somebody else: only files are read, within limits, and nothing is written through a link."""

from __future__ import annotations

import json
import os
import secrets
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from orchestrator.files import LARGEST_TEXT, read_at, read_file
from orchestrator.metrics import MetricsWriter
from orchestrator.run_dir import RunDirectory
from workers.errors import AgentError, ConfigError
from workers.frameworks import load_framework
from workers.storage.state_file import encode_state

NUMPY = load_framework("numpy")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10 * 2**30)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # the name of a socket must be short


ODD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pipe": (os.mkfifo, "is a pipe; expected a file"),
    "endless device": (lambda path: path.symlink_to("/dev/zero"), "is a device; expected a file"),
    "empty device": (lambda path: path.symlink_to("/dev/null"), "is a device; expected a file"),
    "socket": (a_socket, "No such device or address"),
    "directory": (Path.mkdir, "Is a directory"),
    "loop": (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
    "missing": (lambda path: None, "No such file or directory"),
}
ODD_TEXT = {**ODD, "sparse": (sparse, f"has 10737418240 bytes or more; expected at most {LARGEST_TEXT}")}


@pytest.mark.parametrize("kind", ODD_TEXT)
def test_only_a_file_of_limited_size_is_read_as_text(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    make, message = ODD_TEXT[kind]
    make(tmp_path / "file")
    with pytest.raises(OSError, match=message):
        read_file(str(tmp_path / "file"), LARGEST_TEXT)
    run = tmp_path / "run"
    run.mkdir()
    for name, method in (("config.yaml", RunDirectory.config), ("status.json", RunDirectory.status)):
        make(run / name)
        with pytest.raises(ConfigError, match=f"run' is not a run directory: it has no readable {name} .*{message}"):
            method(RunDirectory(str(run)))


@pytest.mark.parametrize("kind", [kind for kind in ODD if kind not in ("missing", "loop")])
@pytest.mark.parametrize("name", ["state.safetensors", "agent.bin", "statistics.safetensors"])
def test_only_a_file_is_read_as_an_agent(kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    make, message = ODD[kind]
    (tmp_path / "agents" / "0").mkdir(parents=True)
    make(tmp_path / "agents" / "0" / name)
    run = RunDirectory(str(tmp_path))
    methods: list[Callable[[], Any]] = [lambda: run.statistics(0)]
    if not name.startswith("statistics"):
        methods = [lambda: run.digest(0), lambda: run.load_agent(object(), 0, NUMPY)]
    for method in methods:
        with pytest.raises(AgentError, match=message):
            method()


def test_a_file_of_the_greatest_size_is_read(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"x" * 100)
    assert read_file(str(tmp_path / "file"), 100) == read_file(str(tmp_path / "file")) == b"x" * 100
    with pytest.raises(OSError, match="file' has 100 bytes or more; expected at most 99"):
        read_file(str(tmp_path / "file"), 99)


@contextmanager
def pipe(content: bytes | None) -> Iterator[str]:
    """A pipe as a shell makes it for ``<(command)``; with None, its end does not come."""
    reader, writer = os.pipe()
    done = threading.Event()

    def write() -> None:
        with suppress(BrokenPipeError):  # more than the limit
            os.write(writer, b"seed: 1\n" if content is None else content)
        if content is None:
            done.wait(60)
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield f"/dev/fd/{reader}"
    finally:
        done.set()
        os.close(reader)
        thread.join()


def test_a_pipe_is_read_to_its_end_where_one_may_be_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("orchestrator.files._PIPE_SECONDS", 60)  # a machine may be slow
    for content in (b"seed: 1\n", b"x" * LARGEST_TEXT):  # more than a pipe holds
        with pipe(content) as path:
            assert read_file(path, LARGEST_TEXT, may_be_pipe=True) == content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "nobody writes to the pipe"),
        (None, r"the end of the pipe did not come within 0\.1 s; write to a file first"),
        (b"x" * (LARGEST_TEXT + 1), f"has {LARGEST_TEXT + 1} bytes or more; expected at most {LARGEST_TEXT}"),
    ],
)
def test_a_pipe_does_not_hold_the_reader(content: bytes | None, message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("orchestrator.files._PIPE_SECONDS", 0.1 if content is None else 60)
    with pipe(content) as path, pytest.raises(OSError, match=message):
        read_file(path, LARGEST_TEXT, may_be_pipe=True)


def test_a_pipe_without_a_writer(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="nobody writes to the pipe"):
        read_file(str(tmp_path / "pipe"), LARGEST_TEXT, may_be_pipe=True)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o002, 0o077, 0o000])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_run_directory_is_private_unless_it_is_shared(umask: int, tmp_path: Path):
    private, shared, mine = (tmp_path / "runs" / name for name in ("private", "shared", "mine"))
    RunDirectory(str(private)).create("x: 1")
    RunDirectory(str(shared), shared=True).create("x: 1")
    mine.mkdir(mode=0o750)
    before = mode(mine)
    RunDirectory(str(mine)).create("x: 1")
    assert mode(private) == 0o700
    assert mode(shared) == mode(tmp_path / "runs") == 0o777 & ~umask
    assert mode(mine) == before  # as its owner made it
    assert mode(shared / "config.yaml") == 0o666 & ~umask
    RunDirectory(str(private)).write_agents([("agent.bin", b"1")])
    assert mode(private) == 0o700


def test_no_link_is_followed_when_a_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = RunDirectory(str(tmp_path / "run"))
    run.create("old: 1")
    precious = tmp_path / "precious"
    precious.write_text("precious")
    # somebody who can write to the directory and guesses the name
    monkeypatch.setattr(secrets, "token_hex", lambda number: "guessed")
    link = tmp_path / "run" / "config.yaml.guessed.part"
    link.symlink_to(precious)
    with pytest.raises(OSError, match="File exists"):
        run.write("config.yaml", "new: 1")
    assert (precious.read_text(), link.is_symlink(), run.config()) == ("precious", True, "old: 1")
    link.unlink()
    # a link in the place of the file is replaced
    (tmp_path / "run" / "status.json").symlink_to(precious)
    run.write("status.json", "{}")
    assert (precious.read_text(), (tmp_path / "run" / "status.json").read_text()) == ("precious", "{}")


def test_temporary_names_differ_and_none_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []

    def noted(source: str, target: str) -> None:
        seen.append(source)
        os.rename(source, target)

    monkeypatch.setattr(os, "replace", noted)
    run = RunDirectory(str(tmp_path / "run"))
    for _ in range(20):
        run.write("config.yaml", "x: 1")
    assert len(set(seen)) == 20
    (tmp_path / "run" / "status.json").mkdir()
    with pytest.raises(IsADirectoryError):
        run.write("status.json", "{}")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.yaml", "status.json"]


URLS = {
    "": "a part of it is empty",
    "::": "a part of it is empty",
    "simplecache::": "a part of it is empty",
    "a\0b": "a NUL character",
    "file://\0": "a NUL character",
    "nosuch://bucket": "Protocol not known: nosuch",
    "\x1b[31m://x": "Protocol not known",
    "gs://": "gcsfs",
    "dir://x": "AttributeError",
    "reference://": "TypeError",
    "generic://x": "TypeError",
    "zip://x::nothing.zip": "No such file",
}


@pytest.mark.parametrize("url", URLS)
def test_a_url_that_cannot_be_opened(url: str):
    for kind in (RunDirectory, MetricsWriter):
        with pytest.raises(ConfigError, match=f"the run directory .* cannot be opened: .*{URLS[url]}"):
            kind(url)


@pytest.mark.parametrize("url", ["data:text/plain,hello", "a/" * 3000, "a" * 300])
def test_a_url_that_cannot_hold_a_run(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        RunDirectory(url).create("x: 1")
    for method in (RunDirectory.config, RunDirectory.status):
        with pytest.raises(ConfigError, match="is not a run directory"):
            method(RunDirectory(url))


def test_the_root_of_a_filesystem_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("mine: 1")
    for url in ("/", "//", "memory://"):
        with pytest.raises(ConfigError, match="is not a run directory"):
            RunDirectory(url).config()
    RunDirectory("memory://").write("config.yaml", "x: 1")
    try:
        assert RunDirectory("memory://").config() == "x: 1"
    finally:
        fsspec.filesystem("memory").rm("/config.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


STATUS = {
    "[" * 200_000: "maximum recursion depth",
    "{}": "state None and timestep None; expected one of running, interrupted, failed, finished, and an integer",
    '{"state": "finished"}': "state 'finished' and timestep None",
    '{"timestep": 3}': "state None and timestep 3",
    "[]": "it is a list; expected a dictionary",
    '[["state", "finished"], ["timestep", 1]]': "it is a list",
    '{"state": "\\u001b[31m\\nlockstep: fine", "timestep": 1}': r"state '\\x1b\[31m\\nlockstep: fine' and",
    '{"state": ["finished"], "timestep": 1}': r"state \['finished'\] and",
    '{"state": "finished", "timestep": NaN}': "timestep nan",
    '{"state": "finished", "timestep": 1e999}': "timestep inf",
    '{"state": "finished", "timestep": true}': "timestep True",
    '{"state": "finished", "timestep": -1}': "timestep -1",
    '{"state": "finished", "timestep": ' + "9" * 5000 + "}": "Exceeds the limit",
    '{"state": "' + "x" * 2**20 + '", "timestep": 1}': f"expected at most {LARGEST_TEXT}",
    '{"state": "' + "x" * 2**17 + '", "timestep": 1}': r"state 'x+\.\.\.x+' and",
}


def test_the_start_of_a_file_can_be_left_out(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"0123456789")
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/left_out", b"0123456789")
    for filesystem, path in ((fsspec.filesystem("file"), str(tmp_path / "file")), (memory, "/left_out")):
        assert read_at(filesystem, path, 10, start=7) == b"789"
        assert read_at(filesystem, path, 10, start=12) == b""
        with pytest.raises(OSError, match="expected at most 9"):  # the whole counts
            read_at(filesystem, path, 9, start=7)
    memory.rm("/left_out")


@pytest.mark.parametrize("text", STATUS, ids=lambda text: text[:40])
def test_a_status_that_is_none(text: str, tmp_path: Path):
    run = RunDirectory(str(tmp_path / "run"))
    run.write("status.json", text)
    with pytest.raises(ConfigError, match=f"run' is not a run directory: it.* status.json .*{STATUS[text]}") as caught:
        run.status()
    assert len(str(caught.value)) < 500 + len(str(tmp_path))
    run.write("status.json", json.dumps({"state": "failed", "timestep": 7, "more": 1}))
    assert run.status() == {"state": "failed", "timestep": 7, "stopped": ""}


GOOD = {"mean": np.zeros(4), "var": np.ones(4), "count": np.array(5.0)}


@pytest.mark.parametrize(
    "value",
    [
        3,
        "text",
        None,
        ["text"],
        [3],
        {"a": 1},
        [{"N.obs_rms": 3}],
        [{"N.obs_rms": {}}],
        [{3: GOOD}],
        [{"\x1b[31m\nlockstep: fine": GOOD}],
        [{"N.obs_rms": {**GOOD, "more": np.zeros(1)}}],
        [{"N.obs_rms": {**GOOD, "mean": [0.0] * 4}}],
        [{"N.obs_rms": {**GOOD, "mean": np.zeros(4, np.complex64)}}],
        [{"N.obs_rms": {**GOOD, "var": -np.ones(4)}}],
        [{"N.obs_rms": {**GOOD, "count": np.array(-3)}}],
        [{"N.obs_rms": {**GOOD, "count": None}}],
    ],
    ids=str,
)
def test_statistics_that_are_none(value: Any, tmp_path: Path):
    run = RunDirectory(str(tmp_path))
    run.write("agents/0/statistics.safetensors", encode_state(value, NUMPY))
    with pytest.raises(AgentError, match=r"0/statistics\.safetensors: the file does not hold the statistics of env"):
        run.statistics(0)
    run.write("agents/0/statistics.safetensors", encode_state([{"N.obs_rms": GOOD}, {}], NUMPY))
    (first, second) = run.statistics(0)
    np.testing.assert_array_equal(first["N.obs_rms"]["var"], np.ones(4))
    assert second == {}
