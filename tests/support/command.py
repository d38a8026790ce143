"""The `lockstep` command, run in this process."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.command.cli import main

CONFIG: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "num_envs": 6},
    "agents": [
        {"agent": "ppo", "scope": 2, "cfg": {"rollouts": 16, "learning_rate": 1e-3}},
        {"agent": "examples.skrl_ppo:make_agent", "scope": 4, "cfg": {"rollouts": 16}},
    ],
    "trainer": {"timesteps": 120, "headless": True, "disable_progressbar": True},
    "logging": {"interval": 20},
    "evaluation": {"episodes": 5},
}
RAY = ("orchestrator.kind=ray",)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str], str]:
    """Run the command, and return its exit code, the lines of its output, and its messages."""
    code = main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return code, shown.out.splitlines(), shown.err


class Shown:
    """What the command has told: pytest takes the messages of the log away from the console."""

    def __init__(self, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
        self._capsys, self._caplog = capsys, caplog

    def run(self, *arguments: object) -> tuple[int, list[str], str]:
        """Run the command, and return its exit code, the lines of its output, and its messages."""
        self._caplog.clear()
        code, lines, messages = run(self._capsys, *arguments)
        logged = [record.getMessage() for record in self._caplog.records if record.name == "lockstep"]
        return code, lines, "\n".join([*logged, messages])
