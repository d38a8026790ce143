"""Nodes that are lost, and the head: on several nodes of this machine, in a process of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.ray import head
from orchestrator.ray.head import HeadWatch
from tests.support.processes import python
from tests.support.schedule import only_long
from workers.errors import ClusterError


@only_long
@pytest.mark.parametrize(("how", "cause"), [("killed", "NodeDied"), ("late", "NodeDied"), ("frozen", "NodeDied")])
def test_the_workers_of_a_lost_node_go_on_elsewhere_with_the_same_numbers(how: str, cause: str):
    done = python("-m", "tests.support.lost_nodes", how)
    assert done.returncode == 0, done.stderr
    assert f"RECOVERED [((1,), '{cause}')]" in done.stdout, done.stdout


@only_long
def test_without_its_head_a_run_ends_while_it_can_be_saved(tmp_path: Path):
    """Ray itself ends the process a minute later, or while the trainer closes."""
    done = python("-m", "tests.support.lost_head", tmp_path / "checkpoint")
    told = re.search(r"ClusterError: Ray's head node at .* has not answered for \d+ s", done.stdout)
    assert told, (done.stdout, done.stderr)
    (timestep,) = re.findall(r"saved after (\d+) timesteps", done.stdout)
    manifest = json.loads((tmp_path / "checkpoint" / "manifest.json").read_text())
    assert manifest["about"]["next_timestep"] == int(timestep) + 1


class Clock:
    """A clock that is set, and the head of which it is the time of the last answer."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_a_head_that_answers_again_is_not_given_up(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    clock = Clock()
    monkeypatch.setattr(head, "monotonic", clock.monotonic)
    monkeypatch.setattr(head.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(head.ray._private.worker, "global_worker", SimpleNamespace())
    watch: Any = HeadWatch()
    clock.now = 1000.0
    watch.check()  # a client of Ray has no head to ask, and a program that was stopped has not asked
    watch._failed_since = 1000.0
    for silence, said in ((7.0, 0), (9.0, 1), (20.0, 1), (24.0, 1)):
        clock.now = 1000.0 + silence
        watch.check()
        assert len(caplog.records) == said
    clock.now = 1026.0
    with pytest.raises(ClusterError, match=r"has not answered for 26 s, .* save\(\) writes a checkpoint now"):
        watch.check()
    watch._failed_since = None
    watch.check()
    watch._failed_since = 1026.0
    watch.close()
    clock.now = 2000.0
    watch.check()  # the trainer is closed
