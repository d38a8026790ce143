"""How a run ends when an agent diverges or an environment cannot be closed: nothing good is lost, and it is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from orchestrator.run_dir import RunDirectory
from tests.command.test_cli import Counting, scalars
from tests.support.command import RAY, run
from tests.support.envs import CountingEnv
from tests.support.schedule import full_or_short
from workers.errors import DivergedError
from workers.frameworks import load_framework
from workers.storage.state_file import encode_state, nonfinite_values

NUMPY = load_framework("numpy")


def state(**changes: Any) -> tuple[str, bytes]:
    value = {"net": {"weight": np.ones((2, 2), np.float32), "step": 3}, "mask": np.array([0.0, -np.inf]), "rate": 0.5}
    return "state.safetensors", encode_state(value | changes, NUMPY)


def test_what_is_not_finite_is_found_by_name():
    assert nonfinite_values(state()[1]) == {"mask": "infinity"}
    bad = {"net": {"weight": np.array([1.0, np.nan, np.inf], np.float16)}, "rate": float("nan"), "b": [0, np.inf]}
    assert nonfinite_values(encode_state(bad, NUMPY)) == {"net/weight": "NaN", "rate": "NaN", "b/1": "infinity"}
    whole = {"i": np.array([2**31]), "flag": np.array(True), "name": "nan", "none": None, "empty": np.zeros(0)}
    assert nonfinite_values(encode_state(whole, NUMPY)) == {}
    assert nonfinite_values(encode_state(np.array(np.complex64(complex(0, np.nan))), NUMPY)) == {"state": "NaN"}


@pytest.fixture(params=["disk", "object store"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "disk":
        yield str(tmp_path / "run")
        return
    yield "memory://lockstep-endings"
    fsspec.filesystem("memory").rm("/lockstep-endings", recursive=True)


def stored(url: str, scopes: int = 2) -> list[str]:
    return [RunDirectory(url).digest(scope) for scope in range(scopes)]


def test_nan_never_replaces_what_is_good_in_any_scope(url: str):
    directory = RunDirectory(url)
    good, better, nan = state(), state(rate=0.25), state(net=np.array(np.nan))
    directory.write_agents([good, good])
    directory.write("status.json", json.dumps({"state": "running", "timestep": 40}))
    before = stored(url)
    for bad in (nan, state(rate=float("inf")), state(mask=np.array([np.nan, -np.inf]))):
        for files in ([better, bad], [bad, better], [bad, bad]):
            with pytest.raises(DivergedError):
                RunDirectory(url).write_agents(files)
            assert stored(url) == before
    with pytest.raises(DivergedError) as caught:
        directory.write_agents([better, nan])
    assert str(caught.value) == (
        f"the agent of scope 1 holds NaN in net; {url}/agents/1/state.safetensors is the last good file, from "
        "timestep 40"
    )
    with pytest.raises(DivergedError, match="NaN in net/4, 3 more; "):
        directory.write_agents([better, state(net=[float("nan")] * 8)])
    directory.write_agents([better, better])
    assert stored(url) != before


def test_where_nothing_good_is_lost_everything_is_written(url: str):
    directory = RunDirectory(url)
    files = [state(net=np.array(np.nan)), ("agent.bin", b"of unknown content")]
    for rate in (1.0, 2.0, float("nan")):
        files[0] = state(net=np.array(np.nan), rate=rate)
        directory.write_agents(files)
        written = stored(url)
    directory.write_agents([state(), ("agent.bin", b"nan")])
    assert stored(url) != written
    directory.write("agents/0/state.safetensors", b"damaged")
    directory.write_agents(files)
    assert stored(url) == written


class Diverging(Counting):
    """Agent with NaN from its 50th timestep on, in scopes other than the first."""

    def __init__(self, scope: Any) -> None:
        self.index = scope.index

    def state_dict(self) -> dict[str, Any]:
        diverged = self.index and self.count >= 50
        return {"count": self.count, "net": {"weight": np.array([1.0, np.nan if diverged else 2.0])}}


DIVERGING = f"agents=[{', '.join(2 * [f'{{agent: {__name__}:Diverging, scope: 3}}'])}]"


WRITES = [((), 20), ((), 120), (RAY, 20), (RAY, 120)]


@pytest.mark.parametrize(("overrides", "interval"), full_or_short(WRITES, WRITES[:2]))
def test_a_run_that_diverges_fails_and_keeps_the_last_good_agents(
    overrides: tuple[str, ...],
    interval: int,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
):
    if overrides:
        request.getfixturevalue("ray_cluster")
    folder = tmp_path / "run"
    options = [f"logging.directory={folder}", f"logging.interval={interval}", DIVERGING]
    code, _, message = run(capsys, "train", config, "--set", *options, *overrides)
    good, bad = (40, 60) if interval == 20 else (0, 120)
    assert code == 1
    told = f"the agent of scope 1 holds NaN in net/weight; {folder}/agents/1/state.safetensors is the last good file"
    assert message.count(told) == 1
    assert f"from timestep {good}" in message
    assert json.loads((folder / "status.json").read_text()) == {"state": "failed", "timestep": good}
    for scope in range(2):
        agent = Counting()
        RunDirectory(str(folder)).load_agent(agent, scope, load_framework("torch"))
        assert agent.count == good
    assert {timestep for timestep, _, _ in scalars(folder)} == {str(i) for i in range(interval, bad + 1, interval)}
    assert not (folder / "evaluation.json").exists()


class OpenEnv(CountingEnv):
    """Environment that cannot be closed."""

    def close(self) -> None:
        raise RuntimeError(f"row {self.row} stays open")


def build_open(num_envs: int, first_env: int) -> list[OpenEnv]:
    return [OpenEnv(first_env + i) for i in range(num_envs)]


@pytest.mark.parametrize("overrides", [(), RAY], ids=["local", "ray"])
def test_environments_that_cannot_be_closed_cost_no_result(
    overrides: tuple[str, ...],
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
):
    if overrides:
        request.getfixturevalue("ray_cluster")
    folder = tmp_path / "run"
    env = f"env={{factory: '{__name__}:build_open', num_envs: 6}}"
    agents = f"agents=[{{agent: '{__name__}:Counting'}}]"
    code, lines, _ = run(capsys, "train", config, "--set", f"logging.directory={folder}", env, agents, *overrides)
    assert code == 0
    assert lines[-1].startswith("scope 0: return ")
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert len(json.loads((folder / "evaluation.json").read_text())[0]["returns"]) == 5
    told = [record.getMessage() for record in caplog.records if "could not be closed" in record.getMessage()]
    # the environment of the spaces, those of training, and those of the evaluation
    assert [text.split(" could ")[0] for text in told] == [
        "the environment that was built to learn the spaces",
        "the trainer",
        "the environment that was built to learn the spaces",
        "the trainer",
    ]
    assert ", phase close, on " in told[1]
    assert "RuntimeError: row 0 stays open" in told[1]
    caplog.clear()
    code, again, _ = run(capsys, "eval", folder)
    assert (code, again) == (0, lines[-1:])
