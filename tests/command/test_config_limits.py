"""Configurations that would take all time or memory, or make a parser fail: an error that says where, at once."""

from __future__ import annotations

import os
import time
import tracemalloc
from pathlib import Path

import pytest
import yaml

from orchestrator.files import LARGEST_TEXT
from tests.command.test_run_config import GOOD
from tests.support.command import run
from trainer.command.run_config import RunConfig, dump_config, load_config, parse
from workers.errors import ConfigError


def bomb(levels: int, indent: str = "") -> str:
    """YAML of a few hundred characters that stands for 9 ** levels values."""
    lines = [f"a0: &a0 [{', '.join('x' * 9)}]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "".join(f"{indent}{line}\n" for line in lines)


TOO_MANY = "there are more than 20000 keys and values, counting what aliases stand for"
TOO_DEEP = "values are nested deeper than 50 levels"
TOO_LONG = "the number is too long"
TEXTS = {
    # sizes
    "aliases": (bomb(9), rf"line 5, column \d+: {TOO_MANY}"),
    "aliases in env.kwargs": (f"env:\n  id: a\n  kwargs:\n{bomb(9, '    ')}", TOO_MANY),
    "aliases of a long text": (f"a: &a {'x' * 2**17}\nb: [{'*a, ' * 12}]", TOO_MANY),
    "merged mappings": (
        "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 9)),
        TOO_MANY,
    ),
    "values": (f"env: [{'a,' * 20_001}]", TOO_MANY),
    "anchors": ("\n".join(f"k{i}: &a{i} x" for i in range(LARGEST_TEXT // 20)), TOO_MANY),
    "text": (
        "#" * (LARGEST_TEXT + 1),
        f"the config has {LARGEST_TEXT + 1} characters; expected at most {LARGEST_TEXT}",
    ),
    "open lists": ("env: " + "[" * (LARGEST_TEXT - 5), TOO_DEEP),
    "nested lists": (f"env: {'[' * 60}{']' * 60}", TOO_DEEP),
    "nested mappings": ("".join(f"{' ' * i}a:\n" for i in range(600)), TOO_DEEP),
    "dashes": ("- " * (LARGEST_TEXT // 2), TOO_DEEP),
    "digits": ("seed: " + "9" * 5000, f"line 1, column 7: {TOO_LONG}"),
    "hexadecimal digits": ("seed: 0x" + "f" * (LARGEST_TEXT - 8), TOO_LONG),
    "base 60": ("seed: !!int 1" + ":59" * (LARGEST_TEXT // 3 - 6), TOO_LONG),
    "base 60 with a fraction": ("seed: !!float 1" + ":59" * (LARGEST_TEXT // 3 - 7) + ".5", TOO_LONG),
    # loops
    "an anchor in itself": ("&a [*a]", "line 1, column 5: an anchor contains itself"),
    "a merged mapping in itself": ("a: &a {<<: *a}", "an anchor contains itself"),
    # values that do not fit their tags
    "!!int": ("seed: !!int ''", "line 1, column 7: the value is not of type int"),
    "!!int of letters": ("seed: !!int password", "line 1, column 7: the value is not of type int"),
    "!!int of _": ("seed: !!int _", "the value is not of type int"),
    "!!float": ("seed: !!float many", "the value is not of type float"),
    "!!bool": ("seed: !!bool perhaps", "the value is not of type bool"),
    "!!timestamp": ("seed: !!timestamp now", "the value is not of type timestamp"),
    "date": ("seed: 2001-99-99", "the value is not of type timestamp"),
    "time zone": ("seed: 2001-01-01 00:00:00 +99:99", "the value is not of type timestamp"),
    "!!binary": ("seed: !!binary ä", "failed to convert base64 data"),
    "!!map": ("!!map text", "expected a mapping node"),
    "!!python": ("env: !!python/object:os.system {}", "could not determine a constructor for the tag"),
    "renamed tag": ("%TAG ! tag:yaml.org,2002:python/\n---\n!name:os.system a", "could not determine a constructor"),
    # keys
    "list as a key": ("? [1]\n: 2", "found unhashable key"),
    "merge of a number": ("<<: 3", "expected a mapping or list of mappings for merging"),
    "duplicate keys": ("".join(f"k{i}: 1\n" for i in range(4000)) + "k7: 1", "line 4001, column 1: duplicate key 'k7'"),
    "duplicate key of a merged mapping": ("a: [{<<: &b {k: 1, k: 2}}]", "duplicate key 'k'"),
    # characters
    "NUL": ("env: \0", "unacceptable character #x0000"),
    "escape": ("env: \x1b[31m", "unacceptable character #x001b"),
    "surrogate": ('env: "\\ud800"', "contains a character that is not Unicode"),
    "surrogate as a key": ('"\\ud800": 1', "contains a character that is not Unicode"),
    "documents": ("---\n" * 1000, "but found another document"),
    "unknown alias": ("*" + "a" * 10_000, "found undefined alias"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_beyond_the_limits_is_told_in_one_line(name: str):
    text, message = TEXTS[name]
    start = time.perf_counter()
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(text)
    assert time.perf_counter() - start < 10  # 0.2 s on a machine that does nothing else
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert "password" not in str(caught.value)


def test_the_memory_of_a_bomb_is_small():
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match=TOO_MANY):
            load_config(bomb(20))
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_merged_mappings_may_be_overridden():
    text = "env: {id: CartPole-v1, kwargs: {<<: &b {<<: &a {x: 1, y: 2}, y: 3}, z: *b}}"
    assert load_config(text).env.kwargs == {"x": 1, "y": 3, "z": {"x": 1, "y": 3}}


def test_a_thousand_errors_are_told_as_twenty():
    with pytest.raises(ConfigError) as caught:
        load_config("env: {id: a}\n" + "".join(f"k{i}: 1\n" for i in range(1000)))
    message = str(caught.value).splitlines()
    assert len(message) == 21
    assert message[0].startswith("k0: unknown key; ")
    assert message[-1] == "... and 980 more errors"


@pytest.mark.parametrize("key", ["\x1b]0;title\x07", "\u202egnp", "a\nlockstep: all is well", "x" * 10_000])
def test_a_key_cannot_imitate_other_lines(key: str):
    with pytest.raises(ConfigError) as caught:
        parse(RunConfig, {"env": {"id": "a"}, key: 1})
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"'{ascii(key)[1:10]}")
    assert len(line) < 250
    assert line.isprintable()


@pytest.mark.parametrize(
    "override", ["env.id=", "env.factory=", "logging.directory=", "agents.0.agent=", "env.kwargs.", "agents.0.cfg."]
)
def test_a_value_cannot_imitate_other_lines(override: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A line that the command prints begins with its name, so a line break in a value could add a false one."""
    config = tmp_path / "c.yaml"
    data = {**GOOD, "agents": [{"agent": "examples.custom_agent:Greedy", "scope": 4}]}
    config.write_text(yaml.safe_dump(data))
    value = '"x\\nlockstep: fine"' if override.endswith("=") else "fine=1"
    code, lines, messages = run(
        capsys, "train", config, "--set", f"logging.directory={tmp_path / 'run'}", f"{override}{value}"
    )
    assert (code, lines) == (2, [])
    assert "\nlockstep: fine" not in messages


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "env.kwargs.a=" + "[" * 20_000,
            f"--set 'env.kwargs.a': the value is not valid YAML: line 1, column 51: {TOO_DEEP}",
        ),
        ("env.kwargs.a=&a [*a]", "an anchor contains itself"),
        (f"env.kwargs.a={{{bomb(9).replace(chr(10), ',')}}}", TOO_MANY),
        ("seed=" + "9" * 5000, TOO_LONG),
        ("seed=!!int ''", "the value is not of type int"),
        ("seed=2001-99-99", "the value is not of type timestamp"),
        ("env.kwargs.a={? [1] : 2}", "found unhashable key"),
        (f"env.kwargs{'.a' * 3000}=1", "the key has 3002 parts; expected at most 50"),
        (f"agents.{'9' * 5000}.scope=1", "the key contains '999"),
        ("agents.²=1", "the key contains '²'; expected an index below 2"),
        ("env.kwargs.token.x={hunter2", "--set 'env.kwargs.token.x': the value is not valid YAML: line 1, column 9"),
    ],
    ids=lambda text: text[:30],
)
def test_an_override_beyond_the_limits(override: str, message: str):
    with pytest.raises(ConfigError) as caught:
        load_config(yaml.safe_dump(GOOD), [override])
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400
    assert "hunter2" not in str(caught.value)


def test_what_is_stored_can_be_read_again(monkeypatch: pytest.MonkeyPatch):
    config = load_config(f"env: {{id: CartPole-v1, kwargs: {{a: [{'1,' * 300}]}}}}")
    assert load_config(dump_config(config)) == config
    monkeypatch.setattr("trainer.command.config_file._MOST_VALUES", 500)
    many = load_config(f"env: {{id: CartPole-v1, num_envs: 100}}\nagents: [{'{},' * 100}]")
    with pytest.raises(
        ConfigError, match=r"the config with all defaults is not valid YAML: .* more than 500 keys and v"
    ):
        dump_config(many)


def test_the_command_takes_a_configuration_from_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, folder = tmp_path / "pipe", tmp_path / "run"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # so that the writer need not wait for the command
    try:
        path.write_text("{env: {id: CartPole-v1, num_envs: 2}, trainer: {timesteps: 0, headless: true}}")
        settings = [f"logging.directory={folder}", "evaluation.episodes=0"]
        code, lines, _ = run(capsys, "train", f"/dev/fd/{reader}", "--set", *settings)
    finally:
        os.close(reader)
    assert code == 0
    assert f"run directory: {folder}" in lines


@pytest.mark.parametrize("verb", ["train", "eval", "doctor"])
def test_a_pipe_that_nobody_writes_to(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("trainer.command.doctor.examine", lambda config, build: iter(()))
    folder = tmp_path / "run"
    folder.mkdir()
    path = folder / "config.yaml"
    os.mkfifo(path)
    code, lines, messages = run(capsys, verb, folder if verb == "eval" else path)
    assert code == (1 if verb == "doctor" else 2)
    told = lines[0] if verb == "doctor" else messages
    assert ("is a pipe; expected a file" if verb == "eval" else "nobody writes to the pipe") in told
