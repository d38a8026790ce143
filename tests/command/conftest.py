"""A configuration for the tests of all verbs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.support.command import CONFIG
from tests.support.processes import ROOT


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    monkeypatch.chdir(ROOT)
    return path
