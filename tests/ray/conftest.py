"""A worker without Ray behind a connection that can be cut, for tests of what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.ray import outage
from orchestrator.ray.connection import Link
from tests.support.links import RelayedWorker


@pytest.fixture
def unknown_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray has not noticed any death."""
    monkeypatch.setattr(outage.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(outage, "death_of", lambda _: None)
    monkeypatch.setattr(outage, "_PAUSE", 0)


@pytest.fixture
def worker() -> Iterator[RelayedWorker]:
    one = RelayedWorker()
    yield one
    one.close()


@pytest.fixture
def link(worker: RelayedWorker) -> Iterator[Link]:
    one = worker.link()
    yield one
    one.close()
