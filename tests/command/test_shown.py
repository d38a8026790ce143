"""What the command shows: no secrets of a configuration, and nothing that a terminal obeys."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.command import run
from tests.support.envs import NoisyEnv
from trainer._console import _Console, conceal, shown
from trainer._redaction import escaped, hide, redacted, secrets_in
from trainer.command.cli import main
from trainer.command.doctor import Finding
from trainer.command.run import prepare
from trainer.command.run_config import load_config
from workers.errors import ConfigError

SECRET = "hunter'2\"\n\\x Ü"
KWARGS: dict[str, Any] = {
    "password": SECRET,
    "nested": [{"Api-Key": "key-of-the-api"}, {"auth": {"user": "user-within-auth", "pins": [12345678]}}],
    "url": "https://bob:pass/w@rd-of-url@host/path?access_token=token-of-query&size=3",
    "header": "Authorization: Bearer token-of-header",
    "dsn": "host=h password=password-of-dsn dbname=d",
    "aws_secret_access_key": "secret-of-aws",
    "key": "just-a-key",
    "size": 7,
}
SECRETS = ["hunter", "key-of-the-api", "user-within-auth", "12345678", "pass/w", "rd-of-url", "token-of-query",
           "token-of-header", "password-of-dsn", "secret-of-aws", "just-a-key"]  # fmt: skip


@pytest.fixture(autouse=True)
def _conceal_nothing() -> Iterator[None]:
    yield
    conceal(())


def console() -> logging.Handler:
    """The handler of the log on the console, which is not installed if another one was there first."""
    return _Console()


def leaks(text: str) -> list[str]:
    return [one for one in SECRETS if one in text]


def test_secrets_are_found_by_their_keys_and_by_what_is_before_them():
    text = str(redacted(KWARGS))
    assert leaks(text) == []
    assert "'size': 7" in text
    assert "https://bob:***@host/path" in text
    assert "host=h password=*** dbname=d" in text
    for told in (str(KWARGS), json.dumps(KWARGS), repr(SECRET), ascii(SECRET), f"<{SECRET}>"):
        assert leaks(hide(told, secrets_in(KWARGS))) == []
    assert redacted("https://bob:pw@host") == "https://bob:***@host"
    assert redacted({"token": None, "passwords": [True, 3, "a"]}) == {"token": None, "passwords": [True, "***", "***"]}


def test_what_is_no_secret_is_shown():
    harmless = {
        "id": "CartPole-v1",
        "render_mode": "rgb_array",
        "gravity": 9.8,
        "monkey": "george",
        "keys": 3,
        "a": [None],
    }
    assert redacted(harmless) == harmless
    assert list(secrets_in(harmless)) == []
    # short ones are in many texts by chance
    assert list(secrets_in({"max_tokens": 100, "token": "a", "auth": True})) == []
    assert hide("authors left the leftmost left", ["left"]) == "authors *** the leftmost ***"


@pytest.mark.parametrize(
    "text", ["token" * 50_000, "://:a" * 50_000, "bearer " * 40_000, "token=" * 40_000, "://" * 80_000]
)
def test_the_time_to_look_for_secrets_grows_with_the_text_only(text: str):
    start = time.perf_counter()
    hide(text[:1000], secrets_in([text]))
    assert time.perf_counter() - start < 10  # 0.1 s


class Telling(NoisyEnv):
    """Environment whose errors tell all that it knows."""

    def __init__(self, kwargs: dict[str, Any], late: bool) -> None:
        super().__init__(discrete=True)
        self.kwargs = kwargs
        if not late:
            raise RuntimeError(f"cannot connect with {kwargs} or {kwargs['password']}")

    def step(self, action: Any) -> Any:
        raise RuntimeError(f"lost {self.kwargs['password']}, {self.kwargs}")

    def close(self) -> None:
        raise RuntimeError(f"cannot close with {self.kwargs}")


def build(num_envs: int, first_env: int, late: bool = False, **kwargs: Any) -> list[Telling]:
    return [Telling(kwargs, late) for _ in range(num_envs)]


def telling(**changes: Any) -> dict[str, Any]:
    env = {"factory": f"{__name__}:build", "num_envs": 2, "kwargs": KWARGS | changes}
    trainer = {"timesteps": 2, "headless": True, "disable_progressbar": True}
    return {"env": env, "trainer": trainer, "evaluation": {"episodes": 0}}


def test_an_error_of_building_tells_no_secret():
    for data in (telling(), {**telling(), "env": {"id": "CartPole-v1", "kwargs": KWARGS}}):
        with pytest.raises(
            ConfigError, match=r"cannot be built with env.kwargs \{'aws_secret_access_key': '\*\*\*'"
        ) as caught:
            prepare(load_config(yaml.safe_dump(data)))
        assert leaks(str(caught.value)) == []


@pytest.mark.parametrize("late", [False, True])
def test_the_command_tells_no_secret(
    late: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("trainer.command.doctor._ray", lambda config: Finding("ray", "not started"))
    path, folder = tmp_path / "c.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(telling(late=late)))
    secret = "secret-of-override"
    overrides = [f"logging.directory={folder}", f"env.kwargs.token={secret}"]
    for verb in ("train", "doctor") if late else ("train",):
        code, lines, messages = run(capsys, verb, path, "--set", *overrides)
        assert code in (1, 2)
        logged = [console().format(record) for record in caplog.records]  # pytest shows them, so the console does not
        told = "\n".join([*lines, messages, *logged])
        assert "RuntimeError: " in told
        assert leaks(told) == []
        assert secret not in told
    if late:
        assert "could not be closed: " in "".join(logged)
        assert "lost ***" in told
        assert SECRET in load_config((folder / "config.yaml").read_text()).env.kwargs["password"]


@pytest.mark.parametrize(
    "override",
    [
        "seed={token: hunter2}",
        "seed=!!int hunter2",
        "env.kwargs.token={hunter2",
        "env.kwargs.a.b.password=hunter2",
        "agents.9.token=hunter2",
    ],
)
def test_an_override_is_told_without_its_secret(override: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"env": {"id": "CartPole-v1", "kwargs": {"a": 1}}}))
    code, lines, messages = run(capsys, "train", path, "--set", override)
    assert (code, lines) == (2, [])
    assert "hunter2" not in messages


def test_the_url_of_a_run_directory_is_told_without_its_password(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"env": {"id": "CartPole-v1", "num_envs": 1}, "evaluation": {"episodes": 0}}))
    url = f"memory://bob:hunter2-of-url@host/{tmp_path.name}"
    code, lines, messages = run(capsys, "train", path, "--set", "trainer.timesteps=1", f"logging.directory={url}")
    assert code == 0
    assert f"run directory: memory://bob:***@host/{tmp_path.name}" in lines
    assert "hunter2" not in "\n".join([*lines, messages])


CONTROLS = [
    chr(code)
    for code in (*range(0x20), *range(0x7F, 0xA0), 0x061C, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xDCFF)
]
CONTROLS = [one for one in CONTROLS if one not in "\n\t"]


def test_what_a_terminal_obeys_is_escaped():
    text = escaped("".join(CONTROLS) + "plain\tä 漢\n")
    assert text.startswith(r"\x00\x01")
    assert r"\x1b" in text
    assert r"\u202e" in text
    assert not set(text) & set(CONTROLS)
    assert text.endswith("plain\tä 漢\n")
    text.encode()  # a lone surrogate, as of a file name, cannot be printed


def test_the_command_and_the_log_show_no_escapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    red = "\x1b[31mred\x9b0m\u202e"
    path = tmp_path / "c.yaml"
    path.write_text(f'"{red}x": 1'.replace("\x1b", "\\e").replace("\x9b", "\\x9b"))
    told = []
    for arguments in (
        ["train", str(path)],
        ["eval", f"{red}://x"],
        ["train", f"/no/{red}"],
        ["train", str(path), "--set", f"{red}=1"],
    ):
        code, lines, messages = run(capsys, *arguments)
        assert code == 2
        told += [*lines, messages]
    with pytest.raises(SystemExit):
        main(["train", "a", f"--{red}"])
    told.append(capsys.readouterr().err)
    assert "unrecognized arguments" in told[-1]
    try:
        raise ValueError(red)
    except ValueError:
        record = logging.makeLogRecord({"msg": "%s", "args": (red,), "exc_info": sys.exc_info()})
    told.append(console().format(record))
    text = "".join(told)
    assert not set(text) & set(CONTROLS), text
    assert text.count(r"\x1b[31mred") >= 6


def test_concealed_texts_are_shown_as_stars():
    conceal(["hunter2", "x\ny"])
    assert shown("a hunter2 \x1b 'x\\ny'") == r"a *** \x1b '***'"
    conceal(())
    assert shown("a hunter2") == "a hunter2"
