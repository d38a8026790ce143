"""Which names of environments make `make_env` import the module that they name."""

from __future__ import annotations

import importlib
from contextlib import suppress
from types import ModuleType

import pytest

from workers.envs import make_env
from workers.envs.making import imports_module

REGISTERED = ["CartPole-v1", "CartPole", "classic/tictactoe_v3", "classic/tictactoe"]
IMPOSSIBLE = ["CartPole-v99", "CartPole-v0", "not an id", "", "classic/"]
MODULES = [
    "os:CartPole-v1",
    "os",
    "mpe2.simple_spread_v3",
    "Nonsense-v0",
    "nonsense/nonsense_v3",
    "classic/nonsense_v3",
]


@pytest.mark.parametrize("id", [*REGISTERED, *IMPOSSIBLE, *MODULES])
@pytest.mark.filterwarnings("ignore")  # of Gymnasium, about old names
def test_it_is_known_before(id: str, monkeypatch: pytest.MonkeyPatch):
    expected, names = imports_module(id), []
    whole = importlib.import_module

    def recorded(name: str, package: str | None = None) -> ModuleType:
        names.append(name)
        return whole(name, package)

    monkeypatch.setattr(importlib, "import_module", recorded)
    with suppress(Exception):  # most cannot be made
        make_env(id, num_envs=1, framework="torch").close()
    assert (id.partition(":")[0] in names) is expected is (id in MODULES)
