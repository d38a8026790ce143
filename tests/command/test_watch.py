"""`lockstep watch`: a run elsewhere is followed until it ends, and nothing is written to its directory."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest
import rich.console

from tests.support.command import run
from tests.support.processes import ROOT
from tests.support.run_dirs import TAGS, add_rows, make_run
from trainer.command import run_reader
from trainer.command import watch as watching
from trainer.command.run_reader import RunReader
from trainer.command.watch import view_of, watch
from workers.errors import ConfigError


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_PAUSE", 0.0)
    monkeypatch.setattr(watching, "_PAUSE_AT_URL", 0.0)
    monkeypatch.setattr(watching, "_TELLING", 0.0)


def set_state(folder: Path, state: str, timestep: int = 30, **more: str) -> None:
    (folder / "status.json").write_text(json.dumps({"state": state, "timestep": timestep, **more}))


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_one_line_and_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = make_run(tmp_path / "mine")
    before = files(folder)
    code, lines, messages = run(capsys, "watch", folder)
    assert (code, messages) == (0, "")
    # of scope i at timestep 30: 100 i + 30, and 0.25 more steps a second
    line = "timestep 30 of 30: returns 30 and 130; 160 environment steps/s"
    assert lines == [line, f"{folder} is finished"]
    assert files(folder) == before


def test_a_run_that_grows_is_followed_until_it_ends(tmp_path: Path):
    folder = make_run(tmp_path / "mine", timesteps=[10])
    set_state(folder, "running", 10)
    lines = watch(str(folder))
    assert next(lines).startswith("timestep 10 of 30: returns 10 and 110;")
    with (folder / "metrics.csv").open("a") as file:
        file.write("20,0,Episode / Return (mean),20.0\n20,1,Epi")  # the rest is being written
    assert next(lines).startswith("timestep 20 of 30: returns 20 and 110;")
    with (folder / "metrics.csv").open("a") as file:
        file.write("sode / Return (mean),120.0\n")
    assert next(lines).startswith("timestep 20 of 30: returns 20 and 120;")
    add_rows(folder, 30, 2)
    set_state(folder, "interrupted")
    assert next(lines).startswith("timestep 30 of 30: returns 30 and 130;")
    assert list(lines) == [f"{folder} is interrupted"]


def test_only_what_is_new_is_read_and_a_run_that_was_cut_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = make_run(tmp_path / "mine", timesteps=range(1, 30))
    reader = RunReader(str(folder))
    read: list[int] = []
    original = RunReader._add

    def add(self: RunReader, row: list[str]) -> None:
        read.append(int(row[0]))
        original(self, row)

    monkeypatch.setattr(RunReader, "_add", add)
    reader.read()
    assert read == []
    add_rows(folder, 30, 2)
    reader.read()
    assert set(read) == {30}
    read.clear()
    text = (folder / "metrics.csv").read_text()
    (folder / "metrics.csv").write_text(text[: text.index("\n20,") + 1])  # resumed from timestep 19
    add_rows(folder, 40, 2)
    reader.read()
    assert read == [timestep for timestep in [*range(1, 20), 40] for _ in range(8)]
    assert list(reader.metrics["Loss / Policy loss"][1].timesteps) == [*range(1, 20), 40]


def test_a_killed_run_is_told_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = make_run(tmp_path / "mine")
    set_state(folder, "running")
    (folder / ".lock").touch()
    old = time.time() - 3600
    for name in ("status.json", "metrics.csv"):
        os.utime(folder / name, (old, old))
    with (folder / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert RunReader(str(folder)).is_held
        view = view_of(RunReader(str(folder)))
        assert (view.state, view.fault) == ("running", "nothing was written for 1:00:00")
    assert view_of(RunReader(str(folder))).state == "killed"
    code, lines, _ = run(capsys, "watch", folder)
    assert code == 1
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(old))
    assert lines[-1].startswith(f"{folder} was killed: no process trains there, and nothing was written since {since}")


def test_the_table_is_drawn_in_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TERM", "xterm")
    folder = make_run(tmp_path / "mine", scopes=64)
    (folder / "recoveries" / "000000000000.json").write_text(json.dumps([{"scopes": [3], "timestep": 9, "cause": "X"}]))
    console = rich.console.Console(force_terminal=True, width=80, height=24, color_system=None)
    watching._draw(RunReader(str(folder)), console)
    text = capsys.readouterr().out
    for told in ("CartPole-v1, 64 simultaneous agents", "checkpoint 30", "recoveries 1", "more", "mean", "finished"):
        assert told in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1


def test_ctrl_c_gives_the_terminal_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    folder = make_run(tmp_path / "mine")
    set_state(folder, "running")

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watching.time, "sleep", interrupt)
    code, _, messages = run(capsys, "watch", folder)
    assert (code, messages) == (130, "lockstep: interrupted\n")
    monkeypatch.setenv("TERM", "xterm")
    console = rich.console.Console(force_terminal=True, width=80, height=24)
    with pytest.raises(KeyboardInterrupt):
        watching._draw(RunReader(str(folder)), console)
    text = capsys.readouterr().out
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1


def test_evaluations_are_shown_with_the_best(tmp_path: Path):
    folder = make_run(tmp_path / "mine")
    (folder / "evaluation.json").unlink()
    for timestep in (10, 30, 20):  # results may come late
        add_rows(folder, timestep, 2, {"Evaluation / Return (mean)": -timestep / 2})
    view = view_of(RunReader(str(folder)))
    assert view.evaluation == 30
    assert [scope.best for scope in view.scopes] == [15.0, 115.0]
    assert view.scopes[1].scalars["Evaluation / Return (mean)"] == 110.0


def test_a_run_that_a_callback_stopped_says_why(tmp_path: Path):
    folder = make_run(tmp_path / "mine")
    set_state(folder, "finished", stopped="no better for 5 evaluations")
    assert view_of(RunReader(str(folder))).state == "stopped: no better for 5 evaluations"
    assert list(watch(str(folder)))[-1] == f"{folder} is finished, because no better for 5 evaluations"


def test_a_run_at_a_url_is_followed(tmp_path: Path):
    folder = make_run(tmp_path / "mine", timesteps=[10])
    set_state(folder, "running", 10)
    memory = fsspec.filesystem("memory")
    memory.put(f"{folder}/", "memory://watched/", recursive=True)
    try:
        lines = watch("memory://watched")
        assert next(lines).startswith("timestep 10 of 30: returns 10 and 110;")
        add_rows(folder, 20, 2)
        memory.put(str(folder / "metrics.csv"), "memory://watched/metrics.csv")
        assert next(lines).startswith("timestep 20 of 30: returns 20 and 120;")
        set_state(folder, "failed", 20)
        memory.put(str(folder / "status.json"), "memory://watched/status.json")
        assert next(lines) == "memory://watched is failed"
        with pytest.raises(SystemExit, match="1"):
            next(lines)
    finally:
        memory.rm("memory://watched", recursive=True)


@pytest.mark.parametrize("is_there", [False, True])
def test_a_run_that_is_about_to_begin_is_waited_for(is_there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "mine"
    if is_there:
        folder.mkdir()
    pauses: list[float] = []

    def begin(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            make_run(tmp_path / "made").rename(folder)

    monkeypatch.setattr(watching.time, "sleep", begin)
    lines = list(watch(str(folder)))
    assert lines[0] == f"waiting up to 10 seconds for a run to begin in {folder}"
    assert lines[1].startswith("timestep 30 of 30:")
    assert len(pauses) == 3


def test_what_is_no_run_directory_is_a_named_error_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(watching, "_PATIENCE", 0.01)
    with pytest.raises(ConfigError, match="is not a run directory"):
        list(watch(str(tmp_path)))
    with pytest.raises(ConfigError, match="missing' does not exist"):
        list(watch(str(tmp_path / "missing")))


def test_a_damaged_run_is_shown_as_far_as_it_can_be_read(tmp_path: Path):
    folder = make_run(tmp_path / "mine")
    (folder / "status.json").write_text("{")
    with (folder / "metrics.csv").open("a") as file:
        file.write("40,0,Loss / Policy loss,1.0\nnonsense\n50,0,Loss / Policy loss,1.0\n")
        file.write(f"-1,0,Odd,1.0\n10,99999,Odd,1.0\n{2**70},0,Odd,1.0\n10,0,{'x' * 2**18},1.0\n")
        file.write("60,0,Loss / Policy loss,1.0\n")
    reader = RunReader(str(folder))
    assert (reader.state, reader.timestep) == ("unknown", 60)
    assert list(reader.problems) == ["status.json", "metrics.csv"]
    assert "'nonsense'" in reader.problems["metrics.csv"]  # the first one
    reader.read()
    assert list(reader.metrics["Loss / Policy loss"][0].timesteps) == [10, 20, 30, 40, 50, 60]
    assert list(reader.metrics) == list(TAGS)
    assert "metrics.csv: it is damaged" in view_of(reader).fault


def test_metrics_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = make_run(tmp_path / "mine", timesteps=range(100))
    expected = RunReader(str(folder)).metrics
    monkeypatch.setattr(run_reader, "_BLOCK", 300)
    assert RunReader(str(folder)).metrics == expected
    monkeypatch.setattr(run_reader, "_LARGEST_METRICS", 600)
    reader = RunReader(str(folder))
    assert "it has more than 600 bytes" in reader.problems["metrics.csv"]
    assert 0 < len(reader.metrics["Loss / Policy loss"][0].timesteps) < 20


def test_too_many_series_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_reader, "_MOST_SERIES", len(TAGS))
    reader = RunReader(str(make_run(tmp_path / "mine")))
    assert "more than 4 pairs of a scope and a tag" in reader.problems["metrics.csv"]
    assert [list(series.timesteps) for of_tag in reader.metrics.values() for series in of_tag.values()] == [
        [10, 20, 30]
    ] * len(TAGS)


@pytest.mark.parametrize("status", [None, "{"])
def test_a_killed_run_without_a_status_is_told_as_such(status: str | None, tmp_path: Path):
    folder = make_run(tmp_path / "mine")
    (folder / "metrics.csv").unlink()
    (folder / "status.json").unlink()
    if status is not None:
        (folder / "status.json").write_text(status)
    (folder / ".lock").touch()
    old = time.time() - 3600
    for path in folder.iterdir():
        os.utime(path, (old, old))
    assert view_of(RunReader(str(folder))).state == "killed"
    with pytest.raises(SystemExit, match="1"):
        list(watch(str(folder)))


def test_an_evaluation_that_is_nan_is_not_the_best(tmp_path: Path):
    folder = make_run(tmp_path / "mine")
    (folder / "evaluation.json").unlink()
    for number in ("nan", "7", "1e35"):
        with (folder / "metrics.csv").open("a") as file:
            file.write(f"30,0,Evaluation / Return (mean),{number}\n30,1,Evaluation / Return (mean),nan\n")
    assert [scope.best for scope in view_of(RunReader(str(folder))).scopes] == [7.0, None]


def test_a_local_directory_has_its_whole_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = make_run(tmp_path / "mine")
    monkeypatch.chdir(folder)
    reader = RunReader(".")
    assert (reader.name, reader.url) == ("mine", str(folder))


def test_it_imports_neither_ray_nor_a_framework(tmp_path: Path):
    folder = make_run(tmp_path / "mine")
    code = (
        "import sys; from trainer.command.cli import main; main(sys.argv[1:])\n"
        "print(sorted({'jax', 'ray', 'skrl', 'torch', 'warp', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, "watch", folder], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
