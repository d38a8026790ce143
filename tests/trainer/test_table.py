"""The table of a run: what it shows of one and of many agents, in terminals of every size."""

from __future__ import annotations

import re

import pytest
from rich.console import Console

from trainer.callbacks.table import RunTable
from trainer.callbacks.view import EVALUATED, PHASES, RATE, RETURN, RunView, ScopeView, duration, scalar

SIZES = [(80, 24), (160, 50), (40, 10)]


def view_of(count: int, **changes: object) -> RunView:
    """A run whose scope i has a return of 100 + i, in an order of its own, and i + 1 environment steps a second."""
    scopes = [
        ScopeView(
            index=index,
            scalars={RETURN: 100.0 + index * 7 % count, RATE: index + 1.0, EVALUATED: 50.0 + index}
            | {tag: 0.5 for tag in PHASES.values()}
            | {"Learning / Learning rate": 1e-5},
            best=900.0 + index,
            node=f"host (pid {4000 + index})",
        )
        for index in range(count)
    ]
    known = {"name": "Env", "state": "running", "timestep": 250, "timesteps": 1000, "scopes": scopes}
    return RunView(**{**known, **changes})  # type: ignore[arg-type]


def lines_of(view: RunView, width: int = 160, height: int = 50, encoding: str = "utf-8") -> list[str]:
    console = Console(width=width, height=height, color_system=None)
    options = console.options
    options.encoding = encoding
    found = console.render_lines(RunTable(view), options, pad=False)
    return ["".join(segment.text for segment in line).rstrip() for line in found]


@pytest.mark.parametrize("count", [1, 2, 64])
def test_in_a_low_terminal_the_agents_are_shown(count: int):
    view = view_of(count, fault="x" * 500, recoveries=3, checkpoint=10**9, seconds=1.0, remaining=1.0)
    lines = lines_of(view, 25, 6)[:6]  # the terminal has no more
    head = next(number for number, line in enumerate(lines) if line.startswith("sc"))
    assert lines[head + 1].split()[:2] == (["0", "100"] if count < 64 else ["9", "163"])


def test_an_agent_whose_return_is_nan_is_the_worst_and_does_not_count():
    scopes = [ScopeView(index=i, scalars={RETURN: float("nan") if i == 0 else 100.0 + i}) for i in range(20)]
    rows = [line.split() for line in lines_of(view_of(1, scopes=scopes), 80, 16)]
    assert next(row[0] for row in rows if row and row[0].isdigit()) == "19"
    assert [row for row in rows if row and row[0] in ("0", "min", "mean", "max")] == [
        ["0", "nan"],
        ["min", "101"],
        ["mean", "110"],
        ["max", "119"],
    ]


@pytest.mark.parametrize("count", [1, 2, 64])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_it_fits_every_terminal(count: int, width: int, height: int):
    lines = lines_of(view_of(count, fault="x" * 500, recoveries=3, checkpoint=10**9), width, height)
    assert len(lines) < height or height == 10
    assert max(map(len, lines)) <= width
    assert any("return" in line for line in lines)


def test_every_agent_is_a_row_where_there_is_room():
    lines = lines_of(view_of(2))
    head = next(line for line in lines if "scope" in line)
    titles = "scope return eval best steps/s act ms env ms record ms update ms render ms learning rate node"
    assert " ".join(head.split()) == titles
    first, second = lines[lines.index(head) + 1 :]
    assert " ".join(first.split()) == "0 100 50 900 1 0.5 0.5 0.5 0.5 0.5 1e-05 host (pid 4000)"
    assert " ".join(second.split()) == "1 101 51 901 2 0.5 0.5 0.5 0.5 0.5 1e-05 host (pid 4001)"


def test_of_many_agents_the_best_and_the_worst_are_shown_and_all_are_summed_up():
    rows = [line.split() for line in lines_of(view_of(64), 80, 24)]
    numbers = [[float(cell) for cell in row[:2]] for row in rows if row and row[0].isdigit()]
    returns = [value for _, value in numbers]
    assert [index * 7 % 64 + 100 for index, _ in numbers] == returns
    gap = next(number for number, row in enumerate(rows) if row[:1] == ["..."])
    assert rows[gap][1:] == [str(64 - len(numbers)), "more"]
    half = len(numbers) // 2
    assert returns == [*range(163, 163 - half, -1), *range(100 + len(numbers) - half - 1, 99, -1)]
    summed = {row[0]: float(row[1]) for row in rows if row and row[0] in ("min", "mean", "max")}
    assert summed == {"min": 100.0, "mean": 131.5, "max": 163.0}


def test_the_head_tells_of_the_whole_run():
    view = view_of(2, seconds=3725.0, remaining=59.6, checkpoint=240, evaluation=200, recoveries=2, fault="scope 1\nx")
    text = "\n".join(lines_of(view))
    for told in ("Env, 2 simultaneous agents", "250 of 1,000 timesteps  25%", "elapsed 1:02:05", "left 0:01:00"):
        assert told.replace("  ", " ") in re.sub(" +", " ", text)
    for told in ("steps/s 3", "checkpoint 240", "evaluation 200", "recoveries 2", "scope 1\n"):
        assert told in text


def test_texts_of_others_are_harmless():
    scopes = [ScopeView(index=0, node="a\x1b[31m\nb [red]")]
    text = "\n".join(lines_of(view_of(1, name="https://bob:pw@host\x1b]0;title\x07", scopes=scopes, fault="\x9b2J")))
    assert "\x1b" not in text
    assert "\x9b" not in text
    assert "on a\\x1b[31m b [red]" in text


def test_it_is_drawn_without_unicode():
    "\n".join(lines_of(view_of(64, checkpoint=1), 80, 24, encoding="ascii")).encode("ascii")


def test_nothing_known_is_no_error():
    lines = lines_of(view_of(1, scopes=[ScopeView(index=0)], timestep=0, timesteps=0))
    assert "0 timesteps" in lines[1]
    assert str(view_of(1, scopes=[ScopeView(index=0)])) == (
        "timestep 250 of 1,000: no episode ended; 0 environment steps/s"
    )


def test_a_line_says_the_same():
    assert str(view_of(2)) == "timestep 250 of 1,000: returns 100 and 101; 3 environment steps/s"
    assert str(view_of(64)).endswith("returns 100 to 163 in 64 scopes; 2,080 environment steps/s")


def test_the_scalar_of_a_team_is_the_mean_of_its_agents():
    team = {"Learning / a / Learning rate": 1.0, "Learning / b / Learning rate": 3.0, "Loss / b / Learning rate": 9.0}
    assert scalar(team, "Learning / Learning rate") == 2.0
    assert scalar({}, "Learning / Learning rate") is None
    assert duration(1e300) == "years"
