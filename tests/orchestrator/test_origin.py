"""The key of a user, and the record of the files that this user wrote."""

from __future__ import annotations

import json
import os
import re
import stat
import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest

from orchestrator.run_dir import RunDirectory
from orchestrator.user_key import key_path, user_key
from workers.errors import ConfigError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without a key."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path


def test_a_key_is_made_once_and_is_private(home: Path):
    assert user_key(create=False) is None
    assert not (home / "data").exists()
    key = user_key(create=True)
    assert key is not None
    assert len(key) == 32
    assert user_key(create=True) == user_key(create=False) == key
    assert key_path() == home / "data" / "lockstep" / "key"
    assert stat.S_IMODE(key_path().stat().st_mode) == 0o600
    assert stat.S_IMODE(key_path().parent.stat().st_mode) == 0o700
    assert [path.name for path in key_path().parent.iterdir()] == ["key"]


@pytest.mark.parametrize("value", [None, "", "relative/data"])
def test_where_the_key_is_by_default(value: str | None, home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_DATA_HOME")
    if value is not None:
        monkeypatch.setenv("XDG_DATA_HOME", value)
    assert key_path() == home / ".local" / "share" / "lockstep" / "key"


def test_many_make_one_key():
    ready = threading.Barrier(8)
    keys = []

    def make() -> None:
        ready.wait(60)
        keys.append(user_key(create=True))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(keys) == 8
    assert set(keys) == {user_key(create=False)}
    assert [path.name for path in key_path().parent.iterdir()] == ["key"]


def linked(path: Path) -> None:
    path.with_name("other").write_bytes(bytes(32))
    path.symlink_to("other")


def written(path: Path, data: bytes, mode: int = 0o600) -> None:
    path.write_bytes(data)
    path.chmod(mode)


BAD: dict[str, tuple[Any, str]] = {
    "link": (linked, r"cannot be opened \("),
    "link to nothing": (lambda path: path.symlink_to("nothing"), r"cannot be opened \("),
    "FIFO": (lambda path: os.mkfifo(path, 0o600), "is not a regular file"),
    "folder": (lambda path: path.mkdir(0o700), "is not a regular file"),
    "for the group": (lambda path: written(path, bytes(32), 0o640), r"can be used by others \(its mode is 640\)"),
    "for all": (lambda path: written(path, bytes(32), 0o602), r"can be used by others \(its mode is 602\)"),
    "empty": (lambda path: written(path, b""), "has 0 bytes"),
    "short": (lambda path: written(path, bytes(31)), "has 31 bytes"),
    "long": (lambda path: written(path, bytes(10**6)), "has 1000000 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_key_that_is_not_private_is_refused(name: str):
    make, message = BAD[name]
    key_path().parent.mkdir(parents=True)
    make(key_path())
    for create in (True, False):
        with pytest.raises(ConfigError, match=rf"the key '\S+/lockstep/key' {message}.*expected a file of 32 bytes"):
            user_key(create=create)


def test_a_key_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch):
    user_key(create=True)
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(ConfigError, match=f"belongs to the user with number {user}; expected"):
        user_key(create=True)


@pytest.fixture(params=["disk", "object store"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "disk":
        yield str(tmp_path / "run")
        return
    yield "memory://lockstep-origin"
    fsspec.filesystem("memory").rm("/lockstep-origin", recursive=True)


def own(url: str, name: str, data: bytes) -> bool:
    return not RunDirectory(url).foreign(name, data)


def test_what_this_user_wrote_is_known(url: str, home: Path, monkeypatch: pytest.MonkeyPatch):
    RunDirectory(url).create("x: 1")
    assert own(url, "config.yaml", b"x: 1")
    assert not own(url, "config.yaml", b"x: 2")
    assert not own(url, "agents/0/agent.bin", b"x: 1")
    # another process goes on with the run
    RunDirectory(url).write_agents([("agent.bin", b"first"), ("agent.bin", b"second")])
    assert own(url, "config.yaml", b"x: 1")
    assert own(url, "agents/0/agent.bin", b"first")
    assert own(url, "agents/1/agent.bin", b"second")
    assert not own(url, "agents/0/agent.bin", b"second")
    again = RunDirectory(f"{url}/again")  # with the same configuration and agents
    again.create("x: 1")
    again.write_agents([("agent.bin", b"first")])
    record = (RunDirectory(url)._read("origin.json"), RunDirectory(again.url)._read("origin.json"))
    assert json.loads(record[0])["run"] != json.loads(record[1])["run"]
    assert set(json.loads(record[0])["macs"]["agents/0/agent.bin"]).isdisjoint(
        json.loads(record[1])["macs"]["agents/0/agent.bin"]
    )
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "stranger"))
    assert RunDirectory(url).foreign("config.yaml", b"x: 1") == f"this user has no key in {key_path()}"
    user_key(create=True)
    reason = "config.yaml is not what this user's key signed for this run"
    assert RunDirectory(url).foreign("config.yaml", b"x: 1") == reason


def test_no_signature_serves_another_file(url: str):
    run = RunDirectory(url)
    run.create("x: 1")
    run.write_agents([("agent.bin", b"first")])
    record = json.loads(run._read("origin.json"))
    every = [mac for macs in record["macs"].values() for mac in macs]
    files = {"config.yaml": b"x: 1", "agents/0/agent.bin": b"first", "agents/1/agent.bin": b"second"}
    run.write("origin.json", json.dumps({**record, "macs": dict.fromkeys(files, every)}))
    found = {(name, data) for name in files for data in files.values() if own(url, name, data)}
    assert found == {("config.yaml", b"x: 1"), ("agents/0/agent.bin", b"first")}


@pytest.mark.parametrize("writes", range(4))
def test_whatever_is_there_when_a_write_ends_early_is_known(writes: int, url: str, monkeypatch: pytest.MonkeyPatch):
    files = [("agent.bin", b"first old"), ("agent.bin", b"second old")]
    run = RunDirectory(url)
    run.create("x: 1")
    run.write_agents(files)
    done: list[str] = []
    write = RunDirectory.write

    def failing(self: RunDirectory, name: str, content: Any) -> None:
        if len(done) == writes:
            raise OSError("no space left")
        done.append(name)
        write(self, name, content)

    for data in (b"newer", b"newest"):  # a failure may be repeated
        done.clear()
        with monkeypatch.context() as patch:
            patch.setattr(RunDirectory, "write", failing)
            try:
                run.write_agents([("agent.bin", b"first " + data), ("agent.bin", b"second " + data)])
            except OSError:
                assert writes < 3
        for scope in (0, 1):
            assert own(url, *RunDirectory(url).agent_file(scope))
    run.write_agents(files)
    run.write_agents(files)
    macs = json.loads(run._read("origin.json"))["macs"]
    assert len(macs["agents/0/agent.bin"]) == 2  # does not grow


BROKEN = {
    "empty": b"",
    "text": b"\xff\xfe",
    "list": b"[]",
    "number": b"1",
    "without MACs": b'{"run": "%s"}' % (b"0" * 32),
    "odd name": b'{"run": "../..", "macs": {}}',
    "number as name": b'{"run": 1, "macs": {}}',
    "MACs of another kind": b'{"run": "%s", "macs": [1]}' % (b"0" * 32),
    "text as MACs": b'{"run": "%s", "macs": {"config.yaml": "%s"}}' % (b"0" * 32, b"0" * 64),
    "odd MAC": b'{"run": "%s", "macs": {"config.yaml": ["\\u00e4"]}}' % (b"0" * 32),
    "number as MAC": b'{"run": "%s", "macs": {"config.yaml": [7]}}' % (b"0" * 32),
    "deep": b"[" * 10**6,
    "huge": b" " * (2**22 + 1),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_record_that_cannot_be_read_says_so(name: str, tmp_path: Path):
    run = RunDirectory(str(tmp_path / "run"))
    run.create("x: 1")
    run.write("origin.json", BROKEN[name])
    reason = RunDirectory(run.url).foreign("config.yaml", b"x: 1")
    assert re.match("its origin.json cannot be read: .*(is not a record of a run|expected at most 4194304)", reason)
    assert len(reason) < 300


@pytest.mark.parametrize("kind", ["FIFO", "folder", "link to a device", "link to nothing", "nothing"])
def test_a_record_that_is_no_file(kind: str, tmp_path: Path):
    run = RunDirectory(str(tmp_path / "run"))
    run.create("x: 1")
    path = tmp_path / "run" / "origin.json"
    path.unlink()
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind.startswith("link"):
        path.symlink_to("/dev/zero" if kind == "link to a device" else "nowhere")
    reason = RunDirectory(run.url).foreign("config.yaml", b"x: 1")
    if "nothing" in kind:
        assert reason == "it has no origin.json"
    else:
        assert re.match(r"its origin.json cannot be read: .*(is a pipe|Is a directory|is a device)", reason)


def test_without_a_key_a_run_goes_on(url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setenv("XDG_DATA_HOME", "/dev/null")
    run = RunDirectory(url)
    run.create("x: 1")
    run.write_agents([("agent.bin", b"own")])
    assert [record.getMessage()[:60] for record in caplog.records] == [
        "there is no key to sign the run directory with ([Errno 20] N"
    ]
    assert run.foreign(*run.agent_file(0)) == ""  # this process wrote it
    assert RunDirectory(url).foreign(*run.agent_file(0)) == "this user has no key in /dev/null/lockstep/key"


def test_a_bad_key_costs_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """It is only refused where it is to prove something."""
    key_path().parent.mkdir(parents=True)
    written(key_path(), bytes(32), 0o644)
    RunDirectory(str(tmp_path / "run")).create("x: 1")
    assert "can be used by others" in caplog.text
    with pytest.raises(ConfigError, match="can be used by others"):
        RunDirectory(str(tmp_path / "run")).foreign("config.yaml", b"x: 1")
