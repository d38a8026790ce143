"""`lockstep submit`: what is checked before, the job, its log and its end, against a stand-in for Ray's dashboard."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.ray import jobs
from tests.support.command import CONFIG, Shown
from tests.support.jobs_api import TOKEN, JobsAPI
from trainer import __version__
from trainer.command import submit
from trainer.command.run_config import load_config

pytestmark = pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")  # by Ray's client

SECRET = "hunter2-of-config"


def parts(entrypoint: str) -> tuple[list[str], list[str]]:
    check, _, train = entrypoint.partition(" && exec ")
    return shlex.split(check), shlex.split(train)


def test_a_job_is_submitted_and_followed(api: JobsAPI, command: Shown):
    api.log += f"password={SECRET} \x1b[31m\nrun directory: s3://bucket/run\n"
    options = ("--address", api.address, "--set", "trainer.timesteps=7", "logging.directory=s3://me:secret@bucket/run")
    code, lines, messages = command.run("submit", "my cart's.yaml", *options)
    assert (code, messages) == (0, "")
    ((name, sent),) = api.submitted.items()
    assert name.startswith("my-cart-s-20")
    assert lines == [
        f"sending {Path.cwd()} ...",
        f"job {name} is submitted",
        "first line",
        "second line",
        r"password=*** \x1b[31m",
        "run directory: s3://bucket/run",
        f"job {name}: succeeded: Job finished successfully.",
        "run directory: s3://bucket/run",
    ]
    check, train = parts(sent["entrypoint"])
    assert check[:3] == ["lockstep", "doctor", "my cart's.yaml"]
    assert check[-3:] == ["--address", "auto", "--no-build"]
    assert train[:6] == ["lockstep", "train", "--resume", "my cart's.yaml", "--trust", "--set"]
    assert train[3:] == check[2:-3]
    overrides = train[6:]
    assert overrides[:2] == ["trainer.timesteps=7", "logging.directory=s3://me:secret@bucket/run"]
    config = load_config(Path("my cart's.yaml").read_text(), overrides)
    assert (config.orchestrator.kind, config.orchestrator.options["address"]) == ("ray", "auto")
    assert config.trainer.disable_progressbar is None
    assert sent["metadata"] == {"lockstep_run_directory": "s3://me:***@bucket/run"}
    variables = sent["runtime_env"]["env_vars"]
    assert (variables["RAY_JOB_STOP_WAIT_TIME_S"], variables["LOCKSTEP_SUBMITTED_BY"]) == ("60", __version__)
    assert len(api.packages) == 1


def test_what_is_sent(api: JobsAPI, project: Path, command: Shown):
    """Folders that are never needed count nothing, and one of the user that is called runs is sent."""
    options = ("submit", "my cart's.yaml", "--address", api.address, "--detach")
    assert command.run(*options)[0] == 0
    (before,) = api.packages.values()
    for name in ("runs", ".git", ".venv-3", "venv", "__pycache__", ".mypy_cache", "inner/__pycache__"):
        (project / name).mkdir(parents=True)
        (project / name / "large").write_bytes(os.urandom(50_000))
    (project / ".gitignore").write_text("/data\n")
    (project / "data").write_bytes(os.urandom(50_000))
    code, _, messages = command.run(*options)
    assert (code, messages) == (0, "")
    assert max(api.packages.values()) < before + 2000
    (project / "inner" / "runs").write_bytes(os.urandom(50_000))
    assert command.run(*options)[0] == 0
    assert max(api.packages.values()) > 50_000


def test_a_large_working_directory_is_told_with_its_largest_folders(
    api: JobsAPI, project: Path, monkeypatch: pytest.MonkeyPatch, command: Shown
):
    api.largest = 10**5
    monkeypatch.setattr(submit, "_LARGE", 10**5)
    (project / "data" / "more").mkdir(parents=True)
    (project / "data" / "more" / "x").write_bytes(os.urandom(3 * 2**20))
    code, lines, messages = command.run("submit", "my cart's.yaml", "--address", api.address)
    assert code == 1
    assert lines == [f"sending {project} ..."]
    assert "status code 413: Maximum request body size" in messages
    assert f"The largest in {project}: data 3 MiB, my cart's.yaml 0 MiB. Name what the job does not need" in messages
    assert api.submitted == {}


def test_jobs_have_only_what_the_user_has_not_set(api: JobsAPI, command: Shown):
    options = ["orchestrator={kind: local}", "trainer.disable_progressbar=true", "logging.directory=/shared/x"]
    code, _, _ = command.run("submit", "my cart's.yaml", "--address", api.address, "--detach", "--set", *options)
    assert code == 0
    ((_, sent),) = api.submitted.items()
    assert parts(sent["entrypoint"])[1][6:] == options


def test_an_address_of_its_own_is_told_and_not_used(api: JobsAPI, command: Shown):
    Path("c.yaml").write_text(
        yaml.safe_dump({**CONFIG, "orchestrator": {"kind": "ray", "options": {"address": "a:1"}}})
    )
    code, _, messages = command.run("submit", "c.yaml", "--address", api.address, "--detach")
    assert code == 0
    assert "orchestrator.options.address is not used" in messages
    ((_, sent),) = api.submitted.items()
    assert "orchestrator.options.address=auto" in parts(sent["entrypoint"])[1]


def test_mistakes_are_told_before_anything_is_sent(
    api: JobsAPI,
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Shown,
    capsys: pytest.CaptureFixture[str],
):
    (tmp_path / "outside.yaml").write_text("env: {id: CartPole-v1}")
    (project / "runs").mkdir()
    (project / "runs" / "c.yaml").write_text("env: {id: CartPole-v1}")
    good, where = "my cart's.yaml", ("--address", api.address)
    mistakes = [
        ((good,), "no cluster is given; expected --cluster cluster.yaml, or the address of the dashboard"),
        ((good, "--address", "head:8265"), "--address is 'head:8265'; expected --cluster cluster.yaml, or"),
        ((good, "--address", "ray://head:10001"), "--address is 'ray://head:10001'; expected"),
        ((good, "--cluster", "none.yaml"), "--cluster is 'none.yaml', which is no file"),
        ((good, *where, "--set", "seed=x"), "seed is 'x'; expected"),
        ((good, *where, "--set", "orchestrator.options.num_cpu=1"), "orchestrator.options.num_cpu: unknown key"),
        (("../outside.yaml", *where), "is not a file in the working directory"),
        ((good, *where, "--working-dir", "runs"), "is not a file in the working directory"),
        ((good, *where, "--working-dir", "nowhere"), "--working-dir is 'nowhere', which is no folder"),
        (("runs/c.yaml", *where), "the config 'runs/c.yaml' is among what is not sent: /runs, .git, "),
        (("none.yaml", *where), "the config 'none.yaml' cannot be read"),
    ]
    for arguments, told in mistakes:
        code, lines, messages = command.run("submit", *arguments)
        assert (code, lines) == (2, []), arguments
        assert told in messages
    monkeypatch.setenv("HOME", str(project / "home"))
    assert "with your home and all that is in it" in command.run("submit", good, *where)[2]
    for arguments in ((), (good, "--follow", "x"), ("--follow", "x", "--stop", "x")):
        with pytest.raises(SystemExit, match="2"):
            command.run("submit", *arguments)
    capsys.readouterr()
    for verb in ("--follow", "--stop"):
        for arguments in (("--set", f"seed={SECRET}"), ("--trust",), ("--working-dir", "."), ("--detach",)):
            with pytest.raises(SystemExit, match="2"):
                command.run("submit", verb, "x", *where, *arguments)
            told = capsys.readouterr().err
            assert f"{arguments[0]} given with {verb}; expected only with CONFIG.yaml" in told
            assert SECRET not in told
    assert api.headers == []


def test_the_configuration_of_a_strangers_run_needs_trust(api: JobsAPI, project: Path, command: Shown):
    (project / "theirs").mkdir()
    (project / "theirs" / "status.json").touch()
    (project / "theirs" / "config.yaml").write_text("env: {factory: 'their.code:build'}")
    options = ("submit", "theirs/config.yaml", "--address", api.address, "--detach")
    code, _, messages = command.run(*options)
    assert code == 2
    assert "env.factory = 'their.code:build'" in messages
    assert command.run(*options, "--trust")[0] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_detaches_and_says_how_to_go_on(number: signal.Signals, api: JobsAPI, command: Shown):
    api.cuts, api.at_end = [80], lambda: os.kill(os.getpid(), number)
    code, lines, messages = command.run("submit", "my cart's.yaml", "--address", api.address)
    ((name, _),) = api.submitted.items()
    assert code == 128 + number
    assert "first line" in lines
    assert lines[-1] != f"job {name}: succeeded: Job finished successfully."
    assert "detached: the job goes on" in messages
    for verb in ("follow", "stop"):
        assert f"to {verb} it: lockstep submit --{verb} {name} --address {api.address}\n" in messages
    assert api.stopped == []
    api.at_end = lambda: None
    code, lines, _ = command.run("submit", "--follow", name, "--address", api.address)
    assert code == 0
    assert lines == ["first line", "second line", f"job {name}: succeeded: Job finished successfully."]


def test_an_ignored_hangup_stays_ignored(api: JobsAPI, command: Shown):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as by nohup
    try:
        api.at_end = lambda: os.kill(os.getpid(), signal.SIGHUP)
        assert command.run("submit", "my cart's.yaml", "--address", api.address)[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_is_submitted_says_how_to_go_on(
    number: signal.Signals, api: JobsAPI, monkeypatch: pytest.MonkeyPatch, command: Shown
):
    submitted = jobs.Jobs.submit

    def interrupted(*arguments: Any, **options: Any) -> None:
        submitted(*arguments, **options)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(jobs.Jobs, "submit", interrupted)
    code, _, messages = command.run("submit", "my cart's.yaml", "--address", api.address)
    ((name, _),) = api.submitted.items()
    assert code == 128 + number
    assert f"job {name} may have been submitted" in messages
    assert f"to stop it: lockstep submit --stop {name} --address {api.address}" in messages


def test_the_working_directory_of_a_check_is_chosen(
    api: JobsAPI, project: Path, monkeypatch: pytest.MonkeyPatch, command: Shown
):
    monkeypatch.setattr(jobs.Jobs, "log", None)  # not read again: there is no run directory
    (project / "inner").mkdir()
    (project / "inner" / "c.yaml").write_text("env: {id: CartPole-v1}")
    code, lines, _ = command.run("doctor", "inner/c.yaml", "--address", api.address, "--working-dir", "inner")
    ((_, sent),) = api.submitted.items()
    assert code == 0
    assert lines[0] == f"sending {project / 'inner'} ..."
    assert parts(sent["entrypoint"])[0][:3] == ["lockstep", "doctor", "c.yaml"]


def test_detach_does_not_wait(api: JobsAPI, command: Shown, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", api.address)
    code, lines, _ = command.run("submit", "my cart's.yaml", "--detach")
    ((name, _),) = api.submitted.items()
    assert code == 0
    assert lines[-2:] == [
        f"to {verb} it: lockstep submit --{verb} {name} --address {api.address}" for verb in ("follow", "stop")
    ]


@pytest.mark.parametrize(("status", "code"), [("FAILED", 1), ("STOPPED", 1), ("SUCCEEDED", 0)])
def test_the_exit_code_is_that_of_the_job(status: str, code: int, api: JobsAPI, command: Shown):
    api.status, api.message = status, "it ended, last available logs (truncated to 20,000 chars):\nsecond line"
    done, lines, _ = command.run("submit", "my cart's.yaml", "--address", api.address)
    assert done == code
    assert lines[-1 - code].endswith(f": {status.lower()}: it ended")
    assert ("to go on with it: submit it again, with --set logging.directory=runs/my-cart-s-20" in lines[-1]) == code


def test_a_command_that_is_not_found_is_told(api: JobsAPI, command: Shown):
    api.status, api.exit_code, api.message = "FAILED", 127, "Job entrypoint command failed with exit code 127"
    code, _, messages = command.run("submit", "my cart's.yaml", "--address", api.address)
    assert code == 1
    assert "`lockstep` must be on the PATH" in messages


def test_no_secret_is_told(api: JobsAPI, command: Shown):
    api.log += f"env says {SECRET}\n"
    options = ("--address", api.address, "--set", f"env.kwargs.token={SECRET}", "logging.directory=runs/x")
    told = []
    for status in ("FAILED", "SUCCEEDED"):
        api.status, api.message = status, f"ended with {SECRET}"
        told += [str(command.run("submit", "my cart's.yaml", *options))]
    assert api.submitted
    assert not any(secret in text for secret in (SECRET, TOKEN) for text in told)
