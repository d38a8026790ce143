"""`lockstep report`: pages and pictures of one and several runs, of damaged ones, and of those of strangers."""

from __future__ import annotations

import json
import random
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from orchestrator.metrics import COLUMNS
from tests.support.command import run
from tests.support.damage import damaged_bytes, damaged_data
from tests.support.run_dirs import add_rows, make_run
from tests.support.schedule import examples
from trainer.command.report import _curves, _names, write_report
from trainer.command.report_figures import Figures, _band
from trainer.command.report_page import page
from trainer.command.run_reader import RunReader
from workers.errors import ConfigError

FIGURES = ["returns.png", "throughput.png", "phases.png", "learning.png"]
RECOVERY = {"scopes": [1], "timestep": 15, "cause": "WorkerDied", "message": "it died", "seconds": 1.5, "replayed": 3}


class Page(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f"{data}\n"


def page_of(*folders: Path) -> Page:
    runs = [RunReader(str(folder)) for folder in folders]
    return Page(page(runs, [run.name for run in runs], {}).decode())


def figures_of(*folders: Path) -> dict[str, Any]:
    """The figures, before they are drawn."""
    runs = [RunReader(str(folder)) for folder in folders]
    figures = Figures(runs, [run.name for run in runs])
    return {name: getattr(figures, f"_{name}")() for name in ("returns", "throughput", "phases", "learning")}


def labels(figure: Any) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_a_report_is_a_page_that_needs_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder, output = make_run(tmp_path / "mine"), tmp_path / "out"
    (folder / "recoveries" / "000000000000.json").write_text(json.dumps([RECOVERY]))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    code, lines, messages = run(capsys, "report", folder, "--output", output)
    assert (code, messages) == (0, "")
    assert lines == [str(output / name) for name in [*FIGURES, "report.html"]]
    assert all((output / name).read_bytes().startswith(b"\x89PNG") for name in FIGURES)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    found = Page((output / "report.html").read_text())
    assert sum(tag == "img" for tag, _ in found.tags) == len(FIGURES)
    links = [value for _, attributes in found.tags for name, value in attributes.items() if name in ("src", "href")]
    assert all(str(link).startswith("data:image/png;base64,") for link in links)
    text = re.sub(r"\s+", " ", found.text)
    # of scope i: a return of 100 i + 30 at last, and of 100 i in the evaluation
    for told in ("mine CartPole-v1 finished 30 of 30 2 80 30 to 130", "50 0 to 100", "15 [1] WorkerDied 1.5 3"):
        assert told in text
    assert "agents.*.cfg.learning_rate 0.001" in text
    assert "python 3.11.1" in text


def test_the_best_evaluation_is_that_of_each_agent(tmp_path: Path):
    folder = make_run(tmp_path / "mine")
    with (folder / "metrics.csv").open("a") as file:
        for row in ("10,0,{},50.0", "10,1,{},4.0", "20,0,{},2.0", "20,1,{},70.0"):
            file.write(row.format("Evaluation / Return (mean)") + "\n")
    text = page_of(folder).text
    assert "best evaluation of each agent\n" in text
    assert "\n60\n50 to 70\n" in text  # the mean, and the range


def test_a_band_has_every_agent_where_it_stands(tmp_path: Path):
    folder = make_run(tmp_path / "mine", scopes=3)
    with (folder / "metrics.csv").open("a") as file:
        file.write("40,1,Episode / Return (mean),500.0\n5,2,Episode / Return (mean),0.0\n")
        file.write("20,0,Episode / Return (max),nan\n20,0,Loss / Odd,nan\n")
    reader = RunReader(str(folder))
    band = _band(reader, ["Episode / Return (mean)"])
    assert band is not None
    assert band.timesteps.tolist() == [5, 10, 20, 30, 40]
    nan = np.nan  # before the first value; after the last one it stays
    np.testing.assert_array_equal(
        band.values, [[nan, 10, 20, 30, 30], [nan, 110, 120, 130, 500], [0, 210, 220, 230, 230]]
    )
    assert _band(reader, ["Loss / Odd"]) is None
    team = _band(reader, ["Episode / Return (mean)", "Loss / Policy loss"])
    assert team is not None
    assert team.scopes == [0, 1, 2, 0, 1, 2]


def test_few_agents_have_a_line_each_and_many_have_bands(tmp_path: Path):
    few, many = make_run(tmp_path / "few", scopes=3), make_run(tmp_path / "many", scopes=64)
    (few / "recoveries" / "000000000000.json").write_text(json.dumps([RECOVERY]))
    (few / "status.json").write_text(json.dumps({"state": "failed", "timestep": 30}))
    figures = figures_of(few)
    assert labels(figures["returns"]) == ["scope 0", "scope 1", "scope 2", "mean", "recovery", "failed"]
    lines = {line.get_label(): line for line in figures["returns"].axes[0].lines}
    assert lines["scope 2"].get_ydata().tolist() == [210, 220, 230]
    assert lines["mean"].get_ydata().tolist() == [110, 120, 130]
    assert lines["recovery"].get_xdata().tolist() == [15]
    # three scopes, of 100 i + timestep + 0.25 steps a second
    assert figures["throughput"].axes[0].lines[0].get_ydata().tolist() == [330.75, 360.75, 390.75]
    axes = figures_of(many)["returns"].axes[0]
    assert [line.get_ydata().tolist() for line in axes.lines] == [[3160, 3170, 3180]]
    assert len(axes.collections) == 2  # the range, and the middle half


def test_several_runs_are_compared(tmp_path: Path):
    one, other = make_run(tmp_path / "one"), make_run(tmp_path / "other", scopes=5, config={"seed": 7})
    for folder in (one, other):
        add_rows(folder, 30, 2, {"Evaluation / Return (mean)": 1.0})
    figures = figures_of(one, other)
    assert [axes.get_title().partition(":")[0] for axes in figures["returns"].axes] == [
        "Training return",
        "Evaluation return",
    ]
    for name in ("returns", "throughput", "learning"):
        assert labels(figures[name]) == ["one", "other"]
    found = page_of(one, other)
    text = re.sub(r"\s+", " ", found.text)
    assert "env.num_envs 8 20 seed 0 7" in text
    assert sum(attributes.get("class") == "other" for _, attributes in found.tags) == 2
    assert "agents.*.cfg.learning_rate 0.001" in text


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["a/one", "b/two"], ["one", "two"]),
        (["x/a/run", "x/b/run", "c/other"], ["a", "b", "other"]),
        (["a/run", "a/run", "b/run", "b/run (2)"], ["a", "a (2)", "b", "run (2)"]),
        (["run", "run", "other"], ["run", "run (2)", "other"]),
        (["run", "run/run"], ["run", "run (2)"]),
        ([f"{'a' * 40}{i}{'b' * 40}" for i in range(2)], [label := f"{'a' * 25}...{'b' * 25}", f"{label} (2)"]),
        (["_a\tb", "_a b"], [" _a b", " _a b (2)"]),
    ],
)
def test_every_run_has_a_name_of_its_own(folders: list[str], expected: list[str], tmp_path: Path):
    for folder in sorted({*folders}):
        make_run(tmp_path / folder, timesteps=())
    assert _names([RunReader(str(tmp_path / folder)) for folder in folders]) == expected


def test_the_pictures_of_an_earlier_report_are_removed(tmp_path: Path):
    output = tmp_path / "out"
    output.mkdir()
    for name in [*FIGURES, "mine.png"]:
        (output / name).touch()
    list(write_report([str(make_run(tmp_path / "run", timesteps=()))], str(output)))
    assert sorted(path.name for path in output.iterdir()) == ["mine.png", "report.html"]


def test_the_legend_has_the_runs_of_every_panel(tmp_path: Path):
    one, other = make_run(tmp_path / "one"), make_run(tmp_path / "other", timesteps=())
    add_rows(other, 30, 2, {"Loss / Value loss": 0.0})
    assert labels(figures_of(one, other)["learning"]) == ["one", "other"]


def test_texts_of_strangers_are_harmless(tmp_path: Path):
    attack = "<script>alert(1)</script>\x1b[31m\u202e & $x^{$ \"'"
    env = {"id": attack, "num_envs": 2, "kwargs": {"api_key": "hunter22", "url": "https://a:pass-word@h"}}
    folder = make_run(tmp_path / "<img src=x onerror=alert(2)> $x^{$", config={"env": env, attack: attack})
    (folder / "recoveries" / "000000000000.json").write_text(json.dumps([{**RECOVERY, "message": attack}]))
    secret = "at https://a:pass-word@h, token=s3cr3t-of-mine"
    (folder / "recoveries" / "1.json").write_text(
        json.dumps([{**RECOVERY, "message": secret, "password": "pass-word"}])
    )
    (folder / "recoveries" / "2.json").write_text(secret)
    (folder / "status.json").write_text(json.dumps({"state": secret, "timestep": 30}))
    (folder / "versions.json").write_text(json.dumps({attack: attack, "mine": secret}))
    with (folder / "metrics.csv").open("a") as file:
        file.write(f"{secret}\n")
    (folder / "evaluation.json").write_text(json.dumps([{"weights": attack, "returns": [1.0, "x", None]}]))
    add_rows(folder, 40, 1, {f"Loss / {attack}": 0.0})
    lines = list(write_report([str(folder), str(folder)], str(tmp_path / "out")))
    assert lines[-1].endswith("report.html")
    text = (tmp_path / "out" / "report.html").read_text()
    found = Page(text)
    assert {"script"}.isdisjoint(tag for tag, _ in found.tags)
    assert all(attributes.get("src", "data:").startswith("data:") for _, attributes in found.tags)  # type: ignore[union-attr]
    assert "alert(1)" in found.text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", text)
    for secret in ("hunter22", "pass-word", "s3cr3t"):
        assert secret not in text
    assert "https://a:***@h" in found.text


@pytest.mark.parametrize("name", ["versions.json", "status.json", "metrics.csv", "evaluation.json"])
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"[" * 10**5, b'{"a": [1', b"1"])
def test_a_missing_or_damaged_file_is_told_in_the_page(name: str, content: bytes | None, tmp_path: Path):
    folder = make_run(tmp_path / "mine")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content + b"\n" * (name == "metrics.csv"))
    found = page_of(folder)
    if content is None and name == "evaluation.json":  # the run may not have come so far
        assert "Final evaluation" not in found.text
    else:
        assert "What could not be read" in found.text
        assert name in found.text


@pytest.mark.fuzz
def test_damage_at_random_never_ends_in_a_traceback(tmp_path: Path):
    rng = random.Random(3)
    folder = make_run(tmp_path / "mine")
    (folder / "recoveries" / "000000000000.json").write_text(json.dumps([RECOVERY]))
    names = ["config.yaml", "versions.json", "status.json", "metrics.csv", "evaluation.json"]
    good = {name: (folder / name).read_bytes() for name in [*names, "recoveries/000000000000.json"]}
    for _ in range(examples(10, long=300)):
        name = rng.choice(list(good))
        if rng.random() < 0.5 or name == "metrics.csv":
            data = damaged_bytes(good[name], rng)
        else:
            load, dump = (yaml.safe_load, yaml.safe_dump) if name == "config.yaml" else (json.loads, json.dumps)
            data = dump(damaged_data(load(good[name]), rng)).encode("utf-8", "surrogatepass")
        (folder / name).write_bytes(data)
        try:
            Page(page_of(folder).text)
            figures_of(folder)
        except ConfigError:
            assert name == "config.yaml"
        (folder / name).write_bytes(good[name])


def test_numbers_that_are_nan_count_in_no_summary(tmp_path: Path):
    folder = make_run(tmp_path / "mine", timesteps=[10])
    with (folder / "metrics.csv").open("a") as file:
        for tag in ("Episode / Return (mean)", "Evaluation / Return (mean)", "Rate / Environment steps per second"):
            file.write(f"20,0,{tag},nan\n30,0,{tag},80\n40,0,{tag},inf\n20,1,{tag},nan\n")
    text = re.sub(r"\s+", " ", page_of(folder).text)
    # the rates are 10.25 and 80, and 110.25
    assert "mine CartPole-v1 finished 40 of 30 2 95 80 to 110 80 50 0 to 100 155 0" in text


def test_a_run_without_metrics_has_no_figures(tmp_path: Path):
    folder = make_run(tmp_path / "mine", timesteps=())
    assert (folder / "metrics.csv").read_text() == ",".join(COLUMNS) + "\n"
    assert list(write_report([str(folder)], str(tmp_path / "out"))) == [str(tmp_path / "out" / "report.html")]
    assert "There are no metrics to draw." in page_of(folder).text


def test_long_labels_of_configurations_differ(tmp_path: Path):
    agents = [{"agent": "ppo", "cfg": {"hidden_sizes": [*[64] * 20, i, *[64] * 20]}} for i in (1, 1, 2, 2)]
    reader = RunReader(str(make_run(tmp_path / "run", scopes=4, config={"agents": agents})))
    parts, (one, other) = _curves([reader], ["run"])
    assert one != other
    # a value is 100 scope + timestep
    bands = [_band(part, ["Episode / Return (mean)"]) for part in parts]
    assert [band.values[:, 0].tolist() for band in bands if band] == [[10, 110], [210, 310]]


def test_a_missing_library_and_a_folder_that_cannot_be_written_are_named_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = make_run(tmp_path / "mine", timesteps=())
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"the folder of the report .* cannot be written"):
        list(write_report([str(folder)], str(tmp_path / "file")))
    with pytest.raises(ConfigError, match="is not a run directory"):
        list(write_report([str(folder), str(tmp_path)], str(tmp_path / "out")))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'lockstep-rl\[report\]'"):
        list(write_report([str(folder)], str(tmp_path / "out")))


def test_the_agents_of_a_sweep_are_drawn_by_configuration(tmp_path: Path):
    agents = [{"agent": "ppo", "cfg": {"learning_rate": rate, "rollouts": 8}} for rate in (0.1, 0.1, 0.2, 0.2)]
    reader = RunReader(str(make_run(tmp_path / "run", scopes=4, config={"agents": agents})))
    parts, names = _curves([reader], ["run"])
    assert names == ["learning_rate=0.1", "learning_rate=0.2"]
    # a value is 100 scope + timestep
    bands = [_band(part, ["Episode / Return (mean)"]) for part in parts]
    assert [band.values[:, 0].tolist() for band in bands if band] == [[10, 110], [210, 310]]
    reader.config["agents"] = agents[:1] * 4
    assert _curves([reader], ["run"]) == ([reader], ["run"])
    reader.config["agents"] = [3, agents[0]]
    assert _curves([reader], ["run"]) == ([reader], ["run"])
