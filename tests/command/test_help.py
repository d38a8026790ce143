"""The help of every verb fits a screen, and its example is accepted; `lockstep config` lists every key."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence

import pytest
import yaml

from orchestrator import LocalOrchestrator
from orchestrator.ray import RayOrchestrator
from tests.support.command import run
from trainer.command import verbs
from trainer.command.cli import main
from trainer.command.parser import parsed
from trainer.command.run_config import RunConfig, load_config
from workers.agents.ppo import PPOCfg

NAMES = {"eval" if name == "evaluate" else name for name in verbs.__all__}
ROWS, COLUMNS = 24, 80


def help_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit, match="0"):
        main([*arguments, "--help"])
    return capsys.readouterr().out


def on_a_screen(text: str) -> int:
    """Return the number of rows that a text takes."""
    return sum(-(-max(len(line), 1) // COLUMNS) for line in text.splitlines())


@pytest.fixture(autouse=True)
def screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))


def test_rows_are_counted_with_those_that_a_terminal_wraps():
    assert on_a_screen("a" * 80) == 1
    assert on_a_screen(f"{'a' * 81}\n\nb\n") == 4


def test_every_verb_is_in_the_list(capsys: pytest.CaptureFixture[str]):
    text = help_of(capsys)
    assert all(f"\n    {name} " in text for name in NAMES)
    assert on_a_screen(text) <= ROWS


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_help_of_a_verb_fits_a_screen_and_gives_an_example(name: str, capsys: pytest.CaptureFixture[str]):
    text = help_of(capsys, name)
    assert on_a_screen(text) <= ROWS, text
    assert not any(mark in text for mark in ("`", "Args:", "Yields:", "Raises:")), text
    (example,) = [line for line in text.splitlines() if line.startswith("example: ")]
    program, *arguments = shlex.split(example.removeprefix("example: ").partition(" | ")[0])
    assert program == "lockstep"
    assert arguments[0] == name
    assert parsed(arguments).verb in vars(verbs).values()


def listed(lines: Sequence[str]) -> dict[str, str]:
    """Return the sections of the listing by their titles."""
    sections = ("\n".join(lines)).split("\n\n")
    return {title.removeprefix("# "): body for title, _, body in (section.partition("\n") for section in sections)}


def test_the_listing_shows_every_key_with_its_default_and_meaning(capsys: pytest.CaptureFixture[str]):
    code, lines, _ = run(capsys, "config")
    assert code == 0
    whole, *others = listed(lines).values()
    shown = yaml.safe_load(whole)
    shown["env"]["id"] = "CartPole-v1"
    shown["callbacks"] = []  # one is shown, although there is none
    assert load_config(yaml.safe_dump(shown)) == load_config("env: {id: CartPole-v1}")  # what is shown are the defaults
    assert list(shown) == [field.name for field in dataclasses.fields(RunConfig)]
    kinds = [PPOCfg, LocalOrchestrator, RayOrchestrator]
    for section, kind in zip(others, kinds, strict=True):
        built = kind()
        assert yaml.safe_load(section) == {
            field.name: list(value) if isinstance(value := getattr(built, field.name), tuple) else value
            for field in dataclasses.fields(kind)
        }
    keys = [line for body in [whole, *others] for line in body.splitlines()]
    assert "discount_factor: 0.99  # Discount factor of future rewards, from 0 to 1." in keys
    assert all(" # " in line and not line.endswith("# ") and "`" not in line for line in keys)
