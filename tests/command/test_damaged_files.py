"""Damaged files of a run directory: an error that says what is wrong, or the values that are there, at once."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.run_dir import RunDirectory
from tests.command.test_run_config import GOOD
from tests.support.command import run
from tests.support.damage import JUNK, Within, damaged_bytes, damaged_data, damaged_state
from tests.support.schedule import examples
from trainer.command.cli import main
from trainer.command.config_file import read_config
from trainer.command.run_config import load_config
from workers.errors import ConfigError

SNIPPETS = [
    "&a [*a]", "*a", "&a ", "<<: *a\n", "<<: [*a, *a]\n", "? [1]\n: 2\n", "!!int ''", "!!bool x", "!!timestamp x",
    "!!set {a}", "!!omap [a: 1]", "!!binary x", "!!python/none", "!x", "2001-99-99", "1:59:59", "0x" + "f" * 5000,
    "9" * 5000, "1e999", "\\x00", "\t", "'", '"', '"\\ud800"', "[" * 200, "{" * 200, "- " * 200, "|\n", ">\n",
    "%YAML 9.9\n---\n", "---\n", "...\n", "#", ": ", ",", "\u202e", "\x1b", "\ufeff", "=", "~", "[[1,", "{a: b, a: b}",
]  # fmt: skip
"""What a parser of YAML has to cope with."""


def damaged_yaml(rng: random.Random) -> bytes:
    """A configuration with damaged bytes, damaged values, or snippets of odd YAML."""
    kind = rng.choice(["bytes", "values", "snippets"])
    if kind == "values":
        return yaml.dump(damaged_data(GOOD, rng), allow_unicode=True).encode("utf-8", "surrogatepass")
    text = yaml.safe_dump(GOOD, default_flow_style=rng.choice([True, False, None]))
    if kind == "bytes":
        return damaged_bytes(text.encode(), rng)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(text))
        text = (
            text[:place] + rng.choice(SNIPPETS) * rng.choice([1, 1, 1, 3, 1000]) + text[place + rng.choice([0, 0, 5]) :]
        )
    return text.encode()


@pytest.mark.fuzz
def test_a_damaged_configuration_is_refused_or_read(tmp_path: Path):
    path, measured, refused = tmp_path / "config.yaml", Within(), 0
    for seed in range(examples(40, long=500)):
        rng = random.Random(seed)
        path.write_bytes(data := damaged_yaml(rng))
        overrides = [f"env.kwargs.a={rng.choice(SNIPPETS)}"] if rng.random() < 0.2 else []
        told = ""
        with measured.limits(len(data)):
            try:
                load_config(read_config(str(path)), overrides)
            except ConfigError as error:
                told = str(error)
        assert len(told) < 10_000, seed
        refused += bool(told)
    assert refused > 20
    print(f"configurations: {refused} refused, slowest {measured.seconds:.2f} s, {measured.memory / 2**20:.1f} MiB")


@pytest.mark.fuzz
def test_a_damaged_status_is_refused_or_read(tmp_path: Path):
    directory, measured, refused = RunDirectory(str(tmp_path / "run")), Within(), 0
    good = {"state": "failed", "timestep": 7, "more": {"list": [1, 2.5, None]}}
    for seed in range(examples(40, long=500)):
        rng = random.Random(seed)
        text = json.dumps(damaged_data(good, rng) if rng.random() < 0.5 else rng.choice([good, *JUNK]))
        data = text.encode() if rng.random() < 0.5 else damaged_bytes(text.encode(), rng)
        directory.write("status.json", data)
        status: dict[str, Any] = {"state": "failed", "timestep": 0}
        told = ""
        with measured.limits(len(data)):
            try:
                status = directory.status()
            except ConfigError as error:
                told = str(error)
        assert len(told) < 1000, seed
        refused += bool(told)
        assert status["state"] in ("running", "interrupted", "failed", "finished")
        assert status["timestep"] >= 0
    assert refused > 20
    print(f"status: {refused} refused, slowest {measured.seconds:.2f} s, {measured.memory / 2**20:.1f} MiB")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run with statistics."""
    folder = tmp_path_factory.mktemp("trained")
    data: dict[str, Any] = {
        "env": {"factory": "tests.command.test_run_statistics:build", "num_envs": 2},
        "agents": [{"agent": "ppo", "cfg": {"rollouts": 2, "mini_batches": 1}}],
        "trainer": {"timesteps": 4, "headless": True, "disable_progressbar": True},
        "evaluation": {"episodes": 2, "max_timesteps": 20},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(data))
    assert main(["train", str(folder / "c.yaml"), "--set", f"logging.directory={folder / 'run'}"]) == 0
    files = [path for path in (folder / "run").rglob("*") if path.is_file() and "tensorboard" not in path.parts]
    return {str(path.relative_to(folder / "run")): path.read_bytes() for path in files}


@pytest.mark.fuzz
def test_the_evaluation_of_a_damaged_run_ends_with_an_exit_code(
    trained: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    names = ["status.json", "agents/0/state.safetensors", "agents/0/statistics.safetensors"]
    directory = RunDirectory(str(tmp_path / "run"))
    codes = []
    for seed in range(examples(9, long=200)):
        rng = random.Random(seed)
        for name, content in trained.items():
            directory.write(name, content)
        name = names[seed % 3]
        damage = damaged_bytes if name == "status.json" else damaged_state
        directory.write(name, damage(trained[name], rng))
        code, lines, messages = run(capsys, "eval", tmp_path / "run")
        assert code in (0, 2), (seed, messages)
        assert (code == 0) == bool(lines)
        assert "Traceback" not in messages, seed
        codes.append(code)
    assert set(codes) == {0, 2} or len(codes) < 20
