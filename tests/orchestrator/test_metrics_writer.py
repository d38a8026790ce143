"""Files of a run on disk or at a URL: exact scalars, complete files and clear error messages."""

from __future__ import annotations

import csv
import io
import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from orchestrator.metrics import MetricsWriter
from orchestrator.run_dir import RunDirectory
from tests.support.agents import NullAgent
from workers.errors import AgentError, ConfigError
from workers.frameworks import load_framework

TORCH = load_framework("torch")

FIRST: list[dict[str, float]] = [{"Loss / Policy": 0.1 + 0.2, 'a, "quoted" tag': 1 / 3}, {"Loss / Policy": 2}, {}]
SECOND: list[dict[str, Any]] = [
    {"Loss / Policy": -1e-300},
    {"Loss / Policy": math.inf, "nan": math.nan},
    {"Länge": np.float32(0.1)},
]


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A location that does not exist yet, on disk and at a URL."""
    if request.param == "folder":
        yield str(tmp_path / "runs" / "mine")
        return
    memory = fsspec.filesystem("memory")
    yield "memory://runs-of-a-test/mine"
    if memory.exists("/runs-of-a-test"):
        memory.rm("/runs-of-a-test", recursive=True)


def read(url: str, name: str) -> bytes:
    with fsspec.open(f"{url}/{name}", "rb") as file:
        data: bytes = file.read()
    return data


def names(url: str) -> list[str]:
    """Return the relative paths of all files below `url`."""
    filesystem, path = fsspec.core.url_to_fs(url)
    return sorted(name[len(path) :].lstrip("/") for name in filesystem.find(path))


def rows(url: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(read(url, "metrics.csv").decode(), newline="")))


def expected_rows(*writes: tuple[int, Any]) -> list[dict[str, str]]:
    return [
        {"timestep": str(timestep), "scope": str(scope), "tag": tag, "value": repr(float(value))}
        for timestep, scalars in writes
        for scope, by_tag in enumerate(scalars)
        for tag, value in by_tag.items()
    ]


def events(url: str, scope: int) -> dict[str, list[tuple[int, float]]]:
    """Read a scope's events with TensorBoard itself."""
    reader = EventAccumulator(f"{url}/tensorboard/scope_{scope}", size_guidance={"scalars": 0})
    reader.Reload()
    return {
        # sorted by step: files from the same second are read in order of their names, 10 before 9
        tag: sorted((event.step, float(event.value)) for event in reader.Scalars(tag))
        for tag in reader.Tags()["scalars"]
    }


def expected_events(scope: int, *writes: tuple[int, Any]) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for timestep, scalars in writes:
        for tag, value in scalars[scope].items():
            found.setdefault(tag, []).append((timestep, float(np.float32(value))))
    return found


def writer_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "AsyncWriter" in type(thread).__name__]


def test_everything_is_complete_after_each_write(url: str):
    writes: list[tuple[int, Any]] = []
    with MetricsWriter(url) as metrics:
        assert names(url) == []  # before the first write
        metrics.write(0, [{}, {}, {}])
        assert names(url) == []  # nothing to write
        for timestep, scalars in ((499, FIRST), (999, SECOND)):
            metrics.write(timestep, scalars)
            writes.append((timestep, scalars))
            assert rows(url) == expected_rows(*writes)
            for scope in range(3):
                assert repr(events(url, scope)) == repr(expected_events(scope, *writes))  # repr, so that nan equals nan
        assert len(writer_threads()) == 3
    assert writer_threads() == []
    # full precision
    assert [float(row["value"]) for row in rows(url)][:2] == [0.1 + 0.2, 1 / 3]
    text = read(url, "metrics.csv").decode()
    assert text.startswith("timestep,scope,tag,value\n499,0,Loss / Policy,0.30000000000000004\n")
    assert '499,0,"a, ""quoted"" tag",0.3333333333333333\n' in text
    assert "999,2,Länge,0.10000000149011612\n" in text
    assert "999,1,Loss / Policy,inf\n999,1,nan,nan\n" in text


def test_closing_twice_is_harmless(url: str):
    metrics = MetricsWriter(url)
    metrics.close()
    metrics.write(1, FIRST)
    metrics.close()
    before = {name: read(url, name) for name in names(url)}
    metrics.close()
    assert writer_threads() == []
    assert {name: read(url, name) for name in names(url)} == before
    metrics.write(2, SECOND)  # writing after close() works
    metrics.close()
    assert rows(url) == expected_rows((1, FIRST), (2, SECOND))
    assert repr(sorted(events(url, 1).items())) == repr(sorted(expected_events(1, (1, FIRST), (2, SECOND)).items()))


def test_a_failure_in_the_loop_closes_too(url: str):
    def loop() -> None:
        with MetricsWriter(url) as metrics:
            metrics.write(1, FIRST)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        loop()
    assert writer_threads() == []
    assert rows(url) == expected_rows((1, FIRST))


def test_a_second_writer_goes_on(url: str):
    for timestep, scalars in ((1, FIRST), (2, SECOND)):
        with MetricsWriter(f"{url}/") as metrics:
            metrics.write(timestep, scalars)
    assert read(url, "metrics.csv").decode().count("timestep,scope,tag,value") == 1
    assert rows(url) == expected_rows((1, FIRST), (2, SECOND))
    with pytest.raises(AssertionError):
        assert rows(url) == expected_rows((1, FIRST), (3, SECOND))
    for scope in range(3):
        expected = expected_events(scope, (1, FIRST), (2, SECOND))
        assert repr(sorted(events(url, scope).items())) == repr(sorted(expected.items()))


@pytest.mark.parametrize("timestep", [1, 2])
def test_a_second_run_is_not_mixed_with_the_first(url: str, timestep: int):
    with MetricsWriter(url) as metrics:
        metrics.write(1, FIRST)
        metrics.write(2, SECOND)
    with MetricsWriter(url) as metrics:
        with pytest.raises(ConfigError, match=rf"metrics.csv goes up to timestep 2, .* timestep {timestep}; .*cut\("):
            metrics.write(timestep, FIRST)
        assert rows(url) == expected_rows((1, FIRST), (2, SECOND))
        metrics.cut(timestep - 1)
        metrics.write(timestep, FIRST)
    assert rows(url) == expected_rows(*[(1, FIRST)][: timestep - 1], (timestep, FIRST))


def test_the_home_folder_is_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with MetricsWriter("~/mine") as metrics:
        metrics.write(1, FIRST)
    assert rows(str(tmp_path / "home" / "mine")) == expected_rows((1, FIRST))
    assert events(str(tmp_path / "home" / "mine"), 1) == expected_events(1, (1, FIRST))
    assert list((tmp_path / "here").iterdir()) == []


def test_a_writer_without_a_place_says_so(tmp_path: Path):
    (tmp_path / "file").touch()
    with MetricsWriter(str(tmp_path / "file" / "run")) as metrics, pytest.raises(OSError, match="Not a directory"):
        metrics.write(1, FIRST)
    assert writer_threads() == []


def test_a_run_begins_where_nothing_is(url: str):
    run = RunDirectory(f"{url}/")
    assert run.url == url
    run.check_new()
    assert names(url) == []
    run.create("seed: 3\nname: Länge\n")
    assert run.config() == RunDirectory(url).config() == "seed: 3\nname: Länge\n"
    for change in (run.check_new, lambda: run.create("seed: 4")):
        with pytest.raises(ConfigError, match=r"mine' already exists and is not empty; choose another one"):
            change()
    assert run.config() == "seed: 3\nname: Länge\n"
    assert names(url) == ["config.yaml", "origin.json"]
    run.write("status.json", json.dumps({"state": "running", "timestep": 7, "stopped": ""}))
    assert run.status() == {"state": "running", "timestep": 7, "stopped": ""}
    with run.metrics() as metrics:
        metrics.write(1, FIRST)
    assert rows(url) == expected_rows((1, FIRST))
    assert events(url, 0) == expected_events(0, (1, FIRST))


def test_an_empty_folder_is_taken_and_a_file_is_not(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    RunDirectory(str(tmp_path / "empty")).create("x: 1")
    assert (tmp_path / "empty" / "config.yaml").read_text() == "x: 1"
    with pytest.raises(ConfigError, match="file' already exists"):
        RunDirectory(str(tmp_path / "file")).create("x: 1")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_place_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").touch()
    run = RunDirectory(str(tmp_path / "file" / "run"))
    with pytest.raises(ConfigError, match=r"file/run' cannot be written: .*Not a directory"):
        run.create("x: 1")
    for method in (run.config, run.status):
        with pytest.raises(ConfigError, match="is not a run directory"):
            method()


@pytest.mark.parametrize(
    ("url", "reason"), [("nosuch://bucket/run", "Protocol not known: nosuch"), ("gs://bucket/run", "gcsfs")]
)
def test_a_url_of_an_unknown_kind(url: str, reason: str):
    with pytest.raises(ConfigError, match=f"the run directory '{url}' cannot be opened: .*{reason}"):
        RunDirectory(url)


def test_something_else_is_no_run(url: str):
    run = RunDirectory(url)
    with pytest.raises(ConfigError, match=f"^the run directory '{url}' does not exist$"):
        run.config()
    run.write("other", "")
    for method, name in ((run.config, "config.yaml"), (run.status, "status.json")):
        with pytest.raises(ConfigError, match=f"mine' is not a run directory: it has no readable {name}"):
            method()
    run.write("config.yaml", b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"has no readable config.yaml"):
        run.config()
    for content in (b"", b"{", b"\xff", b"3", b"null", b"[1]", b'"text"'):
        run.write("status.json", content)
        with pytest.raises(ConfigError, match=r"has no readable status.json"):
            run.status()


class HalfWritten:
    """A file whose disk fills up after the first half."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> HalfWritten:
        self.file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.__exit__(*error)

    def write(self, data: bytes) -> int:
        self.file.write(data[: len(data) // 2])
        raise OSError("no space left")


def test_a_write_that_fails_leaves_what_was_there(url: str, monkeypatch: pytest.MonkeyPatch):
    run = RunDirectory(url)
    run.create("old: content")
    run.write_agents([("agent.bin", b"old agent")])
    whole = run._filesystem.open

    def half(path: str, mode: str = "rb", **options: Any) -> Any:
        file = whole(path, mode, **options)
        return HalfWritten(file) if "r" not in mode else file

    with monkeypatch.context() as patch:
        patch.setattr(run._filesystem, "open", half)
        with pytest.raises(OSError, match="no space left"):
            run.write("config.yaml", "new: content, and longer")
        with pytest.raises(OSError, match="no space left"):
            run.write_agents([state_file(10)])
        with pytest.raises(ConfigError, match="cannot be written: no space left"):
            RunDirectory(f"{url}/another").create("x: 1")
    assert run.config() == "old: content"
    agent = OwnFile()
    run.load_agent(agent, 0, TORCH)  # neither a partial state nor its name remains
    assert agent.content == b"old agent"
    run.write("config.yaml", "new: content, and longer")  # also over leftovers of the failure
    assert run.config() == "new: content, and longer"
    assert [name for name in names(url) if name.endswith(".part")] == []


class Stored(NullAgent):
    """An agent that keeps the state it loads."""

    content: Any = None

    def load_state_dict(self, state: Any) -> None:
        self.content = state

    def state_dict(self) -> Any:
        return self.content


class OwnFile(NullAgent):
    """An agent without a state, which keeps the content of the file it loads."""

    content = b""

    def save(self, path: str) -> None:
        Path(path).write_bytes(self.content)

    def load(self, path: str) -> None:
        self.content = Path(path).read_bytes()


def state_file(value: int) -> tuple[str, bytes]:
    from workers.storage.agent_file import dump_agent

    agent = Stored()
    agent.content = {"value": value}
    return dump_agent(agent, TORCH)


def test_agents_by_scope(url: str):
    run = RunDirectory(url)
    run.write_agents([state_file(10), ("agent.bin", b"own")])
    assert names(url) == ["agents/0/state.safetensors", "agents/1/agent.bin", "origin.json"]
    loaded: list[Any] = [Stored(), OwnFile()]
    for scope, agent in enumerate(loaded):
        run.load_agent(agent, scope, TORCH)
    assert [agent.content for agent in loaded] == [{"value": 10}, b"own"]
    with pytest.raises(AgentError, match=r"mine/agents/2 has none of state.safetensors, agent.bin: no agent is stored"):
        run.load_agent(Stored(), 2, TORCH)
    run.write("agents/2/state.safetensors.part", b"half")
    with pytest.raises(AgentError, match="no agent is stored"):
        run.load_agent(Stored(), 2, TORCH)
    run.write("agents/2/state.safetensors", b"damaged")
    with pytest.raises(AgentError, match="damaged"):
        run.load_agent(Stored(), 2, TORCH)


def test_the_newest_agent_is_loaded_whatever_its_kind(url: str):
    run = RunDirectory(url)
    for file, expected in (
        (state_file(1), {"value": 1}),
        (("agent.bin", b"second"), b"second"),
        (state_file(3), {"value": 3}),
        (state_file(4), {"value": 4}),
    ):
        run.write_agents([file])
        agent: Any = OwnFile() if file[0] == "agent.bin" else Stored()
        run.load_agent(agent, 0, TORCH)
        assert agent.content == expected
        assert [name for name in names(url) if name != "origin.json"] == [f"agents/0/{file[0]}"]


def test_an_empty_file_of_a_write_that_failed_gets_its_header(tmp_path: Path):
    for content in (b"", b"timestep,sco"):
        folder = tmp_path / str(len(content))
        folder.mkdir()
        (folder / "metrics.csv").write_bytes(content)
        with MetricsWriter(str(folder)) as metrics:
            metrics.cut(5)
            assert not (folder / "metrics.csv").exists()
            (folder / "metrics.csv").touch()
            metrics.write(5, SECOND)
            metrics.write(7, FIRST)
            metrics.cut(5)
        assert rows(str(folder)) == expected_rows((5, SECOND))
